"""A real COCO checkpoint on real COCO images, through our data path, label map and evaluation.

The network is an ONNX graph, so this proves everything around a network: reading, resizing, label
ids, detections in original pixels, and AP.
"""

import contextlib
import io
import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from datamodules.coco import CocoDataModule
from zoo.contract.batch import Batch, Detections
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.evaluation.coco_ap import SCORES, CocoAP, format_score

DATA = Path(os.environ.get("ZOO_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
CHECKPOINT = DATA / "weights" / "deimv2_hgnetv2_atto_coco.onnx"
ANNOTATIONS = DATA / "coco" / "annotations" / "instances_val2017.json"
# measured with pycocotools by whoever made the checkpoint file; see SOURCE.md beside it
PUBLISHED = {
    "AP": 0.2573,
    "AP50": 0.3880,
    "AP75": 0.2733,
    "APs": 0.0798,
    "APm": 0.2968,
    "APl": 0.4458,
    "AR100": 0.4314,
}

pytestmark = pytest.mark.skipif(
    not (CHECKPOINT.is_file() and ANNOTATIONS.is_file()),
    reason=f"no checkpoint or COCO subset under {DATA}; set ZOO_TEST_DATA",
)


class Run(NamedTuple):
    metric: CocoAP
    label_map: LabelMap
    batches: list[tuple[list[Detections], Batch]]


def detect(session, batch: Batch) -> list[Detections]:
    images = batch.images.numpy().astype(np.float32) / 255
    sizes_wh = np.array([(w, h) for h, w in batch.original_sizes], dtype=np.int64)
    labels, boxes, scores = session.run(
        ["labels", "boxes", "scores"], {"images": images, "orig_target_sizes": sizes_wh}
    )
    rows = zip(*(torch.from_numpy(a) for a in (scores, labels, boxes)), strict=True)
    return [Detections(*row) for row in rows]


def run(backend: str) -> Run:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(CHECKPOINT, options, providers=["CPUExecutionProvider"])
    data = CocoDataModule(
        root=str(DATA / "coco"),
        labels="contiguous",
        input=InputContract(resize="stretch", size=(320, 320), backend=backend),
        train_transform="none",
        batch_size=8,
        eval_batch_size=8,
        num_workers=0,
        seed=0,
    )
    data.setup("validate")
    metric, batches = CocoAP(), []
    for batch in data.val_dataloader():
        detections = detect(session, batch)
        metric.update(detections, batch)
        batches.append((detections, Batch(**{**vars(batch), "images": batch.images[:, :, :1, :1]})))
    return Run(metric, data.label_map, batches)


@pytest.fixture(scope="module")
def official() -> Run:
    return run("pil")


def test_all_images_with_their_annotations(official):
    evaluation = official.metric.evaluation()
    assert evaluation.num_images == 206
    assert len(evaluation.data.annotations) == 1786
    assert int(evaluation.data.annotation_labels[:, 1].sum()) == 21  # crowds


def test_scores_are_the_published_ones(official):
    scores = official.metric.compute()
    for name, value in PUBLISHED.items():
        assert scores[name] == pytest.approx(value, abs=1e-3), name


def test_equals_pycocotools_on_the_written_file(official, tmp_path):
    path = tmp_path / "detections.json"
    official.metric.evaluation().write_coco_results(path, official.label_map)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(ANNOTATIONS))
        evaluator = COCOeval(truth, truth.loadRes(str(path)), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    scores = official.metric.compute()
    np.testing.assert_allclose([scores[name] for name in SCORES], evaluator.stats, rtol=0, atol=1e-12)


def test_label_map_shifted_by_one_collapses(official):
    shifted = CocoAP()
    for detections, batch in official.batches:
        shifted.update([d._replace(labels=(d.labels + 1) % 80) for d in detections], batch)
    assert shifted.compute()["AP"] < 0.01

    names, ids = official.label_map.names, official.label_map.source_ids
    wrong = LabelMap.contiguous(names, ids[1:] + ids[:1])
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(ANNOTATIONS))
        evaluator = COCOeval(truth, truth.loadRes(official.metric.evaluation().coco_results(wrong)), "bbox")
        evaluator.params.imgIds = evaluator.params.imgIds[:60]
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    assert evaluator.stats[0] < 0.01


def test_interval_holds_the_score_and_is_not_trivial(official):
    scores, interval = official.metric.compute(), official.metric.evaluation().interval()
    low, high = interval["AP"]
    assert low < scores["AP"] < high
    assert 0.02 < high - low < 0.15
    assert format_score(scores["AP"], interval["AP"]).startswith("0.257 [0.")


def test_fast_resize_stays_close(official):
    fast, exact = run("fast").metric.compute(), official.metric.compute()
    for name in PUBLISHED:
        assert not math.isnan(fast[name])
        assert fast[name] == pytest.approx(exact[name], abs=5e-3), name
