"""From annotations to training targets, by the rules of the official code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


class ImageTargets(NamedTuple):
    """Training targets of one image.

    The arithmetic below is numpy's, which takes a tenth of torch's time on a handful of boxes.
    """

    labels: Tensor  # [n] int64, in the id space of the categories that were given
    boxes_xyxy: Tensor  # [n, 4] float32 pixels, inside the image
    masks: Tensor | None = None  # [n, h, w] bool at the image's size; None where masks were not asked for

    def only(self, kept: np.ndarray) -> ImageTargets:
        """The objects that `kept` [n] bool marks."""
        if kept.all():
            return self
        rows = torch.from_numpy(kept.nonzero()[0])
        masks = None if self.masks is None else self.masks[rows]
        return ImageTargets(self.labels[rows], self.boxes_xyxy[rows], masks)


def training_targets(
    boxes_xywh: Tensor | Sequence[Sequence[float]],
    categories: Tensor | Sequence[int],
    crowd: Tensor | Sequence[bool],
    size: tuple[int, int],
    masks: Tensor | None = None,
) -> ImageTargets:
    """Drops crowds, clips boxes to the image of (h, w) `size`, drops what has no area left.

    Masks [n, h, w] bool, if given, lose the same objects and are otherwise left alone.

    Source: lyuwenyu/RT-DETR@068dfde rtdetr_pytorch/src/data/coco/coco_dataset.py; the sum of corner
    and size is taken in float32, as there.
    """
    given = boxes_xywh.numpy() if isinstance(boxes_xywh, Tensor) else boxes_xywh
    boxes = np.array(given, dtype=np.float32).reshape(-1, 4)  # a copy
    boxes[:, 2:] += boxes[:, :2]
    np.clip(boxes, 0, _corners(size[1], size[0]), out=boxes)
    labels = torch.as_tensor(categories, dtype=torch.int64)
    single = ~np.asarray(crowd, dtype=bool).reshape(-1)
    return solid(ImageTargets(labels, torch.from_numpy(boxes), masks).only(single))


def solid(targets: ImageTargets) -> ImageTargets:
    """Without the objects whose box has no area: a crop has left nothing of them."""
    boxes = targets.boxes_xyxy.numpy()
    return targets.only((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))


def large(targets: ImageTargets, min_size: float) -> ImageTargets:
    """Without the objects of which a side is below `min_size` pixels."""
    boxes = targets.boxes_xyxy.numpy()
    wide, high = boxes[:, 2] - boxes[:, 0] >= min_size, boxes[:, 3] - boxes[:, 1] >= min_size
    return targets.only(wide & high)


def moved(boxes_xyxy: Tensor, x: float, y: float) -> Tensor:
    """[n, 4] boxes, so many pixels to the right and down."""
    return torch.from_numpy(boxes_xyxy.numpy() + _corners(x, y))


def resized(targets: ImageTargets, canvas: tuple[int, int], size: tuple[int, int]) -> ImageTargets:
    """Targets of an image of (h, w) `canvas` resized to `size`: boxes by its ratios, masks by nearest pixel.

    Source: facebookresearch/detr@29901c5 datasets/transforms.py, resize.
    """
    boxes = targets.boxes_xyxy.numpy() * _corners(size[1] / canvas[1], size[0] / canvas[0])
    masks = targets.masks
    if masks is not None and canvas != size:
        # interpolate takes neither bool nor an empty set
        levels = masks.new_zeros(1, *canvas) if len(masks) == 0 else masks
        nearest = F.interpolate(levels[:, None].to(torch.uint8), size, mode="nearest")[:, 0]
        masks = nearest[: len(masks)].bool()
    return ImageTargets(targets.labels, torch.from_numpy(boxes), masks)


def unit_boxes(targets: ImageTargets, size: tuple[int, int]) -> Tensor:
    """[n, 4] cxcywh in [0, 1] of an image of (h, w) `size`."""
    boxes = targets.boxes_xyxy.numpy()
    low, high = boxes[:, :2], boxes[:, 2:]
    centred = np.concatenate([(low + high) / 2, high - low], axis=1)
    return torch.from_numpy(centred / _corners(size[1], size[0]))


def _corners(x: float, y: float) -> np.ndarray:
    return np.array([x, y, x, y], dtype=np.float32)


def resized_targets(
    targets: ImageTargets, canvas: tuple[int, int], size: tuple[int, int], min_size: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`resized`, `large` and `unit_boxes` in one: what an image without a random transform needs.

    Args:
        targets: boxes in pixels of the image before its resize.
        canvas: (h, w) before the resize.
        size: (h, w) after it.
        min_size: boxes with a side below so many pixels after the resize are dropped.

    Returns:
        labels [m] and boxes [m, 4] cxcywh in [0, 1].
    """
    kept = large(resized(targets, canvas, size), min_size)
    return kept.labels, unit_boxes(kept, size)
