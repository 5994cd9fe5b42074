"""How a large image is cut into overlapping tiles: the same cut in training, evaluation and prediction.

Each tile then goes through the input contract's resize as if it were an image of its own.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

SMALLEST = 16  # pixels of a side
MOST_OVERLAP = 0.75  # beyond it every pixel would be computed more than sixteen times
DEFAULT_OVERLAP = 0.2


class Tile(NamedTuple):
    """A window of an image in its pixels; the whole image is one too."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """The first row below it."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """The first column to the right of it."""
        return self.left + self.width

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.height, self.width


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """A grid of tiles of one size that covers an image.

    Neighbours share at least `overlap` of a side; where the grid does not come out even they share more, so that all
    tiles have the same size and none lies outside. An image that is not larger than a tile is one tile.

    Attributes:
        size: (height, width) of a tile in pixels of the image, before any resize.
        overlap: share of a side, 0 to 0.75. An object not larger than the overlap is whole in some tile.
    """

    size: tuple[int, int]
    overlap: float = DEFAULT_OVERLAP

    def __post_init__(self) -> None:
        sides = self.size if isinstance(self.size, (tuple, list)) else ()
        whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
        if len(sides) != 2 or not whole or not all(SMALLEST <= side <= 65_535 for side in sides):
            raise ValueError(
                f"tiles are {self.size!r:.40}; give height and width in pixels, at least {SMALLEST} each"
            )
        number = isinstance(self.overlap, (int, float)) and not isinstance(self.overlap, bool)
        if not number or not 0 <= self.overlap <= MOST_OVERLAP:
            raise ValueError(
                f"the overlap of tiles is {self.overlap!r:.20}; it is a share of a tile's side, 0 to {MOST_OVERLAP}"
            )

    @property
    def shared(self) -> tuple[int, int]:
        """(rows, columns) that neighbours share at least."""
        height, width = (math.ceil(side * self.overlap) for side in self.size)
        return height, width

    def counts(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the grid on an image of `height` x `width`."""
        down, across = (
            _number(length, side, shared)
            for length, side, shared in zip((height, width), self.size, self.shared, strict=True)
        )
        return down, across

    def cut(self, height: int, width: int) -> list[Tile]:
        """The tiles of an image of `height` x `width`, row by row."""
        down, across = self.counts(height, width)
        return [self._at(n, down, across, height, width) for n in range(down * across)]

    def views(self, height: int, width: int) -> list[Tile]:
        """The whole image, which shows what is larger than a tile, then its tiles; a lone tile is the whole image."""
        tiles = self.cut(height, width)
        return [whole(height, width), *tiles] if len(tiles) > 1 else [whole(height, width)]

    def num_views(self, height: int, width: int) -> int:
        """`len(views(height, width))`."""
        down, across = self.counts(height, width)
        return down * across + 1 if down * across > 1 else 1

    def tile(self, height: int, width: int, number: int) -> Tile:
        """`cut(height, width)[number]`."""
        down, across = self.counts(height, width)
        if not 0 <= number < down * across:
            raise IndexError(f"tile {number} of {down * across}")
        return self._at(number, down, across, height, width)

    def _at(self, number: int, down: int, across: int, height: int, width: int) -> Tile:
        row, column = divmod(number, across)
        h, w = min(self.size[0], height), min(self.size[1], width)
        return Tile(_start(row, down, height - h), _start(column, across, width - w), h, w)

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]}, overlap {self.overlap:g}"


def _number(length: int, side: int, shared: int) -> int:
    return 1 if length <= side else 1 + math.ceil((length - side) / (side - shared))


def _start(number: int, count: int, room: int) -> int:
    """Evenly spread, the first at 0 and the last at `room`."""
    return 0 if count == 1 else number * room // (count - 1)


def whole(height: int, width: int) -> Tile:
    """The whole image as a tile."""
    return Tile(0, 0, height, width)


def parse_tiles(given: int | str | tuple[int, int], overlap: float | None = None) -> Tiles:
    """640, `480x640` or (480, 640) (height, width) to `Tiles`.

    Raises:
        ValueError: not of that form, or out of range.
    """
    text = "x".join(map(str, given)) if isinstance(given, (tuple, list)) else str(given)
    match = re.fullmatch(r"(\d{1,9})(?:[x×](\d{1,9}))?", text)
    if match is None:
        raise ValueError(f"tiles {text!r:.40} is neither N nor HxW in pixels, as in 640 or 480x640")
    size = (int(match[1]), int(match[2] or match[1]))
    return Tiles(size=size, overlap=DEFAULT_OVERLAP if overlap is None else overlap)
