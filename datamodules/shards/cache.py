"""The bounded local cache of shards that lie elsewhere, shared by all processes of a machine.

An epoch reads every image once, in random order: a cache that throws out the shard used longest ago would
throw out each one just before its next use. So a cached shard stays as long as its data set is in use,
what does not fit is read image by image, and the share of reads from the local disk is the share of the
data set that fits, the best that any rule can reach. Shards of other data sets leave, the one used longest
ago first, unless they were used within the last hour.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from datamodules.index.image_store import StoreError
from datamodules.shards.files import PackedFile
from datamodules.shards.remote import NoRangesError, RemoteFolder
from zoo.storage.cache import cache_root

LIMIT_VARIABLE = "ZOO_SHARD_CACHE_SIZE"
_DEFAULT_LIMIT = 100 << 30  # bytes
_DISK_MARGIN = 1 << 30  # bytes of the disk that the cache leaves unused
_IN_USE = 3600.0  # seconds since the last use in which another data set's shard stays
_TOUCH_EVERY = 600.0  # seconds between two notes of use by one process
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The folder of cached shards."""
    return cache_root() / "shards"


def cache_limit() -> int:
    """Bytes that all cached shards may take: ZOO_SHARD_CACHE_SIZE, else 100G."""
    given = os.environ.get(LIMIT_VARIABLE)
    return _DEFAULT_LIMIT if given is None else parse_size(given, LIMIT_VARIABLE)


def parse_size(text: str, name: str) -> int:
    """Bytes of `256M`, `100G`, `1.5T`, `4096`.

    Raises:
        ValueError: naming `name` and the text, if it is no size.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"{name} is {text!r:.40}; write a size such as 256M, 100G or 4096 (bytes)")
    return int(float(match[1]) * _UNITS[match[2].upper()])


@dataclass(frozen=True)
class ShardCache:
    """Cached shards of one data set, below a root that all data sets share.

    Attributes:
        root: folder of all data sets' caches.
        key: names the data set; a digest of its manifest, so another packing is another data set.
        remote: where the shards come from.
        limit: bytes that the shards of all data sets below `root` may take.
    """

    root: Path
    key: str
    remote: RemoteFolder
    limit: int

    @property
    def folder(self) -> Path:
        """The folder of this data set's shards."""
        return self.root / self.key

    def path(self, name: str) -> Path:
        """Where the shard lies if it is in the cache."""
        return self.folder / name

    def fetch(self, shard: PackedFile, wait: bool = True) -> bool:
        """Fetches the shard into the cache and checks it; returns whether it is there now.

        It is not there if it does not fit, or if another process is fetching it and `wait` is false.

        Raises:
            StoreError: it cannot be fetched, or comes damaged at every attempt; names shard and address.
        """
        target = self.path(shard.name)
        if target.exists():
            return True
        if not self._reserve(shard):
            return False
        try:
            with FileLock(_lock_file(target), timeout=-1 if wait else 0):
                if not target.exists():
                    self.remote.fetch(shard.name, target, shard.size, shard.sha256)
                _reservation(target).unlink(missing_ok=True)
        except Timeout:
            return False
        return True

    def discard(self, name: str) -> None:
        """Removes a damaged shard from the cache, so that it is fetched again."""
        self.path(name).unlink(missing_ok=True)

    def room_for(self, shards: Sequence[PackedFile]) -> bool:
        """Whether all the shards fit under the limit, not counting those of other data sets."""
        return sum(shard.size for shard in shards) <= self.limit

    def _reserve(self, shard: PackedFile) -> bool:
        """Reserves space before the shard is fetched, so that processes that fetch at once stay below the limit."""
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.path(shard.name)
        with FileLock(self.root / ".lock"):
            if target.exists() or _reservation(target).exists():
                return True
            kept = [entry for folder in self.root.iterdir() if folder.is_dir() for entry in _entries(folder)]
            foreign = sorted(
                (e for e in kept if e.path.parent != self.folder and e.idle > _IN_USE), key=lambda e: -e.idle
            )
            used = sum(entry.size for entry in kept)
            while used + shard.size > self.limit and foreign:
                oldest = foreign.pop(0)
                used -= oldest.size if oldest.evict() else 0
            coming = sum(e.size - e.written for e in kept)
            free = shutil.disk_usage(self.root).free - coming
            if used + shard.size > self.limit or free - shard.size < _DISK_MARGIN:
                return False
            _reservation(target).write_text(str(shard.size))
            return True


@dataclass(frozen=True)
class _Entry:
    """A shard in the cache, or one that is being fetched.

    Attributes:
        path: of the shard when whole.
        size: bytes, when whole.
        written: bytes on the disk.
        idle: seconds since its last use.
    """

    path: Path
    size: int
    written: int
    idle: float

    def evict(self) -> bool:
        """Removes the shard unless a process is fetching it. A process that has it open can read on."""
        try:
            with FileLock(_lock_file(self.path), timeout=0):
                for file in (self.path, _part(self.path), _reservation(self.path)):
                    file.unlink(missing_ok=True)
        except Timeout:
            return False
        return True


def _entries(folder: Path) -> list[_Entry]:
    now = time.time()
    found = []
    for path in {*folder.glob("*.tar"), *(p.with_suffix("") for p in folder.glob("*.tar.reserved"))}:
        present = next((p for p in (path, _part(path), _reservation(path)) if p.exists()), None)
        if present is None:
            continue
        try:
            status = present.stat()
            whole = present == path
            size = status.st_size if whole else int(_reservation(path).read_text() or 0)
        except FileNotFoundError:  # fetched whole or removed since the listing
            continue
        written = status.st_size if whole or present == _part(path) else 0
        found.append(_Entry(path, size, min(written, size), now - status.st_mtime))
    return found


def _lock_file(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _reservation(target: Path) -> Path:
    return target.with_name(f"{target.name}.reserved")


class CachedShards:
    """Reads ranges of remote shards: from the cache where a shard is in it, else over the network.

    A training starts at once by reading single images; `fill` fetches the shards in the background.
    """

    def __init__(self, cache: ShardCache, shards: Sequence[PackedFile]) -> None:
        self._cache = cache
        self._shards = {shard.name: shard for shard in shards}
        self._touched: dict[str, float] = {}
        self._no_ranges = False

    def __getstate__(self) -> tuple[ShardCache, list[PackedFile]]:
        return self._cache, list(self._shards.values())

    def __setstate__(self, state: tuple[ShardCache, list[PackedFile]]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def read(self, shard: str, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length) of a shard.

        Raises:
            StoreError: naming shard and address, if it cannot be read.
        """
        local = self._from_cache(shard, offset, length)
        if local is not None:
            return local
        entry = self._shards[shard]
        if not self._no_ranges:
            try:
                return self._cache.remote.read(shard, offset, offset + length, entry.size)
            except NoRangesError as error:
                _log.warning("%s; shards are fetched whole before they are read", error)
                self._no_ranges = True
        if not self._cache.fetch(entry):
            raise StoreError(
                f"{self.where(shard)}: the server gives only whole files, and the shard does not fit into the "
                f"cache of {self._cache.limit >> 20} MiB at {self._cache.root}; raise {LIMIT_VARIABLE}, free "
                "the disk, or use a server with range requests"
            )
        local = self._from_cache(shard, offset, length)
        return local if local is not None else self.read(shard, offset, length)

    def where(self, shard: str) -> str:
        """Address of a shard."""
        return self._cache.remote.where(shard)

    def damaged(self, shard: str) -> None:
        """Removes the local copy of a shard that gave other bytes than were packed."""
        if self._cache.path(shard).exists():
            _log.warning("%s: the copy in the cache is damaged; it is fetched again", self.where(shard))
            self._cache.discard(shard)

    def fill(self, threads: int, first: int = 0) -> threading.Event:
        """Fetches the shards that fit in the background, from shard `first` on; setting the event stops it.

        A shard that cannot be fetched is logged once; `read` tries again when it needs the shard.
        """
        stop = threading.Event()
        waiting = list(self._shards.values())
        waiting = waiting[first % len(waiting) :] + waiting[: first % len(waiting)] if waiting else []
        queue = iter(waiting)
        lock = threading.Lock()

        def work() -> None:
            while not stop.is_set():
                with lock:
                    shard = next(queue, None)
                if shard is None:
                    return
                try:
                    self._cache.fetch(shard, wait=False)
                except OSError as error:
                    _log.warning("not cached: %s", error)

        for _ in range(threads):
            threading.Thread(target=work, name="shard-cache", daemon=True).start()
        return stop

    def _from_cache(self, shard: str, offset: int, length: int) -> bytes | None:
        path = self._cache.path(shard)
        try:
            content = read_range(path, offset, length)
        except FileNotFoundError:
            return None
        now = time.monotonic()
        if now - self._touched.get(shard, -_TOUCH_EVERY) >= _TOUCH_EVERY:
            self._touched[shard] = now
            try:
                os.utime(path)
            except FileNotFoundError:
                pass
        return content


def read_range(path: Path, offset: int, length: int) -> bytes:
    """Bytes of a local file, by one positioned read. No descriptor is kept: there may be thousands of shards."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while length > 0 and (part := os.pread(descriptor, length, offset)):
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)
