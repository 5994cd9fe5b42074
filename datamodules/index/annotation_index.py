"""The annotations of one split, read-only: what datasets, summaries and checks read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from datamodules.index.columns import Columns, Ints, Names, Rows, joined, offsets_of, pick, ragged
from datamodules.index.faults import Fault
from datamodules.index.image_store import Folder, ImageStore
from datamodules.index.segmentation import Segmentation

_BLOCK = 1 << 16  # images whose columns are copied at a time where all of them are read


class Objects(NamedTuple):
    """The objects of one image, crowds included, as the annotation file has them; copies."""

    boxes_xywh: NDArray[np.float64]  # [n, 4] pixels
    source_ids: NDArray[np.int64]  # [n]
    areas: NDArray[np.float64]  # [n]
    crowd: NDArray[np.bool_]  # [n]
    ids: NDArray[np.int64]  # [n] annotation ids


@dataclass(frozen=True)
class AnnotationIndex:
    """Images and objects of one split, or of some of its images.

    Sizes are those of the frame in which the boxes are given: the displayed one, unless the
    annotation file gives the size of the raw pixels of a photograph with an EXIF rotation.

    Attributes:
        root: folder that the file names are relative to, with forward slashes.
        columns: those of the whole split, in memory or mapped from a file; a worker process then gets only the
            path of that file.
        rows: the images of this index as rows of `columns`, in order; None: all.
        faults: what was wrong with the split.
        store: where the images lie; None: plain files below `root`.
    """

    root: str
    columns: Columns
    rows: Rows | None = None
    faults: Sequence[Fault] = field(default=())
    store: ImageStore | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in self.__dataclass_fields__}  # no cached property

    def __len__(self) -> int:
        return len(self.columns.image_ids) if self.rows is None else len(self.rows)

    # ------------------------------------------------------------------ one image

    def path(self, row: int) -> Path:
        """Where image `row` lies."""
        return Path(self.root, self.files[row])

    def image_id(self, row: int) -> int:
        """The id of image `row`."""
        return int(self.columns.image_ids[self._own(row)])

    def size(self, row: int) -> tuple[int, int]:
        """(h, w) of image `row`."""
        height, width = self.columns.sizes[self._own(row)].tolist()
        return height, width

    def objects(self, row: int) -> Objects:
        """The objects of image `row`."""
        columns, own = self.columns, self._objects_of(row)
        return Objects(
            columns.boxes_xywh[own].copy(),
            columns.source_ids[own].copy(),
            columns.areas[own].copy(),
            columns.crowd[own].copy(),
            columns.annotation_ids[own].copy(),
        )

    def segmentations(self, row: int) -> list[Segmentation | None]:
        """The outlines of the objects of image `row`, None for one without."""
        own = self._objects_of(row)
        return [self._outline(position) for position in range(own.start, own.stop)]

    def segmentation(self, object_row: int) -> Segmentation | None:
        """The outline of an object by its position in the columns of this index (see `offsets`)."""
        if self.rows is None:
            return self._outline(object_row)
        row = int(np.searchsorted(self.offsets, object_row, side="right")) - 1
        return self._outline(self._objects_of(row).start + object_row - int(self.offsets[row]))

    def _own(self, row: int) -> int:
        if not -len(self) <= row < len(self):
            raise IndexError(f"image row {row} of an index of {len(self)} images")
        row = row % len(self)
        return row if self.rows is None else int(self.rows[row])

    def _objects_of(self, row: int) -> slice:
        own = self._own(row)
        first, last = self.columns.offsets[own : own + 2].tolist()
        return slice(first, last)

    def _outline(self, position: int) -> Segmentation | None:
        outlines = self.columns.outlines
        if outlines is None:
            return None
        first, last = outlines.polygon_offsets[position : position + 2].tolist()
        if last > first:
            ends = outlines.point_offsets[first : last + 1].tolist()
            return Segmentation(tuple(outlines.coordinates[a:b].copy() for a, b in pairwise(ends)))
        first, last = outlines.rle_offsets[position : position + 2].tolist()
        if last > first:
            return Segmentation(rle=msgspec.json.decode(outlines.rle_bytes[first:last].tobytes()))
        return None

    # ------------------------------------------------------------------ columns

    @property
    def images(self) -> ImageStore:
        """Hands out the bytes of the images by their names in `files`."""
        return self.store or Folder(self.root)

    @property
    def num_objects(self) -> int:
        """Objects of all images, crowds included."""
        return int(self.offsets[-1])

    @property
    def files(self) -> Names:
        """[N] names relative to root."""
        return Names(self.columns, self.rows)

    @cached_property
    def image_ids(self) -> Ints:
        """[N] unique."""
        return self.columns.image_ids if self.rows is None else pick(self.columns.image_ids, self.rows)

    @cached_property
    def sizes(self) -> Ints:
        """[N, 2] h, w."""
        return self.columns.sizes if self.rows is None else pick(self.columns.sizes, self.rows)

    @cached_property
    def offsets(self) -> Ints:
        """[N + 1]; the objects of image i are offsets[i]:offsets[i + 1] of the next columns."""
        if self.rows is None:
            return self.columns.offsets
        return offsets_of(
            pick(self.columns.offsets[1:], self.rows) - pick(self.columns.offsets[:-1], self.rows)
        )

    @property
    def boxes_xywh(self) -> NDArray[np.float64]:
        """[A, 4] pixels."""
        return self._of_objects("boxes_xywh")

    @property
    def source_ids(self) -> Ints:
        """[A] class ids of the annotation file."""
        return self._of_objects("source_ids")

    @property
    def areas(self) -> NDArray[np.float64]:
        """[A] square pixels."""
        return self._of_objects("areas")

    @property
    def crowd(self) -> NDArray[np.bool_]:
        """[A]."""
        return self._of_objects("crowd")

    @property
    def image_rows(self) -> NDArray[np.int64]:
        """[A] the image row of each object."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def annotation_ids(self) -> Ints:
        """[A]."""
        return self._of_objects("annotation_ids")

    def _of_objects(self, name: str) -> NDArray[Any]:
        """A column of the objects: the column itself, or a copy of the chosen part of it."""
        column = getattr(self.columns, name)
        if self.rows is None:
            return column
        if isinstance(self.rows, range) and self.rows.step == 1:
            first, last = self.columns.offsets[[self.rows.start, self.rows.stop]].tolist()
            return column[first:last]
        return column[ragged(self.columns.offsets, self.rows)[0]]

    # ------------------------------------------------------------------ the whole

    def take(self, rows: Ints | Sequence[int]) -> AnnotationIndex:
        """The images `rows`, in that order; the columns are shared, faults stay."""
        chosen = np.asarray(rows, dtype=np.int64)
        if chosen.size and not -len(self) <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"rows {chosen.min()} to {chosen.max()} of an index of {len(self)} images")
        chosen = chosen % max(1, len(self))
        own = chosen if self.rows is None else np.asarray(self.rows, dtype=np.int64)[chosen]
        return replace(self, rows=_compact(own))

    def update_digest(self, digest: hashlib._Hash) -> None:
        """Adds file names and every annotation column to `digest`, but not where the folder lies."""
        for name in self.files:
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
        for whole in (self.image_ids, self.sizes, self.offsets):
            digest.update(np.ascontiguousarray(whole).data)
        for column in ("boxes_xywh", "source_ids", "areas", "crowd", "annotation_ids"):
            for block in self._blocks():
                digest.update(np.ascontiguousarray(block._of_objects(column)).data)
        if self.columns.outlines is not None:
            for block in self._blocks():
                _update_with_outlines(digest, block)

    def _blocks(self) -> list[AnnotationIndex]:
        rows = range(len(self.columns.image_ids)) if self.rows is None else self.rows
        return [replace(self, rows=rows[i : i + _BLOCK]) for i in range(0, len(rows), _BLOCK)]


def _compact(rows: Ints) -> Rows:
    """Consecutive rows as a range, others as an array: they are pickled for each worker process."""
    if rows.size and np.array_equal(rows, np.arange(rows[0], rows[0] + rows.size)):
        return range(int(rows[0]), int(rows[0]) + rows.size)
    return rows.astype(np.int32) if rows.size and rows.max() < 2**31 else rows


def _update_with_outlines(digest: hashlib._Hash, index: AnnotationIndex) -> None:
    assert index.columns.outlines is not None
    assert index.rows is not None
    outlines = index.columns.outlines.take(ragged(index.columns.offsets, index.rows)[0])
    if not len(outlines.coordinates) and not len(outlines.rle_bytes):
        return  # then the digest is that of a set without outlines
    for column in vars(outlines).values():
        digest.update(np.ascontiguousarray(column).data)


def concatenate(indices: Sequence[AnnotationIndex]) -> AnnotationIndex:
    """Several splits as one, in memory. Images are renumbered if two have the same id.

    Raises:
        ValueError: if the splits lie under different roots.
    """
    roots = {i.root for i in indices}
    if len(roots) != 1:
        raise ValueError(f"splits of different folders cannot be joined: {sorted(roots)}")
    parts = [i.columns if i.rows is None else i.columns.take(i.rows) for i in indices]
    columns = joined(parts)
    if len(np.unique(columns.image_ids)) < len(columns.image_ids):
        columns = replace(columns, image_ids=np.arange(len(columns.image_ids), dtype=np.int64))
    faults = tuple(f for i in indices for f in i.faults)
    return AnnotationIndex(indices[0].root, columns, faults=faults, store=indices[0].store)
