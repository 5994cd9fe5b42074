import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from zoo.contract.batch import Annotations, Batch, Detections, Targets
from zoo.contract.segments import PanopticSegmentation, Segment
from zoo.evaluation.coco_ap import CocoAP
from zoo.evaluation.panoptic_quality import SCORES, PanopticQuality

THINGS = {0, 1}  # 2 and 3 are stuff


def segmentation(rows, labels, crowd=()):
    """A map written as rows of digits; `labels` gives the head index of each digit but 0."""
    ids = torch.tensor([[int(c) for c in row] for row in rows], dtype=torch.int32)
    return PanopticSegmentation(
        ids,
        tuple(
            Segment(number, label, label in THINGS, int((ids == number).sum()), number in crowd)
            for number, label in labels.items()
        ),
    )


def batch_of(truth, image_id=1):
    return Batch(
        images=torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        padding=torch.zeros(1, 4, 4, dtype=torch.bool),
        targets=Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (0,)),
        image_ids=(image_id,),
        original_sizes=(truth.size,),
        panoptic=(truth,),
    )


def quality(found, truth):
    metric = PanopticQuality()
    metric.update([found], batch_of(truth))
    metric.compute()
    return {
        label: (q.tp, q.fp, q.fn, pytest.approx(q.iou)) for label, q in metric.evaluation().per_class.items()
    }


def by_the_rules(found, truth):
    """panopticapi's rules on sets of pixels: {class: (tp, fp, fn, sum of IoU)}."""
    pixels = {id(side): {s.id: side.ids.numpy() == s.id for s in side.segments} for side in (found, truth)}
    mine, real = pixels[id(found)], pixels[id(truth)]
    void = ~np.logical_or.reduce([np.zeros(truth.size, bool), *real.values()])
    rows = {s.label: [0, 0, 0, 0.0] for s in (*found.segments, *truth.segments)}
    matched_truth, matched_found = set(), set()
    for t in (s for s in truth.segments if not s.crowd):
        for f in (s for s in found.segments if s.label == t.label):
            common = (mine[f.id] & real[t.id]).sum()
            union = (mine[f.id] | real[t.id]).sum() - (mine[f.id] & void).sum()
            if common / union > 0.5:
                rows[t.label][0] += 1
                rows[t.label][3] += common / union
                matched_truth.add(t.id)
                matched_found.add(f.id)
    for t in truth.segments:
        rows[t.label][2] += not t.crowd and t.id not in matched_truth
    # of several crowds of a class the last one listed counts, as there
    crowds = {s.label: real[s.id] for s in truth.segments if s.crowd}
    for f in found.segments:
        excused = (mine[f.id] & void).sum()
        if f.label in crowds:
            excused += (mine[f.id] & crowds[f.label]).sum()
        rows[f.label][1] += f.id not in matched_found and not excused / mine[f.id].sum() > 0.5
    return {label: tuple(row) for label, row in rows.items() if sum(row[:3])}


def test_union_leaves_void_out():
    truth = segmentation(["1100", "1100"], {1: 0})
    # half of the prediction is void, which costs nothing
    assert quality(segmentation(["1111", "1111"], {1: 0}), truth) == {0: (1, 0, 0, 1.0)}
    # on another segment it would
    other = segmentation(["1122", "1122"], {1: 0, 2: 2})
    assert quality(segmentation(["1111", "1111"], {1: 0}), other) == {0: (0, 1, 1, 0.0), 2: (0, 0, 1, 0.0)}


def test_iou_of_exactly_a_half_is_no_match():
    truth = segmentation(["1122"], {1: 0, 2: 2})
    assert quality(segmentation(["1000"], {1: 0}), truth)[0] == (0, 1, 1, 0.0)
    assert quality(segmentation(["111122"], {1: 0, 2: 2}), segmentation(["111222"], {1: 0, 2: 2}))[0] == (
        1,
        0,
        0,
        0.75,
    )


def test_a_crowd_is_never_missed_and_excuses_its_own_class_only():
    truth = segmentation(["1111", "2222"], {1: 0, 2: 2}, crowd={1})
    assert quality(segmentation(["0000", "2222"], {2: 2}), truth) == {2: (1, 0, 0, 1.0)}
    two = segmentation(["1133", "2222"], {1: 0, 3: 0, 2: 2})
    assert quality(two, truth) == {2: (1, 0, 0, 1.0)}
    wrong = segmentation(["1133", "2222"], {1: 1, 3: 0, 2: 2})
    assert quality(wrong, truth) == {1: (0, 1, 0, 0.0), 2: (1, 0, 0, 1.0)}


def test_a_prediction_on_void_is_excused_only_if_most_of_it_is():
    truth = segmentation(["0002", "2222"], {2: 2})
    assert quality(segmentation(["1112", "2222"], {1: 0, 2: 2}), truth) == {2: (1, 0, 0, 1.0)}
    half = segmentation(["0011", "2211"], {1: 0, 2: 2})
    assert quality(half, segmentation(["0000", "2222"], {2: 2}))[0] == (0, 1, 0, 0.0)


def test_id_0_is_a_segment_if_it_is_listed():
    truth = segmentation(["1122"], {1: 0, 2: 2})
    assert quality(segmentation(["0022"], {0: 0, 2: 2}), truth) == {0: (1, 0, 0, 1.0), 2: (1, 0, 0, 1.0)}
    assert quality(segmentation(["0022"], {2: 2}), truth) == {0: (0, 0, 1, 0.0), 2: (1, 0, 0, 1.0)}


def random_pair(seed, size=(24, 30)):
    """Blocks with classes, crowds and void, and a prediction that is the truth with mistakes."""
    rng = np.random.default_rng(seed)
    height, width = size
    truth = np.zeros(size, np.int32)
    labels, crowd = {}, set()
    for number in range(1, 9):
        y, x = rng.integers(0, height - 6), rng.integers(0, width - 6)
        truth[y : y + rng.integers(3, 14), x : x + rng.integers(3, 14)] = number
        labels[number] = int(rng.integers(0, 4))
        if labels[number] in THINGS and rng.random() < 0.35:
            crowd.add(number)
    found = np.roll(truth, tuple(rng.integers(-2, 3, 2)), axis=(0, 1))
    guessed = {n: label if rng.random() < 0.7 else int(rng.integers(0, 4)) for n, label in labels.items()}
    found[rng.integers(0, height - 8) :, : rng.integers(2, 8)] = 9
    guessed[9] = int(rng.integers(0, 4))
    return tuple(
        PanopticSegmentation(
            torch.from_numpy(np.ascontiguousarray(ids)),
            tuple(
                Segment(n, label, label in THINGS, int((ids == n).sum()), ids is truth and n in crowd)
                for n, label in names.items()
                if (ids == n).any()
            ),
        )
        for ids, names in ((found, guessed), (truth, labels))
    )


def test_equals_the_rules_written_down():
    seen = np.zeros(3)
    for seed in range(60):
        found, truth = random_pair(seed)
        expected = by_the_rules(found, truth)
        assert quality(found, truth) == expected, seed
        seen += np.sum([row[:3] for row in expected.values()], axis=0)
    assert seen.min() > 60  # matches, false positives and misses all happen


def filled(numbers):
    metric = PanopticQuality()
    for number in numbers:
        found, truth = random_pair(number)
        metric.update([found], batch_of(truth, 1000 - number))
    return metric


def test_scores_are_means_over_classes_of_sums_over_images():
    metric = filled(range(12))
    scores, classes = metric.compute(), metric.evaluation().per_class
    assert tuple(scores) == SCORES
    totals = {label: np.zeros(4) for label in classes}
    for number in range(12):
        for label, row in by_the_rules(*random_pair(number)).items():
            totals[label] += row
    values = {}
    for label, (tp, fp, fn, iou) in totals.items():
        values[label] = (iou / (tp + fp / 2 + fn / 2), iou / tp, tp / (tp + fp / 2 + fn / 2))
        assert classes[label][:3] == pytest.approx(values[label], abs=1e-12)
    for group, wanted in (("", {0, 1, 2, 3}), ("_th", {0, 1}), ("_st", {2, 3})):
        means = np.mean([values[label] for label in wanted], axis=0)
        assert [scores[n + group] for n in ("PQ", "SQ", "RQ")] == pytest.approx(means.tolist(), abs=1e-12)
    alone = metric.evaluation().per_image()
    assert alone[1000 - 3] == pytest.approx(filled([3]).compute(), nan_ok=True)


def test_order_and_repeats_do_not_matter():
    assert filled(range(12)).compute() == filled([*range(11, -1, -1), 4, 5]).compute()
    assert filled([*range(12), 3]).evaluation().num_images == 12


def test_the_truth_as_prediction_is_perfect_without_crowds():
    truth = segmentation(["1102", "1133"], {1: 0, 2: 2, 3: 1})
    metric = PanopticQuality()
    metric.update([truth], batch_of(truth))
    assert set(metric.compute().values()) == {1.0}


def test_crowds_as_prediction_are_segments_like_others():
    truth = segmentation(["1102", "1133"], {1: 0, 2: 2, 3: 0}, crowd={3})
    assert quality(truth, truth) == {0: (1, 0, 0, 1.0), 2: (1, 0, 0, 1.0)}
    # of two crowds of a class only the last excuses, so the truth itself has a false positive
    two = segmentation(["1102", "1133"], {1: 0, 2: 2, 3: 0}, crowd={1, 3})
    assert quality(two, two) == {0: (0, 1, 0, 0.0), 2: (1, 0, 0, 1.0)}


def test_nothing_to_score_is_nan():
    assert all(math.isnan(v) for v in PanopticQuality().compute().values())
    metric = PanopticQuality()
    empty = segmentation(["00"], {})
    metric.update([empty], batch_of(empty))
    assert all(math.isnan(v) for v in metric.compute().values())
    things = segmentation(["11"], {1: 0})
    metric.update([things], batch_of(things, 2))
    assert metric.compute()["PQ_th"] == 1
    assert math.isnan(metric.compute()["PQ_st"])


def test_bad_updates_are_refused():
    truth = segmentation(["1122"], {1: 0, 2: 2})
    metric = PanopticQuality()
    for found, message in (
        (
            segmentation(["11220"], {1: 0, 2: 2}),
            r"image 1: the prediction is \(1, 5\), the ground truth \(1, 4\)",
        ),
        (segmentation(["1122"], {1: 0}), "in the prediction, id 2 has 2 pixels and is not listed"),
        (segmentation(["1111"], {1: 0, 2: 2}), "in the prediction, id 2 is listed and has no pixel"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.update([found], batch_of(truth))
    mixed = PanopticSegmentation(truth.ids, tuple(s._replace(is_thing=True) for s in truth.segments))
    with pytest.raises(ValueError, match="label 2 is a thing in one segment and stuff in another"):
        metric.update([mixed], batch_of(truth))
    with pytest.raises(ValueError, match="segmentations of 0 images for a batch of 1"):
        metric.update([], batch_of(truth))
    with pytest.raises(ValueError, match="images 1 has no panoptic ground truth"):
        metric.update([truth], replace(batch_of(truth), panoptic=None))
    assert metric.evaluation().num_images == 0


def test_protocol_names_evaluator_and_rules():
    assert PanopticQuality().protocol()["rules"] == "panopticapi"
    assert PanopticQuality().protocol()["evaluator"] == "hotcoco"


# ------------------------------------------------------------------ AP of masks


def masked_image(number):
    """Detections with masks and their truth, of the things of a random pair."""
    found, truth = random_pair(number)
    sides = []
    for side in (found, truth):
        rows = [(s, m) for s, m in zip(side.segments, side.masks(), strict=True) if s.is_thing]
        codes = [coco_mask.encode(np.asfortranarray(m.numpy().astype(np.uint8))) for _, m in rows]
        boxes = torch.from_numpy(coco_mask.toBbox(codes).reshape(-1, 4)) if codes else torch.zeros(0, 4)
        sides.append(([s for s, _ in rows], tuple(codes), boxes.double()))
    (mine, codes, boxes), (real, true_codes, true_boxes) = sides
    scores = torch.linspace(0.9, 0.1, len(mine), dtype=torch.float64)
    xyxy = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
    facts = Annotations(
        true_boxes,
        torch.tensor([float(s.area) for s in real], dtype=torch.float64),
        torch.tensor([s.label for s in real], dtype=torch.int64),
        torch.tensor([s.crowd for s in real], dtype=torch.bool),
        (len(real),),
        true_codes,
    )
    labels = torch.tensor([s.label for s in mine], dtype=torch.int64)
    return (
        [Detections(scores, labels, xyxy, codes)],
        replace(batch_of(truth, 1000 - number), annotations=facts),
    )


def mask_ap(numbers, backend="hotcoco"):
    metric = CocoAP(backend, "segm")
    for number in numbers:
        metric.update(*masked_image(number))
    return metric


def test_ap_of_masks_is_that_of_pycocotools_to_the_last_bit():
    mine, theirs = mask_ap(range(12)), mask_ap(range(12), "pycocotools")
    np.testing.assert_array_equal(list(mine.compute().values()), list(theirs.compute().values()))
    assert 0.01 < mine.compute()["AP"] < 0.95
    assert mine.evaluation().per_class == theirs.evaluation().per_class
    assert mine.evaluation().interval(20) == theirs.evaluation().interval(20)
    assert mine.protocol()["iou_type"] == "segm"
    evaluation = mine.evaluation()
    same = evaluation.resampled(np.ones((1, evaluation.num_images), dtype=np.int64))
    assert same["AP"][0] == pytest.approx(mine.compute()["AP"], abs=1e-14)


def test_ap_of_masks_is_not_that_of_boxes():
    boxes = CocoAP()
    for number in range(12):
        boxes.update(*masked_image(number))
    assert boxes.compute()["AP"] != mask_ap(range(12)).compute()["AP"]


def test_written_masks_are_the_given_ones_without_boxes():
    metric = mask_ap(range(6))
    truth, results = metric.evaluation().ground_truth(), metric.evaluation().coco_results()
    assert all("bbox" not in r and isinstance(r["segmentation"]["counts"], str) for r in results)
    given = {
        b.image_ids[0]: (d.masks, b.annotations.segmentations) for (d,), b in map(masked_image, range(6))
    }
    for side, rows in enumerate((results, truth["annotations"])):
        for image_id, codes in given.items():
            written = [r["segmentation"]["counts"] for r in rows if r["image_id"] == image_id]
            assert written == [code["counts"].decode("ascii") for code in codes[side]]


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_masks_without_any_detection(backend):
    found, batch = masked_image(1)
    none = [Detections(*(t[:0] for t in found[0][:3]), ())]
    metric = CocoAP(backend, "segm")
    metric.update(none, batch)
    assert metric.compute()["AP"] == 0
    assert all(math.isnan(v) for v in CocoAP(backend, "segm").compute().values())


def test_the_true_masks_as_prediction_are_perfect():
    metric = CocoAP(iou_type="segm")
    for number in range(12):
        _, batch = masked_image(number)
        facts = batch.annotations
        single = (~facts.crowd).nonzero()[:, 0].tolist()  # a predicted crowd would be ignored where it fits
        xyxy = torch.cat([facts.boxes_xywh[:, :2], facts.boxes_xywh[:, :2] + facts.boxes_xywh[:, 2:]], 1)
        codes = tuple(facts.segmentations[k] for k in single)
        found = Detections(torch.ones(len(single)), facts.labels[single], xyxy[single], codes)
        metric.update([found], batch)
    assert metric.compute()["AP"] == pytest.approx(1)


def test_bad_masks_are_refused():
    found, batch = masked_image(1)
    metric = CocoAP(iou_type="segm")
    with pytest.raises(ValueError, match="image 999 has detections without a mask each"):
        metric.update([found[0]._replace(masks=None)], batch)
    bare = replace(batch, annotations=batch.annotations._replace(segmentations=None))
    with pytest.raises(ValueError, match="image 999 has no masks of annotations"):
        metric.update(found, bare)
    wrong = ({"size": [9, 9], "counts": b"0"},) * len(found[0].scores)
    with pytest.raises(ValueError, match=r"a mask of \(9, 9\) for an image of \(24, 30\)"):
        metric.update([found[0]._replace(masks=wrong)], batch)
    loose = ({"size": [24, 30], "counts": [720]},) * len(found[0].scores)
    with pytest.raises(ValueError, match="counts are list; compress them"):
        metric.update([found[0]._replace(masks=loose)], batch)
    with pytest.raises(ValueError, match="iou_type 'keypoints' is not one of bbox, segm"):
        CocoAP(iou_type="keypoints")


# ------------------------------------------------------------------ ranks


def _answers(numbers):
    quality, masks = filled(numbers), mask_ap(numbers)
    answer = (
        quality.compute(),
        quality.evaluation().per_class,
        masks.compute(),
        len(masks.evaluation().coco_results()),
    )
    return repr(answer)  # every digit, and nan equals nan


def _answers_of_rank(rank):
    # image 5 is on both ranks; a rank may have none
    return [_answers(shares[rank]) for shares in ([range(6), range(5, 9)], [range(9), []])]


def test_two_ranks_equal_one(answers_of_two_ranks):
    answers = answers_of_two_ranks(_answers_of_rank)
    expected = _answers(range(9))
    assert all(answer == expected for rank in range(2) for answer in answers[rank])
