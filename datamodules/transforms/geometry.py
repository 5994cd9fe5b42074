"""The geometric operations: flips, transposition, crops, zoom-out, resize.

Boxes are computed by the float32 arithmetic of the official code; masks [n, h, w] bool move with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from datamodules.transforms.plan import Operation, Placed
from datamodules.transforms.targets import ImageTargets, large, moved, resized, solid


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirrors left to right a canvas of `width` columns.

    Source: facebookresearch/detr@29901c5 datasets/transforms.py, hflip; torchvision's gives the same.
    """

    width: int

    def on_tensor(self, placed: Placed) -> Placed:
        left = placed.size[1] - placed.left - placed.image.shape[2]
        return Placed(placed.image.flip(-1), placed.top, left, placed.size)

    def on_pil(self, image: Image.Image) -> Image.Image:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)

    def on_targets(self, targets: ImageTargets) -> ImageTargets:
        boxes = targets.boxes_xyxy.numpy().copy()
        boxes[:, [0, 2]] = np.float32(self.width) - boxes[:, [2, 0]]
        return ImageTargets(
            targets.labels, torch.from_numpy(boxes), None if targets.masks is None else targets.masks.flip(-1)
        )

    def size_after(self, size: tuple[int, int]) -> tuple[int, int]:
        return size


@dataclass(frozen=True)
class VerticalFlip:
    """Mirrors top to bottom a canvas of `height` rows."""

    height: int

    def on_tensor(self, placed: Placed) -> Placed:
        top = placed.size[0] - placed.top - placed.image.shape[1]
        return Placed(placed.image.flip(-2), top, placed.left, placed.size)

    def on_pil(self, image: Image.Image) -> Image.Image:
        return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)

    def on_targets(self, targets: ImageTargets) -> ImageTargets:
        boxes = targets.boxes_xyxy.numpy().copy()
        boxes[:, [1, 3]] = np.float32(self.height) - boxes[:, [3, 1]]
        return ImageTargets(
            targets.labels, torch.from_numpy(boxes), None if targets.masks is None else targets.masks.flip(-2)
        )

    def size_after(self, size: tuple[int, int]) -> tuple[int, int]:
        return size


@dataclass(frozen=True)
class Transpose:
    """Exchanges rows and columns."""

    def on_tensor(self, placed: Placed) -> Placed:
        turned = placed.image.transpose(-1, -2)
        return Placed(turned, placed.left, placed.top, (placed.size[1], placed.size[0]))

    def on_pil(self, image: Image.Image) -> Image.Image:
        return image.transpose(Image.Transpose.TRANSPOSE)

    def on_targets(self, targets: ImageTargets) -> ImageTargets:
        masks = None if targets.masks is None else targets.masks.transpose(-1, -2)
        return ImageTargets(targets.labels, targets.boxes_xyxy[:, [1, 0, 3, 2]], masks)

    def size_after(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[1], size[0]


@dataclass(frozen=True)
class Resize:
    """Resizes a canvas of (h, w) `canvas` to `size`; does nothing where they are equal."""

    canvas: tuple[int, int]
    size: tuple[int, int]

    def on_tensor(self, placed: Placed) -> Placed:
        """Bilinear with antialias on whole levels, within one level of PIL."""
        return Placed.whole(placed.resized(self.size))

    def on_pil(self, image: Image.Image) -> Image.Image:
        if self.canvas == self.size:
            return image
        return image.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)

    def on_targets(self, targets: ImageTargets) -> ImageTargets:
        """Boxes by the ratios, masks by the nearest pixel."""
        return resized(targets, self.canvas, self.size)

    def size_after(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.size


@dataclass(frozen=True)
class ZoomOut:
    """Puts the image at (top, left) of a larger black canvas of (h, w) `size`."""

    top: int
    left: int
    size: tuple[int, int]

    def on_tensor(self, placed: Placed) -> Placed:
        """Moves the image without copying a pixel."""
        return Placed(placed.image, placed.top + self.top, placed.left + self.left, self.size)

    def on_pil(self, image: Image.Image) -> Image.Image:
        canvas = Image.new("RGB", (self.size[1], self.size[0]))
        canvas.paste(image, (self.left, self.top))
        return canvas

    def on_targets(self, targets: ImageTargets) -> ImageTargets:
        """Moves the boxes, pads the masks with False."""
        masks = targets.masks
        if masks is not None:
            _, h, w = masks.shape
            wide = masks.new_zeros(len(masks), *self.size)
            wide[:, self.top : self.top + h, self.left : self.left + w] = masks
            masks = wide
        return ImageTargets(targets.labels, moved(targets.boxes_xyxy, self.left, self.top), masks)

    def size_after(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.size


@dataclass(frozen=True)
class Crop:
    """Cuts out a window. Boxes are clipped to it; those without area left are dropped.

    Attributes:
        top, left, height, width: of the window, inside the canvas.
        centred: also drop the objects whose centre is not inside the window.

    Source: facebookresearch/detr@29901c5 datasets/transforms.py, crop; with `centred`, torchvision's
    RandomIoUCrop.
    """

    top: int
    left: int
    height: int
    width: int
    centred: bool = False

    def on_tensor(self, placed: Placed) -> Placed:
        """Takes a view of the image inside the window; the black rest of the canvas stays implied."""
        _, h, w = placed.image.shape
        top, left = placed.top - self.top, placed.left - self.left
        rows = slice(max(0, -top), max(0, min(h, self.height - top)))
        columns = slice(max(0, -left), max(0, min(w, self.width - left)))
        return Placed(placed.image[:, rows, columns], max(0, top), max(0, left), (self.height, self.width))

    def on_pil(self, image: Image.Image) -> Image.Image:
        return image.crop((self.left, self.top, self.left + self.width, self.top + self.height))

    def on_targets(self, targets: ImageTargets) -> ImageTargets:
        if self.centred:
            targets = targets.only(self._holds_centre(targets.boxes_xyxy.numpy()))
        boxes = moved(targets.boxes_xyxy, -self.left, -self.top)
        limit = np.array([self.width, self.height] * 2, dtype=np.float32)
        np.clip(boxes.numpy(), 0, limit, out=boxes.numpy())
        masks = targets.masks
        if masks is not None:
            masks = masks[:, self.top : self.top + self.height, self.left : self.left + self.width]
        return solid(ImageTargets(targets.labels, boxes, masks))

    def on_regions(self, targets: ImageTargets) -> ImageTargets:
        """`on_targets` of regions, which have no centre."""
        return replace(self, centred=False).on_targets(targets)

    def _holds_centre(self, boxes: np.ndarray) -> np.ndarray:
        """[n] bool: whether the centre lies inside, by torchvision's RandomIoUCrop with its order of operations."""
        x = np.float32(0.5) * (boxes[:, 0] + boxes[:, 2])
        y = np.float32(0.5) * (boxes[:, 1] + boxes[:, 3])
        across = (self.left < x) & (x < self.left + self.width)
        return across & (self.top < y) & (y < self.top + self.height)

    def size_after(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.height, self.width


@dataclass(frozen=True)
class Sanitize:
    """Drops objects of which a side is below `smallest` pixels."""

    smallest: float

    def on_tensor(self, placed: Placed) -> Placed:
        return placed

    def on_pil(self, image: Image.Image) -> Image.Image:
        return image

    def on_targets(self, targets: ImageTargets) -> ImageTargets:
        return large(targets, self.smallest)

    def on_regions(self, targets: ImageTargets) -> ImageTargets:
        """Regions of any size stay."""
        return targets

    def size_after(self, size: tuple[int, int]) -> tuple[int, int]:
        return size


def shown(operations: Sequence[Operation], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1): where an image of (h, w) `size` lies in the result of the operations."""
    whole = torch.tensor([[0.0, 0.0, size[1], size[0]]])
    corners = ImageTargets(torch.zeros(1, dtype=torch.int64), whole)
    for operation in operations:
        corners = getattr(operation, "on_regions", operation.on_targets)(corners)
    if not len(corners.labels):
        return 0.0, 0.0, 0.0, 0.0
    x0, y0, x1, y1 = corners.boxes_xyxy[0].tolist()
    return x0, y0, x1, y1
