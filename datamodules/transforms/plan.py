"""What a training transform does to one image, once everything random is drawn: a list of operations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from datamodules.transforms.targets import ImageTargets
from zoo.contract.preprocess import image_to_tensor, resize_pixels


class Placed(NamedTuple):
    """A tensor image on a black canvas that is not allocated yet: zoom-out costs nothing, a crop is a view."""

    image: Tensor  # [3, h, w] uint8, on the decoder's HWC memory where it can be
    top: int  # of the image on the canvas
    left: int
    size: tuple[int, int]  # (H, W) of the canvas

    @classmethod
    def whole(cls, image: Tensor) -> Placed:
        """An image without a border."""
        return cls(image, 0, 0, (image.shape[1], image.shape[2]))

    @property
    def is_whole(self) -> bool:
        """Whether the image is all of its canvas."""
        return (self.image.shape[1], self.image.shape[2]) == self.size

    def on_canvas(self) -> Tensor:
        """[3, H, W] uint8: the canvas with the image on it."""
        if self.is_whole:
            return self.image
        channels, h, w = self.image.shape
        canvas = _black(channels, *self.size)
        canvas[:, self.top : self.top + h, self.left : self.left + w] = self.image
        return canvas

    def resized(self, size: tuple[int, int]) -> Tensor:
        """[3, *size] uint8: to the last bit what resizing `on_canvas()` gives, without computing most of the canvas.

        The resize goes over the rows first, rounds to whole levels, then over the columns: rows
        without a pixel of the image are black after the first pass and are not computed in it.
        """
        if self.is_whole:
            return resize_pixels(self.image, size)
        height, width = self.size
        channels, h, w = self.image.shape
        rows = _black(channels, h, width)
        rows[:, :, self.left : self.left + w] = self.image
        rows = resize_pixels(rows, (h, size[1]))
        columns = _black(channels, height, size[1])
        columns[:, self.top : self.top + h] = rows
        return resize_pixels(columns, size)


def _black(channels: int, height: int, width: int) -> Tensor:
    return torch.zeros(height, width, channels, dtype=torch.uint8).permute(2, 0, 1)


class Operation(Protocol):
    """One operation with all its random numbers drawn: what it does to a tensor, to a PIL image and to targets."""

    def on_tensor(self, placed: Placed) -> Placed:
        """The image of backend `fast`."""
        ...

    def on_pil(self, image: Image.Image) -> Image.Image:
        """The image of backend `pil`, by PIL's operations, as in the official code."""
        ...

    def on_targets(self, targets: ImageTargets) -> ImageTargets:
        """Labels, boxes and masks."""
        ...

    def size_after(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the result for an image of (h, w) `size`."""
        ...


def size_after(operations: Iterable[Operation], size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the result of all operations for an image of (h, w) `size`."""
    for operation in operations:
        size = operation.size_after(size)
    return size


@dataclass(frozen=True)
class Plan:
    """The operations for one image, the (h, w) of the result, and the distortion that is left to the device."""

    operations: tuple[Operation, ...]
    size: tuple[int, int]
    photometric: Tensor | None = None  # [12], see `zoo.contract.photometric.Distortion.vector`

    def pixels(self, image: Tensor | Image.Image) -> Tensor:
        """The image after all operations: [3, *size] uint8."""
        if isinstance(image, Tensor):
            placed = Placed.whole(image)
            for operation in self.operations:
                placed = operation.on_tensor(placed)
            return placed.on_canvas()
        for operation in self.operations:
            image = operation.on_pil(image)
        return image_to_tensor(image)

    def targets(self, targets: ImageTargets) -> ImageTargets:
        """The targets after all operations, boxes in pixels of the result."""
        for operation in self.operations:
            targets = operation.on_targets(targets)
        return targets

    def regions(self, targets: ImageTargets) -> ImageTargets:
        """`targets` for regions of an image that are no objects: clipped by a crop, and dropped by nothing."""
        for operation in self.operations:
            targets = getattr(operation, "on_regions", operation.on_targets)(targets)
        return targets
