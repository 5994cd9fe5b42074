import contextlib
import io
import json
import math

import numpy as np
import pytest
import torch
from evaluated import LABELS, filled, hard_images, one_image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from zoo.contract.batch import Annotations, Batch
from zoo.evaluation.coco_ap import (
    SCORES,
    CocoAP,
    Evaluation,
    format_score,
    score_table,
    small_set_note,
)
from zoo.evaluation.coco_evaluator import Collected, MaskCodes, protocol


def reference(truth, results):
    """The twelve numbers of pycocotools, run as its own demo does."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = truth
        gt.createIndex()
        evaluator = COCOeval(gt, gt.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return dict(zip(SCORES, np.where(evaluator.stats == -1, np.nan, evaluator.stats), strict=True))


def assert_equal(mine, theirs, atol=1e-12):
    assert list(mine) == list(theirs)
    np.testing.assert_allclose(list(mine.values()), list(theirs.values()), rtol=0, atol=atol)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_equals_pycocotools(seed, backend):
    metric = filled(hard_images(seed), backend)
    scores = metric.compute()
    assert 0.05 < scores["AP"] < 0.95
    assert_equal(
        scores, reference(metric.evaluation().ground_truth(LABELS), metric.evaluation().coco_results(LABELS))
    )


def test_the_hard_images_are_hard():
    metric = filled(hard_images())
    data = metric.evaluation().data
    crowded = np.bincount(data.detection_image * 4 + data.detection_labels)
    assert crowded.max() > 100
    assert data.annotation_labels[:, 1].sum() > 3
    assert 3 not in data.annotation_labels[:, 0]
    assert 3 in data.detection_labels
    assert len(set(range(24)) - set(data.annotation_image.tolist())) > 0
    assert len(set(range(24)) - set(data.detection_image.tolist())) > 0
    assert not np.allclose(data.annotations[:, 2] * data.annotations[:, 3], data.annotations[:, 4])


def test_per_class_equals_pycocotools_on_one_class():
    metric = filled(hard_images())
    truth, results = metric.evaluation().ground_truth(), metric.evaluation().coco_results()
    for head, ap in metric.evaluation().per_class.items():
        one = {**truth, "annotations": [a for a in truth["annotations"] if a["category_id"] == head]}
        alone = reference(one, [r for r in results if r["category_id"] == head])
        np.testing.assert_allclose(ap, alone["AP"], rtol=0, atol=1e-12)
    assert math.isnan(metric.evaluation().per_class[3])  # detected, never annotated


def test_area_of_the_segmentation_decides_the_size():
    box = [0.0, 0, 40, 40]  # 1600 pixels, a medium box around a small shape
    scores = filled([one_image(1, [[0, 0, 0, 40, 40, 0.9]], [[0, *box, 700, 0]])]).compute()
    assert scores["APs"] == pytest.approx(1)
    assert math.isnan(scores["APm"])


def test_both_backends_score_more_masks_than_a_byte_counts():
    """pycocotools' areas of 256 masks at once overflow with numpy 2."""
    mask = np.zeros((20, 20, 1), np.uint8, order="F")
    mask[5:15, 5:15] = 1
    code = coco_mask.encode(mask)[0]["counts"]
    rows = np.arange(300)
    boxes = np.tile([5.0, 5, 10, 10, 0.5], (300, 1))
    data = Collected(
        np.stack([rows, rows * 0 + 20, rows * 0 + 20], axis=1), boxes, rows * 0, rows,
        np.hstack([boxes[:, :4], np.full((300, 1), 100.0)]), np.zeros((300, 2), np.int64), rows,
        MaskCodes([code] * 300, [code] * 300),
    )  # fmt: skip
    for backend in ("hotcoco", "pycocotools"):
        assert Evaluation(data, backend).scores["AP"] == 1


def test_nothing_to_score_is_nan():
    for metric in (
        filled([]),
        filled([one_image(1, [], [])]),
        filled([one_image(1, [[0, 0, 0, 9, 9, 0.5]], [])]),
    ):
        assert all(math.isnan(v) for v in metric.compute().values())
        assert all(math.isnan(v) for pair in metric.evaluation().interval().values() for v in pair)


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_no_detection_at_all_is_zero(backend):
    scores = filled([one_image(1, [], [[0, 5, 5, 20, 20, 400, 0]])], backend).compute()
    assert scores["AP"] == scores["AR100"] == 0.0


def test_order_of_updates_does_not_matter():
    images = hard_images()
    assert_equal(filled(images).compute(), filled(images[::-1]).compute(), atol=0)


def test_a_batch_of_many_equals_batches_of_one():
    images = hard_images()
    detections = [d for found, _ in images for d in found]
    many = Batch(
        images=torch.zeros(len(images), 3, 4, 4, dtype=torch.uint8),
        padding=torch.zeros(len(images), 4, 4, dtype=torch.bool),
        targets=images[0][1].targets,
        image_ids=tuple(b.image_ids[0] for _, b in images),
        original_sizes=tuple(b.original_sizes[0] for _, b in images),
        annotations=Annotations(
            *(torch.cat([b.annotations[k] for _, b in images]) for k in range(4)),
            counts=tuple(b.annotations.counts[0] for _, b in images),
        ),
    )
    assert_equal(filled([(detections, many)]).compute(), filled(images).compute(), atol=0)


def test_repeated_image_counts_once():
    images = hard_images()
    metric = filled([*images, *images[5:11]])
    assert_equal(metric.compute(), filled(images).compute(), atol=0)
    assert metric.evaluation().num_images == len(images)


def test_reset_forgets_and_update_refreshes():
    images = hard_images()
    metric = filled(images[:12])
    before = metric.evaluation()
    first = metric.compute()
    for detections, batch in images[12:]:
        metric.update(detections, batch)
    assert metric.evaluation().scores == metric.compute() == filled(images).compute() != first
    metric.reset()
    assert math.isnan(metric.compute()["AP"])
    assert before.scores == first


def _answers(rank):
    results = []
    for shares in (_shares(), [hard_images(), []], [[], hard_images()]):
        metric = filled(shares[rank])
        results.append(
            (metric.compute(), metric.evaluation().interval(20), len(metric.evaluation().coco_results()))
        )
        for detections, batch in shares[rank][:1]:  # states are the rank's own again
            metric.update(detections, batch)
        results.append(
            (metric.compute(), metric.evaluation().interval(20), len(metric.evaluation().coco_results()))
        )
    return results


def _shares():
    images = hard_images()
    return [images[:9], images[8:]]  # image 8 is on both ranks


def test_two_ranks_equal_one(answers_of_two_ranks):
    answers = answers_of_two_ranks(_answers)
    whole = filled(hard_images())
    expected = (whole.compute(), whole.evaluation().interval(20), len(whole.evaluation().coco_results()))
    for rank in range(2):
        assert all(result == expected for result in answers[rank])


def test_moving_the_metric_keeps_float64_on_the_cpu():
    metric = filled(hard_images()).to(torch.float16).to("meta")
    assert metric.detections[1].dtype == torch.float64
    assert metric.detections[1].device.type == "cpu"


def test_written_results_carry_source_ids(tmp_path):
    metric = filled(hard_images())
    path = tmp_path / "detections.json"
    metric.evaluation().write_coco_results(path, LABELS)
    results = json.loads(path.read_text())
    assert {r["category_id"] for r in results} == set(LABELS.source_ids)
    assert [r["image_id"] for r in results] == sorted(r["image_id"] for r in results)
    assert_equal(metric.compute(), reference(metric.evaluation().ground_truth(LABELS), results))


def test_results_refuse_a_map_that_does_not_know_the_label():
    metric = filled([one_image(1, [[5, 0, 0, 9, 9, 0.5]], [])])
    with pytest.raises(ValueError, match=r"labels 5 are no classes .* 0, 1, 2, 3"):
        metric.evaluation().coco_results(LABELS)


def test_bad_updates_are_refused():
    found, batch = one_image(31, [[0, 0, 0, 9, 9, 0.5]], [[0, 0, 0, 9, 9, 81, 0]])
    metric = CocoAP()
    with pytest.raises(ValueError, match="detections of 0 images for a batch of 1"):
        metric.update([], batch)
    with pytest.raises(ValueError, match="images 31 has no annotations"):
        metric.update(found, Batch(batch.images, batch.padding, batch.targets, (31,), ((4, 4),)))
    nan = [found[0]._replace(scores=torch.tensor([float("nan")]))]
    with pytest.raises(ValueError, match="1 detections hold nan or inf, the first on image 31"):
        metric.update(nan, batch)
    with pytest.raises(ValueError, match="backend 'lvis' is not one of"):
        CocoAP("lvis")


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_bootstrap_of_the_images_themselves_is_the_score(backend):
    evaluation = filled(hard_images(), backend).evaluation()
    same = evaluation.resampled(np.ones((1, evaluation.num_images), dtype=np.int64))
    for name in ("AP", "AP50"):
        np.testing.assert_allclose(same[name][0], evaluation.scores[name], rtol=0, atol=1e-14)


def distinct_scores(images):
    """The images without ties, so that where copies of an image go cannot matter."""
    rng = np.random.default_rng(5)
    return [
        (
            [
                d._replace(scores=torch.from_numpy(np.sort(rng.random(len(d.scores)))[::-1].copy()))
                for d in found
            ],
            batch,
        )
        for found, batch in images
    ]


def test_resampling_equals_evaluating_the_copies():
    images = sorted(distinct_scores(hard_images()), key=lambda pair: pair[1].image_ids)
    evaluation = filled(images).evaluation()
    rng = np.random.default_rng(1)
    weights = rng.multinomial(len(images), np.full(len(images), 1 / len(images)), size=8)
    fast = evaluation.resampled(weights)
    for sample, counts in enumerate(weights):
        copies = CocoAP("pycocotools")
        new_id = 0
        for (found, batch), count in zip(images, counts, strict=True):
            for _ in range(count):
                copies.update(found, Batch(**{**vars(batch), "image_ids": (new_id,)}))
                new_id += 1
        slow = copies.compute()
        assert fast["AP"][sample] == pytest.approx(slow["AP"], abs=1e-12)
        assert fast["AP50"][sample] == pytest.approx(slow["AP50"], abs=1e-12)


def test_interval_is_seeded_and_holds_the_score():
    metric = filled(hard_images())
    scores, interval = metric.compute(), metric.evaluation().interval()
    assert metric.evaluation().interval() == interval != metric.evaluation().interval(seed=1)
    for name in ("AP", "AP50"):
        low, high = interval[name]
        assert 0 <= low < scores[name] < high <= 1
    wide, narrow = (
        metric.evaluation().interval(confidence=0.99)["AP"],
        metric.evaluation().interval(confidence=0.5)["AP"],
    )
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    with pytest.raises(ValueError, match="interval of 0 samples"):
        metric.evaluation().interval(samples=0)


def test_interval_of_rare_classes_is_centred():
    """Copies of an image favour a rare class; uncorrected, the score would sit at the lower end."""
    rng = np.random.default_rng(2)
    images = []
    for image_id in range(60):
        label = image_id % 30
        wrong = [
            [k, 200, 200, 260, 260, s] for k, s in zip(rng.integers(0, 30, 40), rng.random(40), strict=True)
        ]
        found = [*wrong, [label, 10, 10, 60, 60, 0.5 + rng.random() / 2]]
        images.append(one_image(image_id, found, [[label, 10, 10, 50, 50, 2500, 0]]))
    evaluation = filled(images).evaluation()
    samples = evaluation.resampled(rng.multinomial(60, np.full(60, 1 / 60), size=200))["AP"]
    score, (low, high) = evaluation.scores["AP"], evaluation.interval()["AP"]
    assert samples.mean() > score + samples.std()
    assert 0.5 < (high - score) / (score - low) < 2


def test_chunks_of_the_bootstrap_do_not_show(monkeypatch):
    evaluation = filled(hard_images()).evaluation()
    whole = evaluation.interval(50)
    monkeypatch.setattr("zoo.evaluation.bootstrap.CHUNK", 100)
    monkeypatch.setattr("zoo.evaluation.bootstrap.IMAGES_AT_ONCE", 5)
    assert filled(hard_images()).evaluation().interval(50) == whole


def test_protocol_is_plain_and_names_the_evaluator():
    facts = protocol("pycocotools")
    assert json.loads(json.dumps(facts)) == facts
    assert facts["evaluator"] == "pycocotools"
    assert facts["iou_thresholds"] == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    assert facts["max_detections"] == [1, 10, 100]
    assert CocoAP().protocol()["evaluator"] == "hotcoco"


def test_scores_read_well():
    assert format_score(0.5234, (0.4701, 0.5699)) == "0.523 [0.470, 0.570]"
    assert format_score(0.5234) == "0.523"
    assert format_score(float("nan"), (0.1, 0.2)) == "-"


def test_a_small_set_says_so():
    assert small_set_note((0.40, 0.405), 5000) is None
    assert small_set_note((0.40, 0.50), 60) == (
        "60 images fix this AP to about ±0.05 only: between two models, "
        "a difference below 0.05 means nothing here"
    )
    assert "3 images all score alike" in small_set_note((0.0, 0.0), 3)
    assert small_set_note((0.4, 0.405), 30) is None
    assert "no measurement" in small_set_note((0.4, 0.4), 1)
    assert small_set_note((float("nan"), float("nan")), 0) is None


def test_table_names_classes_and_counts_objects():
    evaluation = filled(hard_images()).evaluation()
    table = score_table(evaluation, LABELS, evaluation.interval(50))
    lines = table.splitlines()
    assert lines[0].startswith("AP      0.")
    assert "[" in lines[0]
    truth = evaluation.data.annotation_labels
    cups = int(((truth[:, 0] == 0) & (truth[:, 1] == 0)).sum())
    assert any(line.startswith("cup ") and line.endswith(f" {cups}") for line in lines)
    assert any(line.split() == ["bus", "-", "0"] for line in lines)
    assert "24 images fix this AP" in lines[-1]
    assert isinstance(evaluation, Evaluation)
