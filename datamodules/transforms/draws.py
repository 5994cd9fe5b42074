"""The presets' random numbers: (size, boxes, seed) to operations. No pixel is read here.

Each function depends on its arguments alone and is cheap, so that a sampler may call it for every image
of an epoch before any is decoded. All numbers come from `random.Random.random`, whose stream Python
promises to keep; those of `shapes` come from torch, as they always have.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from datamodules.transforms.color import Distort, Invert, Jitter, PermuteChannels
from datamodules.transforms.geometry import (
    Crop,
    HorizontalFlip,
    Resize,
    Sanitize,
    Transpose,
    VerticalFlip,
    ZoomOut,
)
from datamodules.transforms.iou_crop import draw_iou_crop
from datamodules.transforms.targets import moved
from zoo.contract.photometric import Distortion
from zoo.contract.pixels import MOST_PIXELS
from zoo.contract.preprocess import shortest_side_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datamodules.transforms.plan import Operation

# Source: facebookresearch/detr@29901c5 datasets/coco.py, make_coco_transforms
DETR_SIDES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
DETR_SIDES_BEFORE_CROP = (400, 500, 600)
DETR_CROP = (384, 600)  # sides, both inclusive
_NO_LIMIT = 10**9
_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
_T = TypeVar("_T")


def integer(random: Random, low: int, high: int) -> int:
    """Uniform in low..high, both inclusive."""
    return low + int(random.random() * (high - low + 1))


def uniform(random: Random, low: float, high: float) -> float:
    """Uniform in [low, high)."""
    return low + (high - low) * random.random()


def one_of(random: Random, values: Sequence[_T]) -> _T:
    """One of the values, each with the same probability."""
    return values[int(random.random() * len(values))]


def draw_detr(random: Random, size: tuple[int, int], longest: int) -> list[Operation]:
    """Flip, and one of two: a resize; or a resize to a small size, a crop, and that resize.

    Source: facebookresearch/detr@29901c5 datasets/coco.py, make_coco_transforms, whose longest side is 1333.
    """
    operations: list[Operation] = [HorizontalFlip(size[1])] if random.random() < 0.5 else []
    if random.random() >= 0.5:
        before = shortest_side_size(*size, one_of(random, DETR_SIDES_BEFORE_CROP), _NO_LIMIT)
        crop = draw_size_crop(random, before, *DETR_CROP)
        # a strip of more than 500 to 1 would become 0.5 GB and more, to cut one piece from
        if before[0] * before[1] <= MOST_PIXELS:
            operations += [Resize(size, before), crop]
            size = (crop.height, crop.width)
    operations.append(Resize(size, shortest_side_size(*size, one_of(random, DETR_SIDES), longest)))
    return operations


def draw_size_crop(random: Random, size: tuple[int, int], smallest: int, largest: int) -> Crop:
    """DETR's crop: width, then height, uniform between two bounds (or the image's), at a uniform place."""
    sides = {}
    for name, available in (("width", size[1]), ("height", size[0])):
        limit = min(available, largest)
        sides[name] = integer(random, min(smallest, limit), limit)
    top = integer(random, 0, size[0] - sides["height"])
    left = integer(random, 0, size[1] - sides["width"])
    return Crop(top, left, sides["height"], sides["width"])


def draw_rt_detr(
    random: Random, size: tuple[int, int], boxes_xyxy: Tensor, smallest: float
) -> list[Operation]:
    """Distortion, zoom-out, IoU crop, flip; objects with a side below `smallest` are dropped before the flip.

    Source: lyuwenyu/RT-DETR@068dfde rtdetr_pytorch/configs/rtdetr/include/dataloader.yml; the numbers
    are torchvision 0.15.2's defaults, written out because defaults change.
    """
    operations: list[Operation] = [Distort(draw_distortion(random))]
    if random.random() < 0.5:
        zoom = draw_zoom_out(random, size)
        operations.append(zoom)
        size = zoom.size
        boxes_xyxy = moved(boxes_xyxy, zoom.left, zoom.top)
    if random.random() < 0.8:
        crop = draw_iou_crop(random, size, boxes_xyxy)
        if crop is not None:
            operations.append(crop)
            size = (crop.height, crop.width)
    return operations + draw_rt_detr_clean(random, size, smallest)


def draw_rt_detr_mosaic(random: Random, size: tuple[int, int], smallest: float) -> list[Operation]:
    """What is left of `draw_rt_detr` for a mosaic: distortion and flip.

    Source: Intellindust-AI-Lab/DEIMv2@0fff8d4 engine/data/transforms/container.py, policy stop_epoch
    """
    return [Distort(draw_distortion(random)), *draw_rt_detr_clean(random, size, smallest)]


def draw_rt_detr_clean(random: Random, size: tuple[int, int], smallest: float) -> list[Operation]:
    """What is left of `draw_rt_detr` in the last epochs of RT-DETRv2: flip.

    Source: lyuwenyu/RT-DETR@068dfde rtdetrv2_pytorch/configs/rtdetrv2/include/dataloader.yml, policy stop_epoch
    """
    return [Sanitize(smallest), *draw_flip(random, size)]


def draw_distortion(random: Random) -> Distortion:
    """RandomPhotometricDistort: each part with probability one half."""

    def factor(low: float, high: float, neutral: float) -> float:
        return uniform(random, low, high) if random.random() < 0.5 else neutral

    return Distortion(
        brightness=factor(0.875, 1.125, 1.0),
        contrast=factor(0.5, 1.5, 1.0),
        saturation=factor(0.5, 1.5, 1.0),
        hue=factor(-0.05, 0.05, 0.0),
        contrast_first=random.random() < 0.5,
        channels=one_of(random, _ORDERS) if random.random() < 0.5 else (0, 1, 2),
    )


def draw_zoom_out(random: Random, size: tuple[int, int]) -> ZoomOut:
    """RandomZoomOut: a canvas of 1 to 4 times the sides, the image anywhere on it."""
    ratio = uniform(random, 1.0, 4.0)
    height, width = int(size[0] * ratio), int(size[1] * ratio)
    left = int((width - size[1]) * random.random())
    top = int((height - size[0]) * random.random())
    return ZoomOut(top, left, (height, width))


def draw_flip(random: Random, size: tuple[int, int]) -> list[Operation]:
    """Left to right with probability one half."""
    return [HorizontalFlip(size[1])] if random.random() < 0.5 else []


def draw_finetune(random: Random, size: tuple[int, int]) -> list[Operation]:
    """Flip; a crop of the same aspect with .6 to 1 of each side; brightness, contrast, saturation."""
    operations = draw_flip(random, size)
    scale = uniform(random, 0.6, 1.0)
    h, w = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = integer(random, 0, size[0] - h), integer(random, 0, size[1] - w)
    operations += [Crop(top, left, h, w, centred=True), Sanitize(1.0)]
    brightness, contrast, saturation = (uniform(random, 0.85, 1.15) for _ in range(3))
    operations.append(Jitter(one_of(random, _ORDERS), brightness, contrast, saturation))
    return operations


def draw_shapes(seed: int, size: tuple[int, int]) -> list[Operation]:
    """Flips, transposition, channels in any order, negative: the demo's shapes stay what they are under all these."""
    generator = torch.Generator().manual_seed(seed)

    def half() -> bool:
        return bool(torch.rand(1, generator=generator) < 0.5)

    operations: list[Operation] = [HorizontalFlip(size[1])] if half() else []
    if half():
        operations.append(VerticalFlip(size[0]))
    if half():
        operations.append(Transpose())
    first, second, third = torch.randperm(3, generator=generator).tolist()
    operations.append(PermuteChannels((first, second, third)))
    if half():
        operations.append(Invert())
    return operations
