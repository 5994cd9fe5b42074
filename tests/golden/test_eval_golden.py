import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask

from zoo.contract.batch import Annotations, Batch, Detections, Targets
from zoo.evaluation.coco_ap import SCORES, CocoAP

DEFAULT = Path(__file__).parents[3] / "shared" / "golden"


def golden_dir():
    """The folder of golden data; without one the test skips, but a named folder must hold the case."""
    folder = Path(os.environ.get("GOLDEN_DIR", DEFAULT))
    if not (folder / "eval" / "coco_eval.npz").is_file():
        if "GOLDEN_DIR" in os.environ:
            pytest.fail(f"GOLDEN_DIR={folder} holds no eval/coco_eval.npz")
        pytest.skip("no golden data; set GOLDEN_DIR")
    return folder


def code_of(annotation, image):
    size = (image["height"], image["width"])
    raw = annotation["segmentation"]
    if isinstance(raw, list):
        return mask.merge(mask.frPyObjects(raw, *size))
    return raw if isinstance(raw["counts"], str) else mask.frPyObjects(raw, *size)


def batch_of(image, annotations, head):
    facts = Annotations(
        boxes_xywh=torch.tensor([a["bbox"] for a in annotations], dtype=torch.float64).reshape(-1, 4),
        areas=torch.tensor([a["area"] for a in annotations], dtype=torch.float64),
        labels=torch.tensor([head[a["category_id"]] for a in annotations], dtype=torch.int64),
        crowd=torch.tensor([a["iscrowd"] for a in annotations], dtype=torch.bool),
        counts=(len(annotations),),
        segmentations=tuple(code_of(a, image) for a in annotations),
    )
    return Batch(
        images=torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        padding=torch.zeros(1, 4, 4, dtype=torch.bool),
        targets=Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (0,)),
        image_ids=(image["id"],),
        original_sizes=((image["height"], image["width"]),),
        annotations=facts,
    )


def detections_of(results, head):
    # results of masks have no box
    xywh = torch.tensor([r.get("bbox", [0, 0, 0, 0]) for r in results], dtype=torch.float64).reshape(-1, 4)
    return Detections(
        scores=torch.tensor([r["score"] for r in results], dtype=torch.float64),
        labels=torch.tensor([head[r["category_id"]] for r in results], dtype=torch.int64),
        boxes_xyxy=torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1),
        masks=tuple(r["segmentation"] for r in results) if results and "segmentation" in results[0] else (),
    )


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("case", ["eval/coco_eval"])
def test_scores_equal_the_official_evaluator(case, iou_type, backend):
    folder = golden_dir()
    truth = json.loads((folder / f"{case}_gt.json").read_text())
    results = json.loads((folder / f"{case}_dt_{iou_type}.json").read_text())
    head = {c["id"]: k for k, c in enumerate(truth["categories"])}

    metric = CocoAP(backend, iou_type)
    for image in truth["images"]:
        of_image = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        found = [r for r in results if r["image_id"] == image["id"]]
        metric.update([detections_of(found, head)], batch_of(image, of_image, head))
    scores = metric.compute()

    golden = np.load(folder / f"{case}.npz")
    np.testing.assert_allclose(
        [scores[name] for name in SCORES], golden[f"{iou_type}/stats"], rtol=0, atol=1e-6
    )
    precision = golden[f"{iou_type}/precision"][..., 0, -1]
    for category, k in head.items():
        per_class = precision[:, :, k][precision[:, :, k] > -1].mean(dtype=np.float64)
        assert metric.evaluation().per_class[k] == pytest.approx(per_class, abs=1e-6), category


def test_backends_agree_to_the_last_bit_on_masks():
    folder = golden_dir()
    truth = json.loads((folder / "eval" / "coco_eval_gt.json").read_text())
    results = json.loads((folder / "eval" / "coco_eval_dt_segm.json").read_text())
    head = {c["id"]: k for k, c in enumerate(truth["categories"])}
    scores = []
    for backend in ("hotcoco", "pycocotools"):
        metric = CocoAP(backend, "segm")
        for image in truth["images"]:
            of_image = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
            found = [r for r in results if r["image_id"] == image["id"]]
            metric.update([detections_of(found, head)], batch_of(image, of_image, head))
        scores.append(metric.compute())
    np.testing.assert_array_equal(list(scores[0].values()), list(scores[1].values()))
