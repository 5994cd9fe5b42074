"""What training images are made of: images of an index, or tiles of them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.images.decoding import decode, decode_bands, decode_tensor
from datamodules.index import AnnotationIndex
from datamodules.loading.truth import Truth
from datamodules.tiling.cutting import CutTargets, cut_targets
from datamodules.tiling.items import WHOLE, TileItems
from datamodules.transforms.targets import ImageTargets, training_targets
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.contract.tiles import Tile, whole

Pixels = Image.Image | Tensor


def read_image(index: AnnotationIndex, row: int, contract: InputContract) -> Pixels:
    """The decoded image in the frame of its boxes: a [C, h, w] uint8 tensor, or PIL's RGB for backend `pil`."""
    place = index.images, index.files[row], index.image_id(row), index.size(row)
    if not contract.is_rgb:
        return decode_bands(*place, contract)
    return decode(*place) if contract.backend == "pil" else decode_tensor(*place)


class LastImage:
    """Images of an index, of which the last is kept decoded: one, however many are read."""

    def __init__(self, index: AnnotationIndex) -> None:
        self._index = index
        self._last: tuple[int, Pixels] | None = None

    def read(self, row: int, contract: InputContract) -> Pixels:
        """`read_image`; an image is decoded once for readings that follow each other."""
        if self._last is None or self._last[0] != row:
            self._last = None  # the old one goes before the new one comes
            self._last = (row, read_image(self._index, row, contract))
        return self._last[1]


def cropped(image: Pixels, tile: Tile) -> Pixels:
    """The pixels of a tile, copied: a view would keep all of a large image in memory."""
    if isinstance(image, Image.Image):
        return image.crop((tile.left, tile.top, tile.right, tile.bottom))
    return (
        image.permute(1, 2, 0)[tile.top : tile.bottom, tile.left : tile.right].contiguous().permute(2, 0, 1)
    )


class Pictures:
    """The images of an index, the same in every epoch."""

    def __init__(self, index: AnnotationIndex, label_map: LabelMap, truth: Truth) -> None:
        self.index = index
        self._label_map = label_map
        self._truth = truth

    def __len__(self) -> int:
        return len(self.index)

    def row(self, epoch: int, number: int) -> int:
        """The row of the index."""
        return number

    def size(self, epoch: int, number: int) -> tuple[int, int]:
        """(h, w) before any transform."""
        return self.index.size(number)

    def targets(self, epoch: int, number: int) -> ImageTargets:
        """The objects before any transform."""
        return self._truth.targets(self.index, number, self._label_map)

    def areas(self, epoch: int, number: int) -> Tensor:
        """[n] of `targets`, as the annotations have them."""
        every = self.index.objects(number)
        numbers = range(len(every.crowd))
        kept = training_targets(
            torch.from_numpy(every.boxes_xywh), numbers, every.crowd.tolist(), self.index.size(number)
        )
        return torch.from_numpy(every.areas)[kept.labels].double()

    def ignored(self, epoch: int, number: int) -> Tensor | None:
        """[r, 4] xyxy of parts that are neither object nor background; None where there are none by rule."""
        return None

    def image(self, epoch: int, number: int, contract: InputContract) -> Pixels:
        """The pixels."""
        return read_image(self.index, number, contract)


class TilePictures(Pictures):
    """Tiles and whole images by `TileItems`; what is drawn of an item depends on (seed, epoch, number) alone."""

    def __init__(self, index: AnnotationIndex, label_map: LabelMap, truth: Truth, items: TileItems) -> None:
        super().__init__(index, label_map, truth)
        self.items = items
        self._decoded = LastImage(index)

    def __len__(self) -> int:
        return len(self.items)

    def row(self, epoch: int, number: int) -> int:
        """The row of the index."""
        return self.items.item(epoch, number).row

    def tile(self, epoch: int, number: int) -> Tile:
        """What of the image is shown."""
        row, tile = self.items.item(epoch, number)
        size = self.index.size(row)
        return whole(*size) if tile == WHOLE else self.items.tiles.tile(*size, tile)

    def size(self, epoch: int, number: int) -> tuple[int, int]:
        """(h, w) of the tile."""
        return self.tile(epoch, number).size

    def targets(self, epoch: int, number: int) -> ImageTargets:
        """The objects that the tile has, in its pixels."""
        return self._cut(epoch, number).targets

    def areas(self, epoch: int, number: int) -> Tensor:
        """[n] of `targets`: of what shows."""
        cut = self._cut(epoch, number)
        return super().areas(epoch, self.row(epoch, number))[cut.numbers] * cut.share

    def ignored(self, epoch: int, number: int) -> Tensor:
        """Parts of objects of which little shows, and crowds."""
        tile, row = self.tile(epoch, number), self.row(epoch, number)
        objects, size = self.index.objects(row), self.index.size(row)
        crowds = training_targets(
            torch.from_numpy(objects.boxes_xywh),
            [0] * len(objects.crowd),
            (~objects.crowd).tolist(),
            size,
        )
        shown = cut_targets(crowds, tile, np.nextafter(0, 1)).targets.boxes_xyxy
        return torch.cat([self._cut(epoch, number).ignored_xyxy, shown])

    def image(self, epoch: int, number: int, contract: InputContract) -> Pixels:
        """The pixels; an image is decoded once for items that follow each other."""
        row, tile = self.row(epoch, number), self.tile(epoch, number)
        image = self._decoded.read(row, contract)
        return image if tile.size == self.index.size(row) else cropped(image, tile)

    def _cut(self, epoch: int, number: int) -> CutTargets:
        row = self.row(epoch, number)
        targets = self._truth.targets(self.index, row, self._label_map)
        return cut_targets(targets, self.tile(epoch, number), self.items.sampling.visible)
