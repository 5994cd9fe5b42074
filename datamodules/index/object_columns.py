"""The objects that are kept, in the order of their file, and then sorted by image."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from datamodules.index.columns import Ints, Outlines, offsets_of
from datamodules.index.growing_columns import BLOCK, Column, Scratch, filled
from datamodules.index.object_block import ObjectBlock
from datamodules.index.object_rules import Box
from datamodules.index.segmentation import Segmentation

_INT = struct.Struct("=q")
_FLOAT = struct.Struct("=d")
_BOX = struct.Struct("=4d")
_OUTLINE_BLOCK = BLOCK // 8  # objects; each has tens of coordinates


class JudgedObject(NamedTuple):
    """An object that is kept."""

    row: int  # of its image
    box_xywh: Box
    source_id: int
    area: float
    crowd: bool
    outline: Segmentation | None


class SortedObjects(NamedTuple):
    """The columns of `Columns` that have an entry for each object."""

    offsets: Ints
    boxes_xywh: NDArray[np.float64]
    source_ids: Ints
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    annotation_ids: Ints
    outlines: Outlines | None


class ObjectColumns:
    """The columns of the objects that are kept; single objects and blocks of them are added at the end."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._rows = scratch.column(np.int64)
        self._boxes = scratch.column(np.float64, 4)
        self._source_ids = scratch.column(np.int64)
        self._areas = scratch.column(np.float64)
        self._crowd = scratch.column(np.bool_)
        self._annotation_ids = scratch.column(np.int64)
        self._polygons = scratch.column(np.int64)  # of each object
        self._points = scratch.column(np.int64)  # coordinates of each polygon
        self._coordinates = scratch.column(np.float64)
        self._letters = scratch.column(np.int64)  # bytes of the RLE of each object
        self._rles = scratch.column(np.uint8)

    def append(self, judged: JudgedObject, annotation_id: int) -> None:
        """One object."""
        self._rows.write(_INT.pack(judged.row))
        self._boxes.write(_BOX.pack(*judged.box_xywh))
        self._source_ids.write(_INT.pack(judged.source_id))
        self._areas.write(_FLOAT.pack(judged.area))
        self._crowd.write(b"\1" if judged.crowd else b"\0")
        self._annotation_ids.write(_INT.pack(annotation_id))
        outline = judged.outline or Segmentation()
        for polygon in outline.polygons:
            self._points.write(_INT.pack(len(polygon)))
            self._coordinates.extend(polygon)
        letters = b"" if outline.rle is None else msgspec.json.encode(outline.rle)
        self._rles.write(letters)
        self._polygons.write(_INT.pack(len(outline.polygons)))
        self._letters.write(_INT.pack(len(letters)))

    def extend(self, rows: Ints, block: ObjectBlock) -> None:
        """A block, every object of which is kept; `rows` are those of their images."""
        self._rows.extend(rows)
        self._boxes.extend(block.boxes_xywh)
        self._source_ids.extend(block.source_ids)
        self._areas.extend(block.areas)
        self._crowd.extend(block.crowd)
        self._annotation_ids.extend(block.annotation_ids)
        self._polygons.extend(block.polygons)
        self._points.extend(block.points)
        self._coordinates.extend(block.coordinates)
        self._letters.extend(np.zeros(len(rows), dtype=np.int64))

    def repeated_annotation_ids(self) -> list[tuple[int, int, int]]:
        """(position, row of the image, annotation id) of every object whose id an earlier one has."""
        ids = self._annotation_ids.array()
        if all(
            (ids[i + 1 : i + BLOCK + 1] > ids[i : i + BLOCK][: len(ids) - 1 - i]).all() for i in _starts(ids)
        ):
            return []
        ordered = filled(self._scratch, np.int64, len(ids))
        ordered[:] = ids
        ordered.sort()
        twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if not len(twice):
            return []
        found, seen = [], set()
        for i in _starts(ids):
            for position in (i + np.flatnonzero(np.isin(ids[i : i + BLOCK], twice))).tolist():
                own = int(ids[position])
                if own in seen:
                    found.append((position, int(self._rows.array()[position]), own))
                seen.add(own)
        return found

    def by_image(self, images: int) -> SortedObjects:
        """The columns with the objects of an image side by side, otherwise in their order."""
        rows = self._rows.array()
        counts = np.zeros(images, dtype=np.int64)
        for i in _starts(rows):
            counts += np.bincount(rows[i : i + BLOCK], minlength=images)
        offsets = offsets_of(counts)
        order = self._order(rows, offsets)
        return SortedObjects(
            offsets,
            self._sorted(self._boxes, order, 4, np.float64),
            self._sorted(self._source_ids, order, 1, np.int64),
            self._sorted(self._areas, order, 1, np.float64),
            self._sorted(self._crowd, order, 1, np.bool_),
            self._sorted(self._annotation_ids, order, 1, np.int64),
            self._outlines(order),
        )

    def _order(self, rows: Ints, offsets: Ints) -> Ints | None:
        """Positions of the objects sorted by image, then in file order; None: they are in this order already."""
        if all(
            (rows[i + 1 : i + BLOCK + 1] >= rows[i : i + BLOCK][: len(rows) - 1 - i]).all()
            for i in _starts(rows)
        ):
            return None
        order = filled(self._scratch, np.int64, len(rows))
        free = offsets[:-1].copy()  # the next place of each image
        for i in _starts(rows):
            own = rows[i : i + BLOCK]
            local = np.argsort(own, kind="stable")
            images, first, number = np.unique(own[local], return_index=True, return_counts=True)
            rank = np.arange(len(own)) - np.repeat(first, number)
            order[np.repeat(free[images], number) + rank] = i + local
            free[images] += number
        return order

    def _sorted(self, column: Column, order: Ints | None, width: int, dtype: type) -> NDArray:
        values = column.array()
        if order is None:
            return values
        out = self._scratch.column(dtype, width)
        for i in _starts(order):
            out.extend(values[order[i : i + BLOCK]])
        return out.array()

    def _outlines(self, order: Ints | None) -> Outlines | None:
        if not len(self._points) and not len(self._rles):
            return None
        found = Outlines(
            self._summed(self._polygons),
            self._summed(self._points),
            self._coordinates.array(),
            self._summed(self._letters),
            self._rles.array(),
        )
        if order is None:
            return found
        out = [self._scratch.column(t) for t in (np.int64, np.int64, np.float64, np.int64, np.uint8)]
        for i in range(0, len(order), _OUTLINE_BLOCK):
            part = found.take(order[i : i + _OUTLINE_BLOCK])
            out[0].extend(np.diff(part.polygon_offsets))
            out[1].extend(np.diff(part.point_offsets))
            out[2].extend(part.coordinates)
            out[3].extend(np.diff(part.rle_offsets))
            out[4].extend(part.rle_bytes)
        return Outlines(
            self._summed(out[0]), self._summed(out[1]), out[2].array(), self._summed(out[3]), out[4].array()
        )

    def _summed(self, counts: Column) -> Ints:
        """Lengths as offsets."""
        values = counts.array()
        offsets = filled(self._scratch, np.int64, len(values) + 1)
        np.cumsum(values, out=offsets[1:])
        return offsets


def _starts(column: NDArray) -> Iterator[int]:
    return iter(range(0, len(column), BLOCK))
