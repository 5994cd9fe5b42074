"""Which tiles and whole images an epoch holds: a pure function of (seed, epoch, number of the item)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.balance import Balance
from datamodules.index import AnnotationIndex
from datamodules.tiling.cutting import shown
from datamodules.tiling.rules import TileSampling
from zoo.contract.seeds import derived_generator
from zoo.contract.tiles import Tile, Tiles

WHOLE = -1  # in the place of the number of a tile
_EMPTY, _WHOLE = 1, 2  # what is drawn
MANY = 64  # tiles of an image from which their cost is told


class Item(NamedTuple):
    """An image of an epoch."""

    row: int  # of the index
    number: int  # of the tile, or `WHOLE`


class Counts(NamedTuple):
    """What the cut does to a data set."""

    images: int
    cut: int  # images larger than a tile
    tiles: int
    with_objects: int
    objects: int
    whole: int  # objects that are whole in some tile
    trimmed: int  # objects that are in none, and trimmed in some
    parts_whole: int  # objects of all tiles together, that are whole,
    parts_trimmed: int  # trimmed,
    parts_ignored: int  # and ignored
    fullest: int  # most objects of a tile


class TileItems:
    """The items of every epoch, as many in each.

    First every tile with an object, then tiles without, then whole images; the sampler shuffles them.

    Args:
        index: of the training images.
        tiles: how they are cut.
        sampling: what an epoch holds.
        seed: of what is drawn.
        repeats: of the images. A tile is used as often as the rarest class that it shows asks for, a whole image as
            its own; so that the stated shares hold, there are more of both than without.

    Attributes:
        factors: [len] float64, how often an item is used in an epoch: above 1 only of tiles with objects, for the whole
            images of an epoch are drawn by theirs.
    """

    def __init__(
        self, index: AnnotationIndex, tiles: Tiles, sampling: TileSampling, seed: int,
        repeats: Balance | None = None,
    ) -> None:  # fmt: skip
        self.tiles, self.sampling, self._seed = tiles, sampling, seed
        factors: list[NDArray[np.float64]] = []
        rows: list[NDArray[np.int32]] = []
        numbers: list[NDArray[np.int32]] = []
        full: list[NDArray[np.bool_]] = []
        totals = np.zeros(6, dtype=np.int64)
        fullest = 0
        cut: list[int] = []
        for row in range(len(index)):
            shares = tile_shares(index, row, tiles)  # [t, n]
            objects = shares >= sampling.visible
            if repeats is not None:
                own = repeats.of_classes(_shown_objects(index, row)[1])
                factors.append(np.where(objects, own, 1.0).max(axis=1, initial=1.0))
            rows.append(np.full(len(shares), row, dtype=np.int32))
            numbers.append(np.arange(len(shares), dtype=np.int32))
            full.append(np.asarray(objects.any(axis=1)))
            complete = shares >= _COMPLETE
            anywhere, trimmed = complete.any(axis=0), objects.any(axis=0)
            part = (shares > 0) & ~objects
            totals += (
                shares.shape[1], anywhere.sum(), (trimmed & ~anywhere).sum(), complete.sum(),
                (objects & ~complete).sum(), part.sum(),
            )  # fmt: skip
            fullest = max(fullest, int(objects.sum(axis=1).max(initial=0)))
            if len(shares) > 1:
                cut.append(row)
        all_rows, all_numbers, has = (
            _joined(rows),
            _joined(numbers),
            np.concatenate([*full, np.zeros(0, bool)]),
        )
        self._rows, self._numbers = all_rows[has], all_numbers[has]
        self._empty_rows, self._empty_numbers = all_rows[~has], all_numbers[~has]
        self._cut = np.array(cut, dtype=np.int32)
        of_tiles = (
            np.ones(len(self._rows)) if repeats is None else np.concatenate([*factors, np.ones(0)])[has]
        )
        self._whole = None if repeats is None else replace(repeats, factors=repeats.factors[self._cut])
        used = round(float(of_tiles.sum()))  # tiles with objects, repeats included
        self.counts = Counts._make(
            [len(index), len(cut), len(all_rows), int(has.sum()), *totals.tolist(), fullest]
        )
        wanted = round(sampling.empty * used) if len(self._rows) else len(self._empty_rows)
        self.num_empty = min(len(self._empty_rows), wanted)
        ratio = sampling.whole / (1 - sampling.whole)
        self.num_whole = round(ratio * (used + self.num_empty)) if cut else 0
        self.factors = np.concatenate([of_tiles, np.ones(self.num_empty + self.num_whole)])
        self._drawn: dict[tuple[int, ...], NDArray[np.int64]] = {}  # of the last epoch

    def __len__(self) -> int:
        return len(self._rows) + self.num_empty + self.num_whole

    def item(self, epoch: int, number: int) -> Item:
        """Item `number` of an epoch."""
        if number < len(self._rows):
            return Item(int(self._rows[number]), int(self._numbers[number]))
        number -= len(self._rows)
        if number < self.num_empty:
            place = self._order(len(self._empty_rows), epoch, _EMPTY, 0)[number]
            return Item(int(self._empty_rows[place]), int(self._empty_numbers[place]))
        number -= self.num_empty
        images = len(self._cut) if self._whole is None else self._whole.num_images
        turn, place = divmod(number, images)
        return Item(int(self._cut[self._order(len(self._cut), epoch, _WHOLE, turn)[place]]), WHOLE)

    def _order(self, count: int, epoch: int, what: int, turn: int) -> NDArray[np.int64]:
        key = (epoch, what, turn)
        if key not in self._drawn:
            if any(known[0] != epoch for known in self._drawn):
                self._drawn.clear()
            if what == _WHOLE and self._whole is not None:
                self._drawn[key] = np.array(self._whole.order(self._seed, epoch, turn)) % count
            else:
                generator = derived_generator(self._seed, epoch, -1, what, turn)
                self._drawn[key] = torch.randperm(count, generator=generator).numpy()
        return self._drawn[key]

    def lines(self) -> Iterator[str]:
        """What the cut does to the data set, for the user."""
        c, rules = self.counts, self.sampling
        empty = c.tiles - c.with_objects
        yield (
            f"tiles {self.tiles}: {c.cut} of {c.images} images are larger; an epoch has all {c.with_objects} tiles "
            f"with objects, {self.num_empty} of {empty} without (tile_sampling.empty {rules.empty:g}), and "
            f"{self.num_whole} whole images (tile_sampling.whole {rules.whole:g})"
        )
        parts = max(1, c.parts_whole + c.parts_trimmed + c.parts_ignored)
        nowhere = c.objects - c.whole - c.trimmed
        yield (
            f"objects in the tiles: {c.parts_whole / parts:.1%} whole, {c.parts_trimmed / parts:.1%} trimmed by an "
            f"edge, {c.parts_ignored / parts:.1%} ignored for less than {rules.visible:g} of them shows "
            "(tile_sampling.visible)"
        )
        yield (
            f"of {c.objects} objects {c.whole} are whole in some tile, {c.trimmed} only trimmed, {nowhere} in none: "
            "these are learned from whole images alone"
        )
        if not c.cut:
            yield (
                f"no image is larger than a tile of {self.tiles.size[0]}x{self.tiles.size[1]}, so that nothing is cut; "
                "take smaller tiles, or none"
            )
        elif c.tiles > MANY * c.images:
            yield (
                f"that is {c.tiles / c.images:,.0f} tiles for each image, and each costs as much as an image, in "
                "training and whenever the model predicts; larger tiles cost less"
            )
        if c.objects and c.whole < c.objects / 2:
            yield (
                f"{c.objects - c.whole} of {c.objects} objects are larger than what neighbouring tiles share, and "
                "cut in every tile; take larger tiles, or a larger --tile-overlap"
            )


_COMPLETE = 1 - 1e-9  # share of an object from which it is whole


def tile_shares(index: AnnotationIndex, row: int, tiles: Tiles) -> NDArray[np.float64]:
    """[t, n] what each tile of an image shows of each object, crowds left out, as a share of its area."""
    size, boxes = index.size(row), _shown_objects(index, row)[0]
    down, across = tiles.counts(*size)
    if down * across == 1:
        return np.ones((1, len(boxes)))
    # a share of an area is the product of the shares of both sides, so a row and a column of tiles are enough
    first_row = [tiles.tile(*size, n) for n in range(across)]
    first_column = [tiles.tile(*size, n * across) for n in range(down)]
    wide = [Tile(0, tile.left, size[0], tile.width) for tile in first_row]
    high = [Tile(tile.top, 0, tile.height, size[1]) for tile in first_column]
    of_columns = np.stack([shown(boxes, tile).share for tile in wide])
    of_rows = np.stack([shown(boxes, tile).share for tile in high])
    return (of_rows[:, None] * of_columns[None]).reshape(down * across, len(boxes))


def _shown_objects(index: AnnotationIndex, row: int) -> tuple[NDArray[np.float64], NDArray[np.integer[Any]]]:
    """Boxes [n, 4] xyxy of an image's objects, clipped to it, and their classes [n]; no crowds, and none outside."""
    size, objects = index.size(row), index.objects(row)
    boxes = objects.boxes_xywh[~objects.crowd]
    boxes[:, 2:] += boxes[:, :2]
    np.clip(boxes, 0, [size[1], size[0]] * 2, out=boxes)
    there = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return boxes[there], objects.source_ids[~objects.crowd][there]


def _joined(parts: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate([*parts, np.zeros(0, dtype=np.int32)])
