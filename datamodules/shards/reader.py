"""Reading a data set from tar shards: on a local disk, or at an fsspec address through a local cache.

Access is map-style: an image is found by its name in a memory-mapped table and read by one positioned
read, so order, samples and results are those of the plain files. Every image is checked against the crc32
it was packed with, because PIL decodes damaged JPEG data to grey areas without an error.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock

from datamodules.index import AnnotationIndex
from datamodules.index.arrow import check_columns, open_columns
from datamodules.index.image_store import StoreError
from datamodules.shards.cache import CachedShards, ShardCache, cache_folder, cache_limit, read_range
from datamodules.shards.files import MANIFEST, ImageTable, PackedFile, ShardManifest, parse_manifest
from datamodules.shards.remote import RemoteFolder

_CACHE_READS = 3  # of an image whose bytes are not those that were packed
_FILL_THREADS = 2
_log = logging.getLogger(__name__)


class DamagedImageError(StoreError):
    """An image's bytes are not those that were packed; those of the other images may be."""


class ShardSource(Protocol):
    """Reads ranges of shards. Its pickle is small, because each worker process gets one."""

    def read(self, shard: str, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length) of a shard."""
        ...

    def where(self, shard: str) -> str:
        """Path or address of a shard, for a message."""
        ...

    def damaged(self, shard: str) -> None:
        """Called when a read gave other bytes than were packed."""
        ...


@dataclass(frozen=True)
class LocalShards:
    """Shards in a folder of this machine, or of a file system that is mounted on it."""

    folder: str

    def read(self, shard: str, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length) of a shard.

        Raises:
            StoreError: naming the shard, if it is missing.
        """
        try:
            return read_range(Path(self.folder, shard), offset, length)
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.where(shard)} is missing; copy it to the other files of its data set"
            ) from error

    def where(self, shard: str) -> str:
        """The path of the shard."""
        return str(Path(self.folder, shard))

    def damaged(self, shard: str) -> None:
        """Does nothing: there is no other copy of the shard to read."""


class ShardStore:
    """The images of a sharded data set, by their names in its index: an `ImageStore`."""

    def __init__(self, source: ShardSource, shards: tuple[str, ...], table: Path) -> None:
        self._source = source
        self._shards = shards
        self._table_file = table
        self._table: ImageTable | None = None

    def __getstate__(self) -> tuple[ShardSource, tuple[str, ...], Path]:
        return self._source, self._shards, self._table_file  # not the mapping: a worker opens its own

    def __setstate__(self, state: tuple[ShardSource, tuple[str, ...], Path]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def read(self, name: str) -> bytes:
        """The image file as it was packed.

        Raises:
            StoreError: naming shard and image: it is not there, cannot be read, or is damaged at every read.
        """
        number, offset, length, check = self._find(name)
        shard = self._shards[number]
        for _ in range(_CACHE_READS):
            content = self._source.read(shard, offset, length)
            if len(content) == length and zlib.crc32(content) == check:
                return content
            self._source.damaged(shard)
        raise DamagedImageError(
            f"{self._source.where(shard)} is damaged: image {name} at byte {offset} is not what was packed, in "
            f"{_CACHE_READS} reads; put a whole copy of the shard there, or pack the data again"
        )

    def where(self, name: str) -> str:
        """The shard of the image and its name, for a message."""
        return f"{self._source.where(self._shards[self._find(name)[0]])}:{name}"

    def fill_cache(self, rank: int, world_size: int) -> threading.Event | None:
        """Begins to fetch shards in the background where they are remote; the event stops it.

        Each rank starts at another shard, so that those of one machine do not wait for one another.
        """
        if not isinstance(self._source, CachedShards):
            return None
        return self._source.fill(_FILL_THREADS, rank * len(self._shards) // world_size)

    def _find(self, name: str) -> tuple[int, int, int, int]:
        if self._table is None:
            self._table = ImageTable(self._table_file)
        found = self._table.find(name)
        if found is None:
            raise StoreError(f"{name} is in none of the shards beside {self._table_file}")
        return found


@dataclass(frozen=True)
class ShardedData:
    """A sharded data set that has been opened.

    Attributes:
        address: of its folder.
        manifest: its manifest.
        splits: annotations whose images come from the shards.
    """

    address: str
    manifest: ShardManifest
    splits: dict[str, AnnotationIndex] = field(repr=False)


def is_address(root: Path | str) -> bool:
    """Whether `root` is an address such as s3://bucket/folder and not a path of this machine."""
    root = str(root)
    return "://" in root and not root.startswith("file://")


def local_path(root: Path | str) -> Path:
    """The absolute path of a root that is no address."""
    root = str(root)
    path = url2pathname(urlsplit(root).path) if root.startswith("file://") else root
    return Path(path).expanduser().resolve()


def place_of(root: Path | str) -> str:
    """A root as a recipe holds it: an absolute path, or an address as it is."""
    return str(root) if is_address(root) else str(local_path(root))


def open_shards(root: str) -> ShardedData:
    """A folder written by `zoo data shard`, or the address of one.

    The manifest of an address is read each time; its index files are kept in the cache.

    Raises:
        ValueError: the manifest is damaged, or a file is not as the manifest says.
        StoreError: a file cannot be had.
    """
    if is_address(root):
        return _open_remote(RemoteFolder(root.rstrip("/")))
    folder = local_path(root)
    manifest = parse_manifest((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))
    for entry in (*_index_files(manifest), *manifest.shards):
        _check_size(folder / entry.name, entry)
    return _opened(str(folder), manifest, folder, LocalShards(str(folder)))


def _open_remote(remote: RemoteFolder) -> ShardedData:
    content = remote.read_all(MANIFEST)
    manifest = parse_manifest(content, remote.where(MANIFEST))
    cache = ShardCache(cache_folder(), hashlib.sha256(content).hexdigest()[:16], remote, cache_limit())
    cache.folder.mkdir(parents=True, exist_ok=True)
    for entry in _index_files(manifest):
        with FileLock(cache.folder / f".{entry.name}.lock"):
            if not cache.path(entry.name).exists():
                remote.fetch(entry.name, cache.path(entry.name), entry.size, entry.sha256)
        _check_size(cache.path(entry.name), entry)
    if not cache.room_for(manifest.shards):
        total = sum(shard.size for shard in manifest.shards)
        _log.warning(
            "%s has %.1f GiB of shards, the cache takes %.1f GiB (ZOO_SHARD_CACHE_SIZE); what does not fit is "
            "read over the network, image by image, in every epoch",
            remote.address,
            total / 2**30,
            cache.limit / 2**30,
        )
    return _opened(remote.address, manifest, cache.folder, CachedShards(cache, manifest.shards))


def _opened(address: str, manifest: ShardManifest, folder: Path, source: ShardSource) -> ShardedData:
    for split in manifest.splits.values():
        check_columns(str(folder / split.file.name))
    ImageTable(folder / manifest.images.name).check(manifest.shards)
    store = ShardStore(source, tuple(s.name for s in manifest.shards), folder / manifest.images.name)
    splits = {
        name: AnnotationIndex(address, open_columns(str(folder / split.file.name)), store=store)
        for name, split in manifest.splits.items()
    }
    return ShardedData(address, manifest, splits)


def _index_files(manifest: ShardManifest) -> list[PackedFile]:
    return [manifest.images, *(split.file for split in manifest.splits.values())]


def _check_size(path: Path, entry: PackedFile) -> None:
    size = path.stat().st_size if path.exists() else None
    if size != entry.size:
        found = "is missing" if size is None else f"has {size} bytes"
        raise ValueError(
            f"{path} {found}, the manifest says {entry.size}; copy the data set again, all of its files"
        )
