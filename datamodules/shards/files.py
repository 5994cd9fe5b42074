"""The files of a sharded data set, and what each must be.

manifest.json   `ShardManifest`
images.arrow    where each image lies: name, shard, offset, length, crc32; sorted by name_hash
<split>.arrow   the annotations of a split
00000.tar ...   the image files, as plain uncompressed tar: `tar xf` gives them back
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from datamodules.index import Fault
from datamodules.index.columns import name_code
from datamodules.index.plain_json import decode

MANIFEST = "manifest.json"
IMAGES = "images.arrow"
FORMAT = "detr-zoo shards"
VERSION = 1


class PackedFile(msgspec.Struct, frozen=True):
    """A file that lies beside the manifest."""

    name: str
    size: int
    sha256: str


class SplitEntry(msgspec.Struct, frozen=True):
    """A split and the file of its annotations."""

    file: PackedFile
    images: int
    objects: int


class ShardManifest(msgspec.Struct, frozen=True):
    """The contents of manifest.json: all files of the data set, its classes, splits and faults.

    Attributes:
        source_format: the format it was packed from.
        classes: (source id, name), in head order.
        splits: by name.
        images: file of the images' places.
        shards: in the order of their numbers.
        faults: warnings of the source, so that a training reports the same from shards as from the source.
    """

    source_format: str
    classes: list[tuple[int, str]]
    splits: dict[str, SplitEntry]
    images: PackedFile
    shards: list[PackedFile]
    faults: list[Fault]
    format: str = FORMAT
    version: int = VERSION


def parse_manifest(content: bytes, where: str) -> ShardManifest:
    """Parses a manifest.json.

    Raises:
        ValueError: naming the file, if it is no such manifest, is of a version that this code does not know, or names a
            file that does not lie beside it.
    """
    try:
        manifest = decode(content, ShardManifest)
    except ValueError as error:
        raise ValueError(f"{where} is no manifest of shards: {error}") from error
    if manifest.format != FORMAT or manifest.version != VERSION:
        raise ValueError(
            f"{where} says {manifest.format!r}, version {manifest.version}; this code reads {FORMAT!r}, version "
            f"{VERSION}: pack the data again with `zoo data shard`"
        )
    of_splits = [split.file for split in manifest.splits.values()]
    for entry in (manifest.images, *of_splits, *manifest.shards):
        if entry.name in ("", ".", "..", MANIFEST) or set(entry.name) & set("/\\\0"):
            raise ValueError(
                f"{where} names the file {entry.name!r}, which does not lie beside it; use a manifest as `zoo data "
                "shard` writes it"
            )
    return manifest


def name_hash(name: str) -> int:
    """A 64-bit hash of an image's name, by which `images.arrow` is sorted and searched."""
    return int.from_bytes(hashlib.blake2b(name_code(name), digest_size=8).digest(), "little")


_TABLE = {
    "name_hash": pa.uint64(), "name": pa.large_binary(), "shard": pa.uint32(), "offset": pa.uint64(),
    "length": pa.uint64(), "crc32": pa.uint32(),
}  # fmt: skip


class ImageTable:
    """`images.arrow`, memory-mapped: workers share the pages that they read."""

    def __init__(self, path: Path) -> None:
        batch = read_arrow(path, _TABLE)
        self._path = path
        self._hashes, self._shards, self._offsets, self._lengths, self._checks = (
            batch.column(name).to_numpy(zero_copy_only=True) for name in _TABLE if name != "name"
        )

    def check(self, shards: Sequence[PackedFile]) -> None:
        """Raises ValueError unless every image lies inside one of the shards; for a table that was made elsewhere."""
        sizes = np.array([shard.size for shard in shards] or [0], dtype=np.float64)
        where = np.minimum(self._shards, len(sizes) - 1)
        ends = self._offsets.astype(np.float64) + self._lengths  # whole numbers would wrap around
        if (where != self._shards).any() or (ends > sizes[where]).any():
            raise ValueError(
                f"{self._path} is damaged: an image lies in no shard, or outside its own; copy it again"
            )
        if (self._hashes[1:] <= self._hashes[:-1]).any():
            raise ValueError(f"{self._path} is damaged: its names are not in order; copy it again")

    def find(self, name: str) -> tuple[int, int, int, int] | None:
        """(number of the shard, offset, length, crc32) of an image; None if it is not there."""
        wanted = np.uint64(name_hash(name))
        row = int(np.searchsorted(self._hashes, wanted))
        if row == len(self._hashes) or self._hashes[row] != wanted:
            return None
        return (
            int(self._shards[row]),
            int(self._offsets[row]),
            int(self._lengths[row]),
            int(self._checks[row]),
        )


def write_arrow(path: Path, columns: dict[str, pa.Array]) -> None:
    """One uncompressed record batch: its columns can be read in place."""
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def read_arrow(path: Path, types: Mapping[str, pa.DataType]) -> pa.RecordBatch:
    """What `write_arrow` wrote, memory-mapped.

    Raises:
        ValueError: naming the file, if `write_arrow` did not write it, or its columns are others.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        found = {field.name: field.type for field in reader.schema}
        if found != dict(types) or len(reader.schema) != len(types) or reader.num_record_batches != 1:
            raise ValueError("it has other columns")
        batch = reader.get_batch(0)
        batch.validate(full=True)
        if any(column.null_count for column in batch.columns):
            raise ValueError("it has empty places")
        return batch
    except (pa.ArrowException, ValueError, IndexError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy the data set again, all of its files") from error
