"""Where a name is written in a segment: inside it, where it is widest, over no other name."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[np.bool_]
_CELLS = 360  # of the longer side of the grid that places are looked for on


class Place(NamedTuple):
    """A free rectangle for a name."""

    left: int
    top: int
    inside: float  # share of it that is in the segment


class Places:
    """The names of one picture, put one after the other.

    Args:
        owners: [h, w] number of the segment that each pixel of the picture belongs to.
    """

    def __init__(self, owners: npt.NDArray[np.int32]) -> None:
        self.size = owners.shape
        self._cell = max(1, round(max(owners.shape) / _CELLS))
        half = self._cell // 2
        self._owners = owners[half :: self._cell, half :: self._cell]
        self._taken: list[tuple[int, int, int, int]] = []
        self._depths: dict[int, npt.NDArray[np.float32]] = {}

    def find(self, number: int, width: int, height: int) -> Place | None:
        """The best place for a name of that size with its centre in segment `number`; None: there is none.

        The most of the rectangle is in the segment; of several such places, the one farthest from its edge.
        """
        picture_height, picture_width = self.size
        mask = self._owners == number
        rows, columns = np.nonzero(mask)
        left = columns * self._cell + self._cell // 2 - width // 2
        top = rows * self._cell + self._cell // 2 - height // 2
        free = (left >= 0) & (top >= 0) & (left + width <= picture_width) & (top + height <= picture_height)
        for x0, y0, x1, y1 in self._taken:
            free &= (left > x1) | (left + width <= x0) | (top > y1) | (top + height <= y0)
        if not free.any():
            return None
        window = max(1, round(height / self._cell)), max(1, round(width / self._cell))
        share = ndimage.uniform_filter(mask.astype(np.float32), window, mode="constant")[mask]
        depth = self._depth(number, mask)[mask]
        best = np.flatnonzero(free)[(share.round(2) + 0.009 * depth)[free].argmax()]
        return Place(int(left[best]), int(top[best]), float(min(share[best], 1.0)))

    def take(self, place: Place, width: int, height: int, gap: int = 2) -> None:
        """Reserves a rectangle and a gap around it, so that no later name is put there."""
        self._taken.append(
            (place.left - gap, place.top - gap, place.left + width + gap, place.top + height + gap)
        )

    def _depth(self, number: int, mask: Mask) -> npt.NDArray[np.float32]:
        """Distance to the edge of the segment, the frame of the picture included, over the largest."""
        if number not in self._depths:
            depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
            self._depths[number] = (depth / max(float(depth.max()), 1.0)).astype(np.float32)
        return self._depths[number]
