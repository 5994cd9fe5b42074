"""The annotations of one split as an Arrow file beside the shards: a row an image, its objects as lists.

Memory-mapped when read: the columns of the index are views into the file, which another process opens anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamodules.columns import Columns, Ints, Outlines
from datamodules.index import AnnotationIndex
from datamodules.shard_files import read_arrow, write_arrow


def write_annotations(index: AnnotationIndex, path: Path) -> None:
    """All columns of the index; where its images lie is the business of the shards."""
    columns = index.columns if index.rows is None else index.columns.take(index.rows)

    def of_images(values: pa.Array) -> pa.Array:
        return _lists(columns.offsets, values)

    written = {
        "file": _binary(columns.name_offsets, columns.name_bytes),
        "image_id": pa.array(columns.image_ids),
        "size": pa.FixedSizeListArray.from_arrays(_flat(columns.sizes), 2),
        "box_xywh": of_images(pa.FixedSizeListArray.from_arrays(_flat(columns.boxes_xywh), 4)),
        "source_id": of_images(_flat(columns.source_ids)),
        "area": of_images(_flat(columns.areas)),
        "crowd": of_images(_flat(columns.crowd.view(np.uint8))),
        "annotation_id": of_images(_flat(columns.annotation_ids)),
    }
    outlines = columns.outlines
    if outlines is not None:
        polygons = _lists(outlines.point_offsets, _flat(outlines.coordinates))
        written["polygons"] = of_images(_lists(outlines.polygon_offsets, polygons))
        written["rle"] = of_images(_binary(outlines.rle_offsets, outlines.rle_bytes))
    write_arrow(path, written)


def read_annotations(path: str) -> Columns:
    """The columns as they were written, mapped."""
    batch = read_arrow(Path(path))
    files, boxes = batch.column("file"), batch.column("box_xywh")

    def of_objects(name: str) -> NDArray[Any]:
        return _numbers(batch.column(name).values)

    outlines = None
    if "polygons" in batch.schema.names:
        objects = batch.column("polygons").values
        letters = batch.column("rle").values
        outlines = Outlines(
            polygon_offsets=_numbers(objects.offsets),
            point_offsets=_numbers(objects.values.offsets),
            coordinates=_numbers(objects.values.values),
            rle_offsets=_offsets_of_binary(letters),
            rle_bytes=_bytes_of_binary(letters),
        )
    return Columns(
        name_offsets=_offsets_of_binary(files),
        name_bytes=_bytes_of_binary(files),
        image_ids=_numbers(batch.column("image_id")),
        sizes=_numbers(batch.column("size").values).reshape(-1, 2),
        offsets=_numbers(boxes.offsets),
        boxes_xywh=_numbers(boxes.values.values).reshape(-1, 4),
        source_ids=of_objects("source_id"),
        areas=of_objects("area"),
        crowd=of_objects("crowd").view(np.bool_),
        annotation_ids=of_objects("annotation_id"),
        outlines=outlines,
        reopen=(read_annotations, path),
    )


def _flat(column: NDArray[Any]) -> pa.Array:
    return pa.array(np.ascontiguousarray(column).reshape(-1))


def _lists(offsets: Ints, values: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def _binary(offsets: Ints, letters: NDArray[np.uint8]) -> pa.Array:
    """File names need not be UTF-8, so they are bytes."""
    buffers = [None, pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(np.ascontiguousarray(letters))]
    return pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def _numbers(array: pa.Array) -> NDArray[Any]:
    return array.to_numpy(zero_copy_only=True)


def _offsets_of_binary(array: pa.Array) -> Ints:
    buffer = array.buffers()[1]
    if buffer is None or buffer.size == 0:  # Arrow may leave out the single offset of no entries
        return np.zeros(1, dtype=np.int64)
    return np.frombuffer(buffer, dtype=np.int64, count=len(array) + 1)


def _bytes_of_binary(array: pa.Array) -> NDArray[np.uint8]:
    buffer = array.buffers()[2]
    if buffer is None or buffer.size == 0:
        return np.zeros(0, dtype=np.uint8)
    return np.frombuffer(buffer, dtype=np.uint8, count=int(_offsets_of_binary(array)[-1]))
