"""Packing a data set into tar shards. The output appears only when it is whole and verified."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import zlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from filelock import FileLock

from datamodules.index import AnnotationIndex
from datamodules.index.arrow import write_columns
from datamodules.index.columns import name_code
from datamodules.index.plain_json import encode
from datamodules.index.source import Source
from datamodules.outputs import require_apart
from datamodules.progress import Meter
from datamodules.shards.cache import read_range
from datamodules.shards.files import (
    IMAGES,
    MANIFEST,
    PackedFile,
    ShardManifest,
    SplitEntry,
    name_hash,
    write_arrow,
)
from zoo.storage.cache import cache_root
from zoo.storage.durable import sha256_of, sync, written

SMALLEST_SHARD = 2 * tarfile.RECORDSIZE  # bytes; an empty tar takes half of it
_SUFFIX = ".tar"


def pack(source: Source, output: Path, shard_size: int, progress: Meter | None = None) -> ShardManifest:
    """Packs all splits of `source` into the new folder `output`.

    Images keep the order of their splits, and the bytes of their files; one that is in two splits is
    packed once. Everything is written beside `output`, read back, compared, and renamed at the end.

    Args:
        source: the data set as read; faulty images and objects are left out, as in a training.
        output: folder to make.
        shard_size: bytes after which a shard is closed; only an image larger than that passes it.
        progress: called after each image, once while packing and once while verifying.

    Raises:
        ValueError: `output` exists or lies inside the source, the shard size is too small, there is no image, or
            the data are panoptic, whose PNGs shards do not hold.
        OSError: an image cannot be read.
    """
    if shard_size < SMALLEST_SHARD:
        raise ValueError(f"a shard size of {shard_size} bytes is too small; take at least {SMALLEST_SHARD}")
    if output.exists():
        raise ValueError(f"{output} exists; give a new folder, or remove it first")
    require_apart(source.root, output)
    if source.format == "coco_panoptic":
        raise ValueError(
            f"{source.root}: panoptic data cannot be packed, for shards hold no PNG of segments; train on the folder, "
            "or pack its boxes with --format coco where it has annotations/instances_*.json"
        )
    if not any(len(index) for index in source.splits.values()):
        raise ValueError(f"{source.root}: no split has an image that can be packed")
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = output.with_name(f".{output.name}.partial")
    with FileLock(_lock_file(output)):
        if output.exists():
            raise ValueError(f"{output} was made by another process meanwhile")
        shutil.rmtree(staging, ignore_errors=True)  # of a packing that was killed
        staging.mkdir()
        try:
            with written(output):
                manifest = _write(source, staging, shard_size, progress)
                os.rename(staging, output)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    return manifest


def _lock_file(output: Path) -> Path:
    """The lock file. It lies in the cache, for it stays: a lock that others may wait for cannot be removed.

    It lies beside `output` if the cache cannot be written.
    """
    folder = cache_root() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        return output.with_name(f".{output.name}.lock")
    return folder / f"{hashlib.sha256(os.fsencode(output.resolve())).hexdigest()[:24]}.lock"


def _write(source: Source, folder: Path, shard_size: int, progress: Meter | None) -> ShardManifest:
    places = _Places()
    total = len({name for index in source.splits.values() for name in index.files.tolist()})
    with _Shards(folder, shard_size) as shards:
        for name, content in _images(source.splits):
            places.add(name, *shards.add(name, content), content)
            if progress is not None:
                progress(len(places.names), 2 * total)
    places.write(folder / IMAGES)
    splits = {}
    for split, index in source.splits.items():
        file = folder / f"{split}.arrow"
        write_columns(index.columns if index.rows is None else index.columns.take(index.rows), file)
        splits[split] = SplitEntry(_entry(file), len(index), index.num_objects)
    manifest = ShardManifest(
        source_format=source.format,
        classes=list(source.classes.items()),
        splits=splits,
        images=_entry(folder / IMAGES),
        shards=[_entry(file) for file in shards.files],
        faults=[fault for fault in source.faults if fault.severity == "warning"],
    )
    (folder / MANIFEST).write_bytes(encode(manifest, indent=1))
    verify(folder, manifest, places, progress)
    for path in (*folder.iterdir(), folder):  # before the rename, which makes the output appear
        sync(path)
    return manifest


def verify(folder: Path, manifest: ShardManifest, places: _Places, progress: Meter | None) -> None:
    """Reads everything back, with Python's tar reader and with `datamodules.shards.reader`.

    Raises:
        OSError: naming the shard, if anything is not what was written.
    """
    row = 0
    for number, shard in enumerate(manifest.shards):
        path = folder / shard.name
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                offset, length = places.offsets[row], places.lengths[row]
                content = read_range(path, offset, length)
                same = (places.shards[row], offset, length) == (number, member.offset_data, member.size)
                if not same or zlib.crc32(content) != places.checks[row]:
                    raise OSError(f"{path}: {member.name} was not written as it was read; check the disk")
                row += 1
                if progress is not None:
                    progress(len(places.names) + row, 2 * len(places.names))
    if row != len(places.names):
        raise OSError(f"{folder}: {row} images were written, {len(places.names)} were read; check the disk")


def _images(splits: Mapping[str, AnnotationIndex]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every image, once."""
    seen: set[str] = set()
    for index in splits.values():
        for name in index.files.tolist():
            if name not in seen:
                seen.add(name)
                yield name, index.images.read(name)


@dataclass
class _Places:
    """Where the images went, in the order they were packed."""

    names: list[str] = field(default_factory=list)
    shards: array[int] = field(default_factory=lambda: array("I"))
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    lengths: array[int] = field(default_factory=lambda: array("Q"))
    checks: array[int] = field(default_factory=lambda: array("I"))

    def add(self, name: str, shard: int, offset: int, content: bytes) -> None:
        self.names.append(name)
        self.shards.append(shard)
        self.offsets.append(offset)
        self.lengths.append(len(content))
        self.checks.append(zlib.crc32(content))

    def write(self, path: Path) -> None:
        """Writes the table of the images' places, sorted by hash.

        Raises:
            ValueError: two names have the same hash, which happens to one data set in millions.
        """
        hashes = np.asarray([name_hash(name) for name in self.names], dtype=np.uint64)
        order = np.argsort(hashes)
        twice = np.flatnonzero(np.diff(hashes[order]) == 0)
        if len(twice):
            names = [self.names[order[twice[0] + i]] for i in (0, 1)]
            raise ValueError(f"the names {names} have the same 64-bit hash; rename one of the images")
        columns = {
            "name_hash": pa.array(hashes[order]),
            "name": pa.array([name_code(self.names[i]) for i in order], pa.large_binary()),
            "shard": pa.array(np.asarray(self.shards, dtype=np.uint32)[order]),
            "offset": pa.array(np.asarray(self.offsets, dtype=np.uint64)[order]),
            "length": pa.array(np.asarray(self.lengths, dtype=np.uint64)[order]),
            "crc32": pa.array(np.asarray(self.checks, dtype=np.uint32)[order]),
        }
        write_arrow(path, columns)


class _Shards:
    """Appends files to tar shards; begins the next shard before one grows past its size."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._size = size
        self._tar: tarfile.TarFile | None = None
        self.files: list[Path] = []

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def add(self, name: str, content: bytes) -> tuple[int, int]:
        """(number of the shard, offset of the content in it)."""
        # a long name takes headers of its own; two empty blocks end a tar, which is filled up to a record
        room = (
            _blocks(len(content))
            + (6 if len(name_code(name)) > tarfile.LENGTH_NAME else 3) * tarfile.BLOCKSIZE
        )
        if self._tar is None or (self._tar.offset and _records(self._tar.offset + room) > self._size):
            self._close()
            self.files.append(self._folder / f"{len(self.files):05d}{_SUFFIX}")
            self._tar = tarfile.open(self.files[-1], "w:", format=tarfile.GNU_FORMAT)
        member = tarfile.TarInfo(_member_name(name))  # time 0, no owner: equal data make equal shards
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))
        return len(self.files) - 1, self._tar.offset - _blocks(len(content))

    def _close(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._tar = None


def _member_name(name: str) -> str:
    """A name that stays inside the folder a tar is unpacked in; images beside the root have `..`."""
    return "/".join("_" if part == ".." else part for part in name.lstrip("/").split("/"))


def _blocks(length: int) -> int:
    return -(-length // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _records(length: int) -> int:
    return -(-length // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _entry(path: Path) -> PackedFile:
    return PackedFile(path.name, path.stat().st_size, sha256_of(path))
