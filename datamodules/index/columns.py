"""The flat columns of an annotation index: one entry an image, an object, a polygon or a number.

A ragged column is a flat one and its offsets: entry i is flat[offsets[i]:offsets[i + 1]].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Rows = Ints | range  # a choice of entries, in order


@dataclass(frozen=True)
class Outlines:
    """The segmentations of all objects: each has polygons, an RLE as json, or neither."""

    polygon_offsets: Ints  # [A + 1] into the polygons
    point_offsets: Ints  # [P + 1] into the coordinates
    coordinates: NDArray[np.float64]  # [C] x0, y0, x1, y1, ...
    rle_offsets: Ints  # [A + 1] into the bytes
    rle_bytes: NDArray[np.uint8]  # [R]

    def take(self, objects: Rows) -> Outlines:
        """Those of the objects at `objects`, in that order."""
        polygons, polygon_offsets = ragged(self.polygon_offsets, objects)
        points, point_offsets = ragged(self.point_offsets, polygons)
        letters, rle_offsets = ragged(self.rle_offsets, objects)
        return Outlines(
            polygon_offsets, point_offsets, self.coordinates[points], rle_offsets, self.rle_bytes[letters]
        )


@dataclass(frozen=True)
class Columns:
    """N images and their A objects; the objects of image i are offsets[i]:offsets[i + 1].

    Attributes:
        name_offsets: [N + 1] into `name_bytes`, the file names as the file system encodes them.
        reopen: function and argument that give these columns again in another process; None for columns that
            lie in memory only, which are copied to it.
    """

    name_offsets: Ints
    name_bytes: NDArray[np.uint8]
    image_ids: Ints  # [N] unique
    sizes: Ints  # [N, 2] h, w
    offsets: Ints  # [N + 1]
    boxes_xywh: NDArray[np.float64]  # [A, 4]
    source_ids: Ints  # [A]
    areas: NDArray[np.float64]  # [A]
    crowd: NDArray[np.bool_]  # [A]
    annotation_ids: Ints  # [A]
    outlines: Outlines | None = None  # None: no object has a segmentation
    reopen: tuple[Callable[[str], Columns], str] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self.reopen is not None:
            function, argument = self.reopen
            return function, (argument,)
        return Columns, tuple(vars(self).values())

    def name(self, row: int) -> str:
        """The file name of image `row`."""
        return name_text(self.name_bytes[self.name_offsets[row] : self.name_offsets[row + 1]].tobytes())

    def take(self, rows: Rows) -> Columns:
        """The images `rows` and their objects, in that order, copied."""
        letters, name_offsets = ragged(self.name_offsets, rows)
        objects, offsets = ragged(self.offsets, rows)
        return Columns(
            name_offsets=name_offsets,
            name_bytes=self.name_bytes[letters],
            image_ids=pick(self.image_ids, rows),
            sizes=pick(self.sizes, rows),
            offsets=offsets,
            boxes_xywh=self.boxes_xywh[objects],
            source_ids=self.source_ids[objects],
            areas=self.areas[objects],
            crowd=self.crowd[objects],
            annotation_ids=self.annotation_ids[objects],
            outlines=None if self.outlines is None else self.outlines.take(objects),
        )


def check(columns: Columns) -> None:
    """Raises ValueError where offsets point outside their column or a value is impossible, as in a forged file."""
    images, objects = len(columns.image_ids), len(columns.source_ids)
    lengths = (len(columns.sizes), *(len(c) for c in (columns.name_offsets[1:], columns.offsets[1:])))
    if any(length != images for length in lengths):
        raise ValueError(f"its columns have {lengths} rows for {images} images")
    own = (columns.boxes_xywh, columns.areas, columns.crowd, columns.annotation_ids)
    if any(len(column) != objects for column in own):
        raise ValueError(f"its columns have {tuple(map(len, own))} rows for {objects} objects")
    _check_offsets("names", columns.name_offsets, len(columns.name_bytes))
    _check_offsets("objects", columns.offsets, objects)
    if not ((columns.sizes > 0) & (columns.sizes < 1 << 31)).all():
        raise ValueError("an image has a size below 1 or beyond 32 bits")
    if columns.crowd.view(np.uint8).max(initial=0) > 1:
        raise ValueError("a mark of a crowd is neither 0 nor 1")
    if not (np.isfinite(columns.boxes_xywh).all() and np.isfinite(columns.areas).all()):
        raise ValueError("a box or an area is no finite number")
    if (outlines := columns.outlines) is not None:
        _check_offsets("polygons", outlines.polygon_offsets, len(outlines.point_offsets) - 1, objects)
        _check_offsets("points", outlines.point_offsets, len(outlines.coordinates))
        _check_offsets("run lengths", outlines.rle_offsets, len(outlines.rle_bytes), objects)
        if not np.isfinite(outlines.coordinates).all():
            raise ValueError("a coordinate of an outline is no finite number")


def _check_offsets(what: str, offsets: Ints, length: int, rows: int | None = None) -> None:
    if rows is not None and len(offsets) != rows + 1:
        raise ValueError(f"its {what} have {len(offsets) - 1} rows for {rows} objects")
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != length or (np.diff(offsets) < 0).any():
        raise ValueError(f"the offsets of its {what} do not go from 0 to {length}")


class Names(Sequence[str]):
    """The file names of some images, decoded when they are asked for."""

    def __init__(self, columns: Columns, rows: Rows | None) -> None:
        self._columns = columns
        self._rows = range(len(columns.image_ids)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, (slice, np.ndarray)):
            return [self._columns.name(int(r)) for r in np.asarray(self._rows)[row]]
        return self._columns.name(int(self._rows[row]))

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

    def tolist(self) -> list[str]:
        """All of them."""
        return list(self)


def name_text(raw: bytes) -> str:
    """A file name from its bytes; those that are no UTF-8 survive as they do in `os.fsdecode`."""
    return raw.decode("utf-8", "surrogateescape")


def name_code(name: str) -> bytes:
    """The bytes of a file name; the inverse of `name_text`, also of a lone surrogate in a json."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return name.encode("utf-8", "replace")


def pick(column: NDArray[Any], rows: Rows) -> NDArray[Any]:
    """column[rows]: a view for a range, else a copy."""
    return column[rows.start : rows.stop : rows.step] if isinstance(rows, range) else column[rows]


def ragged(offsets: Ints, rows: Rows) -> tuple[Ints, Ints]:
    """(flat positions of the entries `rows` of a ragged column, one after the other; their new offsets)."""
    starts = pick(offsets[:-1], rows)
    counts = pick(offsets[1:], rows) - starts
    ends = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=ends[1:])
    return np.repeat(starts - ends[:-1], counts) + np.arange(ends[-1]), ends


def offsets_of(counts: NDArray[Any]) -> Ints:
    """[n] lengths as [n + 1] offsets."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def joined(parts: Sequence[Columns]) -> Columns:
    """The columns of several splits one after the other, copied."""
    return Columns(**_joined_fields(parts), outlines=_joined_outlines(parts))


def _joined_outlines(parts: Sequence[Columns]) -> Outlines | None:
    if all(part.outlines is None for part in parts):
        return None
    return Outlines(**_joined_fields([part.outlines or no_outlines(len(part.source_ids)) for part in parts]))


def _joined_fields(parts: Sequence[Columns] | Sequence[Outlines]) -> dict[str, Any]:
    """Each array of the parts one after the other, by name; offsets count on from part to part."""
    found = {}
    for name in (name for name, value in vars(parts[0]).items() if isinstance(value, np.ndarray)):
        every = [getattr(part, name) for part in parts]
        offsets = name.endswith("offsets")
        found[name] = offsets_of(np.concatenate([*map(np.diff, every)])) if offsets else np.concatenate(every)
    return found


def no_outlines(objects: int) -> Outlines:
    """The columns of `objects` objects without any."""
    none = np.zeros(objects + 1, dtype=np.int64)
    return Outlines(none, none[:1], np.zeros(0), none, np.zeros(0, dtype=np.uint8))
