"""Mosaic: four images on one canvas, turned, moved and scaled together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.transforms.draws import integer, uniform
from datamodules.transforms.geometry import Resize
from datamodules.transforms.plan import Placed
from datamodules.transforms.targets import ImageTargets, moved, resized, solid
from zoo.contract.preprocess import shortest_side_size

_NO_LIMIT = 10**9
_LONGEST = 10  # times `side`: with a longer tile the canvas would be larger than any photograph


@dataclass(frozen=True, kw_only=True)
class Mosaic:
    """Four images instead of one, in the place of zoom-out and crop.

    The other three are any of the training set, as in DEIM; DEIMv2 takes them from the 50 that its worker read last.

    Attributes:
        epochs: the first that has it, and the first after it that has not.
        probability: that an image becomes one.
        side: of a tile, the shorter one, in pixels: half the side of the input.
        rotation: at most so many degrees either way.
        translation: at most this share of the canvas's sides either way.
        scale: the least and the most.

    Source: Intellindust-AI-Lab/DEIMv2@0fff8d4 engine/data/transforms/mosaic.py
    """

    epochs: tuple[int, int]
    probability: float
    side: int
    rotation: float
    translation: float
    scale: tuple[float, float]

    def draw(
        self, row: int, num_images: int, size_of: Callable[[int], tuple[int, int]], seed: int
    ) -> MosaicPlan | None:
        """The plan for an image; None if it stays alone, also where a strip would make a huge canvas.

        Args:
            row: of the image.
            num_images: of the training set.
            size_of: (h, w) of the image in a row.
            seed: of the image in its epoch.
        """
        random = Random(f"{seed}/mosaic")
        if random.random() >= self.probability:
            return None
        rows = (row, *(integer(random, 0, num_images - 1) for _ in range(3)))
        sizes = tuple(size_of(r) for r in rows)
        tiles = tuple(shortest_side_size(*size, self.side, _NO_LIMIT) for size in sizes)
        if max(map(max, tiles)) > _LONGEST * self.side:
            return None
        height, width = (2 * max(tile[axis] for tile in tiles) for axis in (0, 1))
        affine = Affine(
            (height, width),
            uniform(random, -self.rotation, self.rotation),
            round(uniform(random, -self.translation, self.translation) * width),
            round(uniform(random, -self.translation, self.translation) * height),
            uniform(random, *self.scale),
        )
        return MosaicPlan(rows, sizes, tiles, affine)


@dataclass(frozen=True)
class Affine:
    """Turns a canvas of (h, w) `size` about its centre, scales and moves it; what comes from outside is black.

    Attributes:
        angle: degrees, clockwise.
        x, y: pixels to the right and down.
    """

    size: tuple[int, int]
    angle: float
    x: int
    y: int
    scale: float

    def on_image(self, image: Image.Image) -> Image.Image:
        """Nearest pixels, torchvision's default."""
        return image.transform(
            image.size, Image.Transform.AFFINE, self._inverse(), Image.Resampling.NEAREST, fillcolor=(0, 0, 0)
        )

    def on_targets(self, targets: ImageTargets) -> ImageTargets:
        """The upright box around each turned one, clipped; those without area left are dropped."""
        boxes = targets.boxes_xyxy.double().numpy()
        corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]].reshape(-1, 4, 2)
        centre = np.array([self.size[1] / 2, self.size[0] / 2])
        cos, sin = self._turn()
        turned = (
            (corners - centre) @ (self.scale * np.array([[cos, sin], [-sin, cos]]))
            + centre
            + [self.x, self.y]
        )
        hull = np.concatenate([turned.min(axis=1), turned.max(axis=1)], axis=1)
        hull = np.clip(hull, 0, [self.size[1], self.size[0]] * 2).astype(np.float32)
        return solid(ImageTargets(targets.labels, torch.from_numpy(hull.reshape(-1, 4))))

    def _turn(self) -> tuple[float, float]:
        angle = math.radians(self.angle)
        return math.cos(angle), math.sin(angle)

    def _inverse(self) -> tuple[float, float, float, float, float, float]:
        """From a place in the result to that in the canvas, as PIL wants it."""
        (cos, sin), (height, width) = self._turn(), self.size
        a, b, c, d = cos / self.scale, sin / self.scale, -sin / self.scale, cos / self.scale
        x, y = width / 2 + self.x, height / 2 + self.y
        return a, b, width / 2 - a * x - b * y, c, d, height / 2 - c * x - d * y


@dataclass(frozen=True)
class MosaicPlan:
    """Which images stand where.

    Attributes:
        rows: of the four images: top left, top right, bottom left, bottom right.
        sizes: (h, w) of each as it is.
        tiles: (h, w) that each is resized to.
        affine: of the whole canvas.
    """

    rows: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    tiles: tuple[tuple[int, int], ...]
    affine: Affine

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the canvas."""
        return self.affine.size

    def corners(self) -> list[tuple[int, int]]:
        """(top, left) of each tile."""
        height, width = self.size
        return [(0, 0), (0, width // 2), (height // 2, 0), (height // 2, width // 2)]

    def image(self, images: Sequence[Image.Image | Tensor]) -> Image.Image:
        """The canvas with the four images, PIL's or [3, h, w] uint8, after the affine map."""
        canvas = np.zeros((*self.size, 3), dtype=np.uint8)
        for image, size, tile, (top, left) in zip(
            images, self.sizes, self.tiles, self.corners(), strict=True
        ):
            resize = Resize(size, tile)
            if isinstance(image, Tensor):
                pixels = resize.on_tensor(Placed.whole(image)).image.permute(1, 2, 0).numpy()
            else:
                pixels = np.asarray(resize.on_pil(image))
            canvas[top : top + tile[0], left : left + tile[1]] = pixels
        return self.affine.on_image(Image.fromarray(canvas))

    def targets(self, targets: Sequence[ImageTargets]) -> ImageTargets:
        """The objects of the four images, in the canvas after the affine map."""
        labels, boxes = [], []
        for own, size, tile, (top, left) in zip(targets, self.sizes, self.tiles, self.corners(), strict=True):
            labels.append(own.labels)
            boxes.append(moved(resized(own, size, tile).boxes_xyxy, left, top))
        return self.affine.on_targets(ImageTargets(torch.cat(labels), torch.cat(boxes)))
