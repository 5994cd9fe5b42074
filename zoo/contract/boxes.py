"""Box formats and overlaps. Boxes are the last dimension; every function broadcasts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[..., 4] (centre x, centre y, w, h) to (x0, y0, x1, y1), same unit."""
    centre, half = boxes[..., :2], 0.5 * boxes[..., 2:]
    return torch.cat([centre - half, centre + half], dim=-1)


def cxcywh_to_ordered_xyxy(boxes: Tensor) -> Tensor:
    """As `cxcywh_to_xyxy`; a size below 0, which sides that have crossed give, counts as 0."""
    centre, size = boxes.split(2, dim=-1)
    half = 0.5 * size.clamp(min=0)
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """[..., 4] (x0, y0, x1, y1) to (centre x, centre y, w, h), same unit."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of x in [0, 1], clamped `eps` away from both ends."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def iou_and_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (arXiv 1902.09630) of xyxy boxes, elementwise over broadcast shapes.

    For all pairs of [N, 4] and [M, 4], pass `a[:, None]` and `b[None]`. Corners must be ordered; two
    boxes whose common hull is empty give nan, as in the official code.

    Returns:
        (iou, giou), each of the broadcast shape without its last dimension.
    """
    return iou_and_giou_of_corners(a.unbind(-1), b.unbind(-1))


def iou_and_giou_of_corners(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """`iou_and_giou` of boxes given as four tensors x0, y0, x1, y1: no strided reads in large costs."""
    ax0, ay0, ax1, ay1 = a
    bx0, by0, bx1, by1 = b
    width = torch.minimum(ax1, bx1).sub_(torch.maximum(ax0, bx0)).clamp_(min=0)
    height = torch.minimum(ay1, by1).sub_(torch.maximum(ay0, by0)).clamp_(min=0)
    intersection = width * height
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - intersection
    iou = intersection / union
    hull_width = torch.maximum(ax1, bx1) - torch.minimum(ax0, bx0)
    hull = hull_width * (torch.maximum(ay1, by1) - torch.minimum(ay0, by0))
    return iou, iou - (hull - union) / hull
