"""The columns of an annotation index as an Arrow IPC file that processes map instead of reading it.

One record batch, one row an image, uncompressed:
`file: large_string, image_id: int64, size: [h, w], objects: large_list<struct<box: [x, y, w, h], source_id,
area, crowd, annotation_id, polygons: large_list<large_list<double>>, rle: large_binary (json)>>`, the last two
only where an object has an outline. Any Arrow reader opens it; here the buffers are taken as numpy arrays.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamodules.index.columns import Columns, Outlines, check
from zoo.storage.durable import write_atomically

_VERSION = b"1"
_SIZE = pa.list_(pa.int64(), 2)
_BOX = pa.list_(pa.float64(), 4)
_PLAIN = [
    pa.field("box", _BOX),
    pa.field("source_id", pa.int64()),
    pa.field("area", pa.float64()),
    pa.field("crowd", pa.uint8()),
    pa.field("annotation_id", pa.int64()),
]
_PER_IMAGE = [pa.field("file", pa.large_string()), pa.field("image_id", pa.int64()), pa.field("size", _SIZE)]
_OUTLINED = [
    pa.field("polygons", pa.large_list(pa.large_list(pa.float64()))),
    pa.field("rle", pa.large_binary()),
]


def write_columns(columns: Columns, path: Path) -> None:
    """Writes the file and waits until the disk has it."""
    batch = pa.RecordBatch.from_arrays(
        [
            _variable(pa.large_string(), columns.name_offsets, columns.name_bytes),
            _flat(columns.image_ids),
            _fixed(_SIZE, columns.sizes),
            _listed(columns.offsets, _objects(columns)),
        ],
        names=["file", "image_id", "size", "objects"],
    )
    schema = batch.schema.with_metadata({b"detr_zoo_index": _VERSION})

    def write(file: IO[bytes]) -> None:
        with pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))

    write_atomically(path, write)


def open_columns(path: str) -> Columns:
    """Maps the file: only the pages that are used are read, and processes share them.

    The values are not checked; `check_columns` does that for a file that was made elsewhere.

    Raises:
        ValueError: naming the file, if `write_columns` did not write it.
        OSError: if it cannot be opened.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(path))
        if (reader.schema.metadata or {}).get(b"detr_zoo_index") != _VERSION or not _is_ours(reader.schema):
            raise ValueError("it has another schema")
        if reader.num_record_batches != 1:
            raise ValueError(f"it has {reader.num_record_batches} parts instead of one")
        batch = reader.get_batch(0)
        batch.validate()  # lengths of buffers and ends of offsets, before anything is read from them
        if any(_nulls(column) for column in batch.columns):
            raise ValueError("it has empty places")
        return _columns_of(batch, path)
    except (pa.ArrowException, ValueError, IndexError) as error:
        raise ValueError(f"{path} is no annotation index: {error}; remove it, it is made again") from error


def check_columns(path: str) -> None:
    """Checks every column of a file that was made elsewhere: no offset may point outside the column it is for.

    Raises:
        ValueError: naming the file and the column.
    """
    try:
        check(open_columns(path))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; copy the data set again, all of its files") from error


def _is_ours(schema: pa.Schema) -> bool:
    def objects(fields: list[pa.Field]) -> pa.Schema:
        return pa.schema([*_PER_IMAGE, pa.field("objects", pa.large_list(pa.struct(fields)))])

    return any(schema.equals(objects(fields)) for fields in (_PLAIN, [*_PLAIN, *_OUTLINED]))


def _nulls(array: pa.Array) -> bool:
    """Whether an entry, at any depth, is null: the buffers are taken as they are, without their masks."""
    if array.null_count:
        return True
    if pa.types.is_struct(array.type):
        return any(_nulls(child) for child in _children(array))
    nested = pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type)
    return nested and _nulls(array.values)


def _columns_of(batch: pa.RecordBatch, path: str) -> Columns:
    names, ids, sizes, objects = batch.columns
    fields = dict(zip((f.name for f in objects.type.value_type), _children(objects.values), strict=True))
    outlines = None
    if "polygons" in fields:
        polygons, rles = fields["polygons"], fields["rle"]
        outlines = Outlines(
            _offsets(polygons),
            _offsets(polygons.values),
            _values(polygons.values.values, np.float64),
            _offsets(rles),
            _bytes(rles),
        )
    return Columns(
        name_offsets=_offsets(names),
        name_bytes=_bytes(names),
        image_ids=_values(ids, np.int64),
        sizes=_values(sizes.values, np.int64).reshape(-1, 2),
        offsets=_offsets(objects),
        boxes_xywh=_values(fields["box"].values, np.float64).reshape(-1, 4),
        source_ids=_values(fields["source_id"], np.int64),
        areas=_values(fields["area"], np.float64),
        crowd=_values(fields["crowd"], np.bool_),
        annotation_ids=_values(fields["annotation_id"], np.int64),
        outlines=outlines,
        reopen=(open_columns, path),
    )


# ---------------------------------------------------------------------- numpy to Arrow, without copies


def _objects(columns: Columns) -> pa.Array:
    children = [
        _fixed(_BOX, columns.boxes_xywh),
        _flat(columns.source_ids),
        _flat(columns.areas),
        _flat(columns.crowd.view(np.uint8)),
        _flat(columns.annotation_ids),
    ]
    fields = _PLAIN
    if columns.outlines is not None:
        own = columns.outlines
        children.append(_listed(own.polygon_offsets, _listed(own.point_offsets, _flat(own.coordinates))))
        children.append(_variable(pa.large_binary(), own.rle_offsets, own.rle_bytes))
        fields = [*_PLAIN, *_OUTLINED]
    return pa.Array.from_buffers(pa.struct(fields), len(columns.source_ids), [None], children=children)


def _buffer(values: NDArray[Any]) -> pa.Buffer:
    return pa.py_buffer(np.ascontiguousarray(values))


def _flat(values: NDArray[Any]) -> pa.Array:
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, _buffer(values)])


def _fixed(type: pa.DataType, values: NDArray[Any]) -> pa.Array:
    return pa.Array.from_buffers(type, len(values), [None], children=[_flat(values.reshape(-1))])


def _listed(offsets: NDArray[np.int64], values: pa.Array) -> pa.Array:
    type = pa.large_list(values.type)
    return pa.Array.from_buffers(type, len(offsets) - 1, [None, _buffer(offsets)], children=[values])


def _variable(type: pa.DataType, offsets: NDArray[np.int64], data: NDArray[np.uint8]) -> pa.Array:
    return pa.Array.from_buffers(type, len(offsets) - 1, [None, _buffer(offsets), _buffer(data)])


# ---------------------------------------------------------------------- Arrow to numpy, without copies


def _children(struct: pa.StructArray) -> list[pa.Array]:
    return [struct.field(i) for i in range(struct.type.num_fields)]


def _values(array: pa.Array, dtype: type) -> NDArray[Any]:
    return _read(array.buffers()[1], dtype, len(array))


def _offsets(array: pa.Array) -> NDArray[np.int64]:
    # Arrow may leave out the offsets of an empty array
    return _read(array.buffers()[1], np.int64, len(array) + 1) if len(array) else np.zeros(1, dtype=np.int64)


def _bytes(array: pa.Array) -> NDArray[np.uint8]:
    return _read(array.buffers()[2], np.uint8, int(_offsets(array)[-1]))


def _read(buffer: pa.Buffer | None, dtype: type, count: int) -> NDArray[Any]:
    if not count or buffer is None:
        return np.zeros(0, dtype=dtype)
    return np.frombuffer(buffer, dtype=dtype, count=count)
