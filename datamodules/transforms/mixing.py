"""Mixup and copy-blend: images of a group are mixed with each other after their transforms.

Everything is a function of the seed of the group and of the images in it, so it does not matter who loads which.
Pixels are mixed in integers: equal to the last bit on every machine, and within half a level of the official floats.

Source: Intellindust-AI-Lab/DEIMv2@0fff8d4 engine/data/dataloader.py, BatchImageCollateFunction
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from datamodules.transforms.draws import integer, uniform
from datamodules.transforms.mosaic import Mosaic

SHARE = (0.45, 0.55)  # of the image itself in the mixture; constants in the source
_ONE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Mixup:
    """Each image of a group is mixed with the one before it, and has the objects of both.

    Attributes:
        epochs: the first that has it, and the first after it that has not.
        probability: that it happens to a group.
    """

    epochs: tuple[int, int]
    probability: float


@dataclass(frozen=True, kw_only=True)
class CopyBlend:
    """Objects of the images of a group, with some of what surrounds them, are mixed into its images.

    Attributes:
        epochs: the first that has it, and the first after it that has not.
        probability: that it happens to a group that mixup has left alone.
        objects: for each image, at most.
        least_area: pixels of an object in its original image, as the annotation says.
        expand: the least and the most by which the piece is larger than the box at each side, as shares of the box.
    """

    epochs: tuple[int, int]
    probability: float
    objects: int
    least_area: float
    expand: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class DenseO2O:
    """More objects in an image, so that more queries learn: DEIM's Dense O2O (arXiv 2412.04234).

    Attributes:
        group: images that mixup and copy-blend mix with each other: consecutive ones of a step, as many as the
            published batch of one device has. A step's last group may be smaller.
        mosaic, mixup, copy_blend: null for none.
    """

    group: int
    mosaic: Mosaic | None = None
    mixup: Mixup | None = None
    copy_blend: CopyBlend | None = None

    def __post_init__(self) -> None:
        if self.group < 1:
            raise ValueError(f"dense_o2o.group is {self.group} images; it must be at least 1")
        for name in ("mosaic", "mixup", "copy_blend"):
            part = getattr(self, name)
            if part is None:
                continue
            first, end = part.epochs
            if not 0 <= first < end:
                raise ValueError(
                    f"dense_o2o.{name}.epochs is [{first}, {end}]: the first that has it, and the first after it "
                    "that has not"
                )
            if not 0 <= part.probability <= 1:
                raise ValueError(f"dense_o2o.{name}.probability is {part.probability}; it must lie in 0 to 1")

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with each other."""
        return self.mixup is not None or self.copy_blend is not None

    @property
    def begins(self) -> list[int]:
        """The first epoch of each part."""
        return [part.epochs[0] for part in self._parts]

    def count_at(self, epoch: int) -> int:
        """Parts that may happen in an epoch."""
        return sum(is_active(part, epoch) for part in self._parts)

    @property
    def _parts(self) -> list[Mosaic | Mixup | CopyBlend]:
        return [part for part in (self.mosaic, self.mixup, self.copy_blend) if part is not None]

    def mosaic_at(self, epoch: int) -> Mosaic | None:
        """The mosaic of an epoch."""
        return self.mosaic if is_active(self.mosaic, epoch) else None

    def draw(self, epoch: int, seed: int) -> GroupDraw | None:
        """What happens to the group with this seed in an epoch; None if nothing does."""
        random = Random(f"{seed}/mixing")
        share = round(uniform(random, *SHARE) * _ONE)
        for part in (self.mixup, self.copy_blend):
            if part is not None and is_active(part, epoch) and random.random() < part.probability:
                return GroupDraw(seed, share, part if isinstance(part, CopyBlend) else None)
        return None


def is_active(part: Mosaic | Mixup | CopyBlend | None, epoch: int) -> bool:
    """Whether there is such a part, and it may happen in an epoch."""
    return part is not None and part.epochs[0] <= epoch < part.epochs[1]


class Objects(NamedTuple):
    """The objects of an image after its transform."""

    labels: Tensor  # [n] int64
    boxes_xyxy: Tensor  # [n, 4] float32 pixels of the network's input
    areas: Tensor  # [n] float64, the annotations' own, in pixels of the original image


class Paste(NamedTuple):
    """A piece of one image that is mixed into another.

    The object's box is (x, y, width, height) whole pixels in both; the piece reaches beyond it by (left, top,
    right, bottom).
    """

    place: int  # of the image it comes from, in the group
    label: int
    source: tuple[int, int]  # (x, y) of the box where it comes from
    target: tuple[int, int]  # (x, y) of the box where it goes
    size: tuple[int, int]  # (width, height)
    beyond: tuple[int, int, int, int]

    @property
    def box_xyxy(self) -> tuple[int, int, int, int]:
        """Where the object is now."""
        (x, y), (width, height) = self.target, self.size
        return x, y, x + width, y + height

    def window(self, corner: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of the piece where its box lies at `corner` (x, y)."""
        (x, y), (width, height), (left, top, right, bottom) = corner, self.size, self.beyond
        return slice(y - top, y + height + bottom), slice(x - left, x + width + right)


@dataclass(frozen=True)
class GroupDraw:
    """What happens to a group: mixup, or copy-blend if that is given.

    Attributes:
        seed: of the group.
        share: of the image itself in the mixture, in 65536ths.
        copy_blend: None for mixup.
    """

    seed: int
    share: int
    copy_blend: CopyBlend | None

    def pastes(self, place: int, group: Sequence[Objects], size: tuple[int, int]) -> list[Paste]:
        """What copy-blend mixes into the image at `place` of the group; all images have (h, w) `size`."""
        config = self.copy_blend
        assert config is not None
        pool = [
            (image, row)
            for image, objects in enumerate(group)
            for row in (objects.areas >= config.least_area).nonzero()[:, 0].tolist()
        ]
        random = Random(f"{self.seed}/{place}")
        found = []
        for _ in range(min(config.objects, len(pool))):
            image, row = pool.pop(int(random.random() * len(pool)))
            objects = group[image]
            box = objects.boxes_xyxy[row].tolist()
            paste = _draw_paste(random, image, int(objects.labels[row]), box, size, config.expand)
            if paste is not None:
                found.append(paste)
        return found

    def blended(self, image: Tensor, other: Tensor) -> Tensor:
        """[...] uint8: the share of `image`, and for the rest `other`."""
        mixed = image.int() * self.share + other.int() * (_ONE - self.share)
        return ((mixed + _ONE // 2) >> 16).to(torch.uint8)


def _draw_paste(
    random: Random, image: int, label: int, box: Sequence[float], size: tuple[int, int],
    expand: tuple[float, float],
) -> Paste | None:  # fmt: skip
    """None if the box has no whole pixel. Draws as many numbers in either case."""
    height, width = size
    x0, x1 = (min(max(int(v), 0), width) for v in box[0::2])
    y0, y1 = (min(max(int(v), 0), height) for v in box[1::2])
    w, h = x1 - x0, y1 - y0
    x, y = integer(random, 0, width - w), integer(random, 0, height - h)
    more = uniform(random, *expand)
    if w < 1 or h < 1:
        return None
    across, down = int(w * more), int(h * more)
    beyond = (
        min(across, x0, x),
        min(down, y0, y),
        min(across, width - x1, width - x - w),
        min(down, height - y1, height - y - h),
    )
    return Paste(image, label, (x0, y0), (x, y), (w, h), beyond)
