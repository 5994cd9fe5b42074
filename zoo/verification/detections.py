"""What a family makes of raw predictions, against the official detections."""

from __future__ import annotations

import torch

from zoo.contract.batch import Predictions
from zoo.prediction.masks import Size
from zoo.prediction.postprocess import Postprocess
from zoo.verification.cases import Case, Comparison, compare, compare_exact


def compare_detections(case: Case, rule: Postprocess, sizes: list[Size], among: str = "") -> list[Comparison]:
    """Scores within 1e-6, labels exactly, boxes within 1e-3 pixels.

    Ours come best first; DETR's official ones come in the order of the queries, so they are sorted.

    Args:
        case: with logits, boxes and the official detections in both precisions.
        rule: the family's.
        sizes: (h, w) of each original image.
        among: which of several official detections, `top100/`.
    """
    results = []
    for precision, dtype in (("f32", torch.float32), ("f64", torch.float64)):
        detections = rule(Predictions(case["logits"].to(dtype), case["boxes"].to(dtype)), sizes)
        ours = [torch.stack(parts) for parts in zip(*(d[:3] for d in detections), strict=True)]
        scores, order = case[f"{precision}/{among}scores"].sort(dim=1, descending=True, stable=True)
        labels = case[f"{precision}/{among}labels"].gather(1, order)
        boxes = case[f"{precision}/{among}boxes"].gather(1, order[..., None].expand(-1, -1, 4))
        results += [
            compare(f"{precision} {among}scores", ours[0], scores, 1e-6),
            compare_exact(f"{precision} {among}labels", ours[1], labels),
            compare(f"{precision} {among}boxes", ours[2], boxes, 1e-3 / float(boxes.abs().max())),
        ]
    return results
