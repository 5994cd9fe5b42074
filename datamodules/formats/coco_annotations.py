"""The annotations of a COCO json as columns, not yet judged: 25 million of them are too many for objects.

An annotation with the usual types becomes one entry of each column. Any other (a missing box, a number in
quotes, an RLE, NaN) is put aside as it is, in a file, and handed to the index builder one by one.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from itertools import chain
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from datamodules.index.builder import IndexBuilder
from datamodules.index.growing_columns import BLOCK, Scratch
from datamodules.index.object_block import ObjectBlock
from datamodules.index.object_rules import Int64, is_id
from datamodules.reading.json_stream import Piece, converted


class Annotation(msgspec.Struct):
    """One annotation with any values."""

    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    area: Any = None
    iscrowd: Any = 0
    segmentation: Any = None


class _Usual(msgspec.Struct, gc=False):
    """One annotation with the usual types."""

    image_id: Int64
    category_id: Int64
    bbox: tuple[float, float, float, float]
    id: Int64 | None = None
    area: float | None = None
    iscrowd: int | bool | None = 0
    segmentation: list[list[float]] | None = None


_DEEPEST = 16  # lists in lists; polygons have two
USUAL = msgspec.json.Decoder(list[_Usual])
_ANY = msgspec.json.Decoder(list[Annotation])


def _kept(annotation: Annotation) -> bytes:
    """An odd annotation as bytes, to be handled later; without lists nested deeper than any segmentation's."""
    values = (None if _depth(value) > _DEEPEST else value for value in msgspec.structs.astuple(annotation))
    return pickle.dumps(tuple(values), protocol=4)


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level and depth <= _DEEPEST:
        below = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (list, dict))]
        level = [v for own in below for v in own]
        depth += 1
    return depth


class Annotations:
    """All annotations of one file, in its order."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._image_ids = scratch.column(np.int64)
        self._category_ids = scratch.column(np.int64)
        self._boxes = scratch.column(np.float64, 4)
        self._ids = scratch.column(np.int64)
        self._areas = scratch.column(np.float64)  # NaN: not given
        self._crowd = scratch.column(np.bool_)
        self._polygons = scratch.column(np.int64)  # number of polygons of an object
        self._points = scratch.column(np.int64)  # number of coordinates of a polygon
        self._coordinates = scratch.column(np.float64)
        self._odd = scratch.column(np.bool_)
        self._put_aside = scratch.column(np.uint8)  # pickled `Annotation`s of the odd entries, in order
        self._odd_categories: set[object] = set()
        self.unusable_ids: list[object] = []  # ids that are no whole number of 64 bits

    def __len__(self) -> int:
        return len(self._image_ids)

    def add(self, piece: Piece) -> None:
        """The annotations of one piece of the list.

        Raises:
            JsonError: if an element is no object.
        """
        usual: list[_Usual] = piece.values
        odd: NDArray[np.bool_] | None = None
        if piece.typed:
            boxes = _boxes_of(usual)
            if not (boxes[:, 2:] < 0).any():  # else the fault shows the numbers as the file writes them
                self._append(usual, boxes)
                return
        usual, odd = self._sorted_out(piece)
        self._append(usual, _boxes_of(usual), odd)

    def _sorted_out(self, piece: Piece) -> tuple[list[_Usual], NDArray[np.bool_]]:
        """The annotations with a stand-in for each odd one, which is put aside."""
        every = _ANY.decode(piece.text) if piece.typed else converted(piece, list[Annotation])
        usual, odd = [], np.zeros(len(every), dtype=np.bool_)
        for number, annotation in enumerate(every):
            found = _usual(annotation)
            if found is None:
                odd[number] = True
                self._put_aside.write(_kept(annotation))
                if annotation.id is not None and not is_id(annotation.id):
                    self.unusable_ids.append(annotation.id)
                if isinstance(annotation.category_id, int):
                    self._odd_categories.add(annotation.category_id)
                found = _STAND_IN
            usual.append(found)
        return usual, odd

    def _append(
        self, usual: list[_Usual], boxes: NDArray[np.float64], odd: NDArray[np.bool_] | None = None
    ) -> None:
        count, first = len(usual), len(self)
        ids = [first + i if own is None else own for i, own in enumerate(map(_ID, usual))]
        self._image_ids.extend(np.fromiter(map(_IMAGE_ID, usual), np.int64, count))
        self._category_ids.extend(np.fromiter(map(_CATEGORY_ID, usual), np.int64, count))
        self._boxes.extend(boxes)
        self._ids.extend(np.array(ids, dtype=np.int64))
        self._areas.extend(np.array(list(map(_AREA, usual)), dtype=np.float64))  # None becomes NaN
        self._crowd.extend(np.fromiter(map(bool, map(_CROWD, usual)), np.bool_, count))
        self._odd.extend(np.zeros(count, np.bool_) if odd is None else odd)
        outlines = [outline or () for outline in map(_OUTLINE, usual)]
        self._polygons.extend(np.fromiter(map(len, outlines), np.int64, count))
        polygons = list(chain.from_iterable(outlines))
        if polygons:
            self._points.extend(np.fromiter(map(len, polygons), np.int64, len(polygons)))
            self._coordinates.extend(np.fromiter(chain.from_iterable(polygons), np.float64))

    def uses_category(self, category: int) -> bool:
        """Whether an annotation is of this category."""
        if category in self._odd_categories:
            return True
        every, odd = self._category_ids.array(), self._odd.array()
        return any(
            bool(((every[i : i + BLOCK] == category) & ~odd[i : i + BLOCK]).any())
            for i in range(0, len(self), BLOCK)
        )

    def add_to(self, builder: IndexBuilder, file: str) -> None:
        """Hands all of them to the builder, in order; `file` names the annotation file in faults."""
        odd = self._odd.array()
        aside = self._read_aside()
        polygon, coordinate = 0, 0
        for first in range(0, len(self), BLOCK):
            last = min(first + BLOCK, len(self))
            # a run of usual annotations, then one odd one, and so on
            stops = [*(first + np.flatnonzero(odd[first:last])).tolist(), last]
            for stop in stops:
                block = self._block(first, stop, polygon, coordinate)
                builder.add_objects(block, file=file)
                polygon += len(block.points)
                coordinate += len(block.coordinates)
                if stop < last:
                    _add_odd(builder, stop, next(aside), file)
                first = stop + 1

    def _block(self, first: int, stop: int, polygon: int, coordinate: int) -> ObjectBlock:
        polygons = self._polygons.array()[first:stop]
        points = self._points.array()[polygon : polygon + int(polygons.sum())]
        return ObjectBlock(
            image_ids=self._image_ids.array()[first:stop],
            boxes_xywh=self._boxes.array()[first:stop],
            source_ids=self._category_ids.array()[first:stop],
            annotation_ids=self._ids.array()[first:stop],
            areas=self._areas.array()[first:stop],
            crowd=self._crowd.array()[first:stop],
            polygons=polygons,
            points=points,
            coordinates=self._coordinates.array()[coordinate : coordinate + int(points.sum())],
        )

    def _read_aside(self) -> Iterator[Annotation]:
        raw = _Reader(self._put_aside.array())
        while True:
            try:
                yield Annotation(*pickle.load(raw))  # type: ignore[arg-type]  # written above
            except EOFError:
                return


# twice as fast as a generator that asks for the attribute
_IMAGE_ID, _CATEGORY_ID, _BOX = attrgetter("image_id"), attrgetter("category_id"), attrgetter("bbox")
_ID, _AREA, _CROWD, _OUTLINE = (attrgetter(name) for name in ("id", "area", "iscrowd", "segmentation"))
_STAND_IN = _Usual(0, 0, (0.0, 0.0, 0.0, 0.0))


class _Reader:
    """A file of the bytes of an array."""

    def __init__(self, raw: NDArray[np.uint8]) -> None:
        self._raw = raw.data
        self._at = 0

    def read(self, size: int) -> bytes:
        self._at += size
        return self._raw[self._at - size : self._at].tobytes()

    def readline(self) -> bytes:
        raise NotImplementedError("the protocol in use has no lines")


def _usual(annotation: Annotation) -> _Usual | None:
    """The annotation if it has the usual types and finite numbers."""
    try:
        found = msgspec.convert(msgspec.structs.asdict(annotation), _Usual)
    except (msgspec.ValidationError, OverflowError):
        return None
    numbers = chain(found.bbox, *(found.segmentation or ()), () if found.area is None else (found.area,))
    if not all(math.isfinite(v) for v in numbers) or min(found.bbox[2:]) < 0:
        return None
    return found


def _boxes_of(usual: list[_Usual]) -> NDArray[np.float64]:
    every = chain.from_iterable(map(_BOX, usual))
    return np.fromiter(every, np.float64, 4 * len(usual)).reshape(-1, 4)


def _is_crowd(raw: object) -> bool:
    """Whether `iscrowd` marks a crowd, also as a number in quotes: "0" is a single object."""
    if isinstance(raw, str):
        return raw.strip().lower() not in ("", "0", "0.0", "false", "no")
    return bool(raw)


def _add_odd(builder: IndexBuilder, number: int, annotation: Annotation, file: str) -> None:
    builder.add_object(
        annotation.image_id,
        annotation.bbox,
        annotation.category_id,
        annotation.id if is_id(annotation.id) else number,
        area=annotation.area,
        crowd=_is_crowd(annotation.iscrowd),
        segmentation=annotation.segmentation,
        file=file,
    )
