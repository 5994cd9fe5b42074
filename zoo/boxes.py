"""Box formats and overlaps. Boxes are the last dimension; every function broadcasts."""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[..., 4] (centre x, centre y, w, h) to (x0, y0, x1, y1), same unit."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - 0.5 * size, centre + 0.5 * size], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """[..., 4] (x0, y0, x1, y1) to (centre x, centre y, w, h), same unit."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def iou_and_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (arXiv 1902.09630) of xyxy boxes, elementwise over broadcast shapes.

    For all pairs of [N, 4] and [M, 4], pass `a[:, None]` and `b[None]`. The caller vouches that
    corners are ordered; a degenerate pair of empty boxes gives nan, as in the official code.

    Returns:
        (iou, giou), each of the broadcast shape without its last dimension.
    """
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    overlap = (torch.min(a[..., 2:], b[..., 2:]) - torch.max(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    union = area_a + area_b - intersection
    iou = intersection / union
    hull = (torch.max(a[..., 2:], b[..., 2:]) - torch.min(a[..., :2], b[..., :2])).clamp(min=0)
    hull_area = hull[..., 0] * hull[..., 1]
    return iou, iou - (hull_area - union) / hull_area
