"""From annotations to training targets, by the rules of the official code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.boxes import xyxy_to_cxcywh


class ImageTargets(NamedTuple):
    """Training targets of one image."""

    labels: Tensor  # [n] int64, in the id space of the categories that were given
    boxes_xyxy: Tensor  # [n, 4] float32 pixels, inside the image


def training_targets(
    boxes_xywh: Tensor | Sequence[Sequence[float]],
    categories: Tensor | Sequence[int],
    crowd: Tensor | Sequence[bool],
    size: tuple[int, int],
) -> ImageTargets:
    """Drops crowds, clips boxes to the image of (h, w) `size`, drops what has no area left.

    Source: lyuwenyu/RT-DETR@068dfde rtdetr_pytorch/src/data/coco/coco_dataset.py; the sum of corner
    and size is taken in float32, as there.
    """
    boxes = torch.as_tensor(boxes_xywh, dtype=torch.float32).reshape(-1, 4)
    labels = torch.as_tensor(categories, dtype=torch.int64)
    single = ~torch.as_tensor(crowd, dtype=torch.bool)
    boxes, labels = boxes[single], labels[single]
    xyxy = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
    height, width = size
    limit = torch.tensor([width, height, width, height], dtype=torch.float32)
    xyxy = torch.minimum(xyxy.clamp(min=0), limit)
    solid = (xyxy[:, 2:] > xyxy[:, :2]).all(dim=1)
    return ImageTargets(labels[solid], xyxy[solid])


def resized_targets(
    targets: ImageTargets, canvas: tuple[int, int], resized: tuple[int, int], min_size: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The end of every training transform, after the geometry and beside the resize of the image.

    Args:
        targets: boxes in pixels of the image before its resize.
        canvas: (h, w) before the resize.
        resized: (h, w) after it.
        min_size: boxes with a side below so many pixels after the resize are dropped.

    Returns:
        labels [m] and boxes [m, 4] cxcywh in [0, 1].
    """
    scale = torch.tensor([resized[1] / canvas[1], resized[0] / canvas[0]], dtype=torch.float32).repeat(2)
    pixels = targets.boxes_xyxy * scale
    large = ((pixels[:, 2:] - pixels[:, :2]) >= min_size).all(dim=1)
    unit = torch.tensor([resized[1], resized[0]], dtype=torch.float32).repeat(2)
    return targets.labels[large], xyxy_to_cxcywh(pixels[large]) / unit
