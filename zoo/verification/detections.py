"""Detections by the sigmoid rule against official ones: Deformable DETR and RT-DETR differ in their number."""

from __future__ import annotations

import torch

from zoo.contract.batch import Predictions
from zoo.prediction.postprocess import TopKSigmoid
from zoo.verification.cases import Case, Comparison, compare, compare_exact


def compare_top_k(case: Case, top_k: int, sizes: tuple[tuple[int, int], ...]) -> list[Comparison]:
    """Top k of queries x classes: scores, labels exactly, boxes within 1e-3 pixels.

    Args:
        case: with logits, boxes and the official result in both precisions.
        top_k: detections of an image.
        sizes: (h, w) of each original image.
    """
    results = []
    for precision, dtype in (("f32", torch.float32), ("f64", torch.float64)):
        predictions = Predictions(case["logits"].to(dtype), case["boxes"].to(dtype))
        detections = TopKSigmoid(top_k)(predictions, sizes)
        scores = torch.stack([d.scores for d in detections])
        boxes = torch.stack([d.boxes_xyxy for d in detections])
        labels = torch.stack([d.labels for d in detections])
        largest = float(case[f"{precision}/boxes"].abs().max())
        results += [
            compare(f"{precision} scores", scores, case[f"{precision}/scores"], 1e-6),
            compare_exact(f"{precision} labels", labels, case[f"{precision}/labels"]),
            compare(f"{precision} boxes", boxes, case[f"{precision}/boxes"], 1e-3 / largest),
        ]
    return results
