"""The outline of one object as COCO writes it: polygons, or a run-length encoded mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask


@dataclass(frozen=True)
class Segmentation:
    """Polygons or one RLE, exactly as in the annotation file.

    Attributes:
        polygons: each [2k] x0, y0, x1, y1, ... in pixels; empty if the outline is an RLE.
        rle: {"size": [h, w], "counts": run lengths down the columns, as list or as COCO's string}.
    """

    polygons: tuple[NDArray[np.float64], ...] = ()
    rle: Mapping[str, Any] | None = None

    def to_coco(self) -> list[list[float]] | dict[str, Any]:
        """The value of COCO's `segmentation`."""
        return [p.tolist() for p in self.polygons] if self.rle is None else dict(self.rle)

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """The pixels inside, by the rule of pycocotools: [height, width].

        Raises:
            ValueError: if an RLE is that of another image size.
        """
        if self.rle is None:
            parts = coco_mask.frPyObjects([p.tolist() for p in self.polygons], height, width)
            return np.asarray(coco_mask.decode(parts).any(axis=2))
        size = [int(side) for side in self.rle["size"]]
        if size != [height, width]:
            raise ValueError(
                f"an RLE of {size[0]}x{size[1]} (height x width) cannot be decoded at {height}x{width}; "
                "decode it at its own size and resize the mask"
            )
        counts = self.rle["counts"]
        runs = counts if isinstance(counts, list) else run_lengths(counts).tolist()
        return np.asarray(coco_mask.decode(coco_mask.frPyObjects({"size": size, "counts": runs}, *size)) > 0)


def run_lengths(text: str) -> NDArray[np.int64]:
    """The counts in COCO's compressed string: 5 bits a character, low bits first, differences from the third on.

    Raises:
        ValueError: if the string has other characters or stops within a number.
    """
    values = np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64) - 48
    if values.size == 0:
        return values
    if values.min() < 0 or values.max() > 63 or values[-1] & 32:
        raise ValueError(f"{text[:20]!r} is no RLE string of COCO's")
    last = np.flatnonzero(values & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    length = last - first + 1
    if length.max() > 12:
        raise ValueError(f"{text[:20]!r} has a run longer than any image")
    place = np.arange(values.size) - np.repeat(first, length)
    numbers = np.add.reduceat((values & 31) << (5 * place), first)
    numbers -= np.where(values[last] & 16, np.int64(1) << (5 * length), 0)
    # each run from the fourth on is written as its difference from the one two before
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
