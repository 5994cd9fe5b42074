"""From annotations to training targets, by the rules of the official code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.boxes import xyxy_to_cxcywh


class ImageTargets(NamedTuple):
    """Training targets of one image."""

    labels: Tensor  # [n] int64, in the id space of the categories that were given
    boxes_xyxy: Tensor  # [n, 4] float32 pixels, inside the image
    masks: Tensor | None = None  # [n, h, w] bool at the image's size; None where nobody asked for masks

    def only(self, kept: Tensor) -> ImageTargets:
        """The objects that `kept` [n] bool marks."""
        masks = None if self.masks is None else self.masks[kept]
        return ImageTargets(self.labels[kept], self.boxes_xyxy[kept], masks)


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
    boxes = torch.as_tensor(boxes_xywh, dtype=torch.float32).reshape(-1, 4)
    labels = torch.as_tensor(categories, dtype=torch.int64)
    single = ~torch.as_tensor(crowd, dtype=torch.bool)
    boxes, labels = boxes[single], labels[single]
    masks = None if masks is None else masks[single]
    xyxy = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
    height, width = size
    limit = torch.tensor([width, height, width, height], dtype=torch.float32)
    xyxy = torch.minimum(xyxy.clamp(min=0), limit)
    return solid(ImageTargets(labels, xyxy, masks))


def solid(targets: ImageTargets) -> ImageTargets:
    """Without the objects whose box has no area: a crop has left nothing of them."""
    return targets.only((targets.boxes_xyxy[:, 2:] > targets.boxes_xyxy[:, :2]).all(dim=1))


def large(targets: ImageTargets, min_size: float) -> ImageTargets:
    """Without the objects of which a side is below `min_size` pixels."""
    sides = targets.boxes_xyxy[:, 2:] - targets.boxes_xyxy[:, :2]
    return targets.only((sides >= min_size).all(dim=1))


def resized(targets: ImageTargets, canvas: tuple[int, int], size: tuple[int, int]) -> ImageTargets:
    """Targets of an image of (h, w) `canvas` resized to `size`: boxes by its ratios, masks by nearest pixel.

    Source: facebookresearch/detr@29901c5 datasets/transforms.py, resize.
    """
    ratio = torch.tensor([size[1] / canvas[1], size[0] / canvas[0]], dtype=torch.float32).repeat(2)
    masks = targets.masks
    if masks is not None and canvas != size:
        # interpolate takes neither bool nor an empty set
        levels = masks.new_zeros(1, *canvas) if len(masks) == 0 else masks
        nearest = F.interpolate(levels[:, None].to(torch.uint8), size, mode="nearest")[:, 0]
        masks = nearest[: len(masks)].bool()
    return ImageTargets(targets.labels, targets.boxes_xyxy * ratio, masks)


def unit_boxes(targets: ImageTargets, size: tuple[int, int]) -> Tensor:
    """[n, 4] cxcywh in [0, 1] of an image of (h, w) `size`."""
    unit = torch.tensor([size[1], size[0]], dtype=torch.float32).repeat(2)
    return xyxy_to_cxcywh(targets.boxes_xyxy) / unit


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
