import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo.batch import Annotations, Batch, Detections, Targets
from zoo.evaluation import SCORES, CocoAP

DEFAULT = Path(__file__).parents[3] / "shared" / "golden"


def golden_dir():
    """The folder of golden data; without one the test skips, but a named folder must hold the case."""
    folder = Path(os.environ.get("GOLDEN_DIR", DEFAULT))
    if not (folder / "eval" / "coco_eval.npz").is_file():
        if "GOLDEN_DIR" in os.environ:
            pytest.fail(f"GOLDEN_DIR={folder} holds no eval/coco_eval.npz")
        pytest.skip("no golden data; set GOLDEN_DIR")
    return folder


def batch_of(image, annotations, head):
    facts = Annotations(
        boxes_xywh=torch.tensor([a["bbox"] for a in annotations], dtype=torch.float64).reshape(-1, 4),
        areas=torch.tensor([a["area"] for a in annotations], dtype=torch.float64),
        labels=torch.tensor([head[a["category_id"]] for a in annotations], dtype=torch.int64),
        crowd=torch.tensor([a["iscrowd"] for a in annotations], dtype=torch.bool),
        counts=(len(annotations),),
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
    xywh = torch.tensor([r["bbox"] for r in results], dtype=torch.float64).reshape(-1, 4)
    return Detections(
        scores=torch.tensor([r["score"] for r in results], dtype=torch.float64),
        labels=torch.tensor([head[r["category_id"]] for r in results], dtype=torch.int64),
        boxes_xyxy=torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1),
    )


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("case", ["eval/coco_eval"])
def test_scores_equal_the_official_evaluator(case, backend):
    folder = golden_dir()
    truth = json.loads((folder / f"{case}_gt.json").read_text())
    results = json.loads((folder / f"{case}_dt_bbox.json").read_text())
    head = {c["id"]: k for k, c in enumerate(truth["categories"])}

    metric = CocoAP(backend)
    for image in truth["images"]:
        of_image = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        found = [r for r in results if r["image_id"] == image["id"]]
        metric.update([detections_of(found, head)], batch_of(image, of_image, head))
    scores = metric.compute()

    golden = np.load(folder / f"{case}.npz")
    np.testing.assert_allclose([scores[name] for name in SCORES], golden["bbox/stats"], rtol=0, atol=1e-6)
    precision = golden["bbox/precision"][..., 0, -1]
    for category, k in head.items():
        per_class = precision[:, :, k][precision[:, :, k] > -1].mean(dtype=np.float64)
        assert metric.per_class()[k] == pytest.approx(per_class, abs=1e-6), category
