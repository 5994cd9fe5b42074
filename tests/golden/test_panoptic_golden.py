import json

import numpy as np
import pytest
import torch

from zoo.contract.batch import Batch, Targets
from zoo.contract.segments import PanopticSegmentation, Segment
from zoo.evaluation.panoptic_quality import PanopticQuality


def segmentation(ids, rows, things):
    return PanopticSegmentation(
        torch.from_numpy(ids),
        tuple(
            Segment(
                r["id"],
                r["category_id"],
                r["category_id"] in things,
                int((ids == r["id"]).sum()),
                bool(r.get("iscrowd", 0)),
            )
            for r in rows
        ),
    )


def test_quality_equals_panopticapi(golden_dir):
    facts = json.loads((golden_dir / "eval" / "panoptic_pq.json").read_text())
    maps = np.load(golden_dir / "eval" / "panoptic_pq.npz")
    things = {c["id"] for c in facts["categories"] if c["isthing"]}
    metric = PanopticQuality()
    pairs = list(zip(facts["gt_segments"], facts["pred_segments"], strict=True))
    for number, (truth, found) in enumerate(pairs):
        mine = segmentation(maps[f"gt_map/{number}"], truth["segments_info"], things)
        batch = Batch(
            images=torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
            padding=torch.zeros(1, 4, 4, dtype=torch.bool),
            targets=Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (0,)),
            image_ids=(truth["image_id"],),
            original_sizes=(mine.size,),
            panoptic=(mine,),
        )
        metric.update([segmentation(maps[f"pred_map/{number}"], found["segments_info"], things)], batch)
    scores, evaluation = metric.compute(), metric.evaluation()

    official = facts["result"]
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for name in ("pq", "sq", "rq"):
            assert scores[name.upper() + suffix] == pytest.approx(official[group][name], abs=1e-12)
    assert {str(label) for label in evaluation.per_class} == set(official["per_class"])
    for label, quality in evaluation.per_class.items():
        for name in ("pq", "sq", "rq"):
            assert getattr(quality, name) == pytest.approx(official["per_class"][str(label)][name], abs=1e-12)
        counts = official["per_class_counts"][str(label)]
        assert (quality.tp, quality.fp, quality.fn) == (counts["tp"], counts["fp"], counts["fn"])
        assert quality.iou == pytest.approx(counts["iou"], abs=1e-12)
