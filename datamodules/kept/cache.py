"""Keeps what was read of a large data set as mapped files, and makes them anew when the data set changes.

In ZOO_CACHE (else detr-zoo below the user's cache folder), folder index/: `<place>.json` says which files a
data set had and which entry was made of them; `<place>-<digest>/` is the entry (`datamodules.kept.files`). A place
is a folder read in one way by one version of the code. Entries are renamed into place when whole, under a lock.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import msgspec
from filelock import FileLock

from datamodules.index.annotation_index import AnnotationIndex
from datamodules.index.growing_columns import Scratch
from datamodules.index.plain_json import decode, encode
from datamodules.index.source import Source
from datamodules.kept.files import open_source, write_source
from datamodules.kept.watch import Record, Watch
from zoo.storage.cache import cache_root
from zoo.storage.durable import FULL, write_atomically

_log = logging.getLogger(__name__)
# the code that decides what is in an index
_CODE = ("index/*.py", "images/files.py", "kept/watch.py", "reading/*.py", "formats/*.py", "formats/*.yaml")

_STRIDE = 1 << 20  # bytes

Build = Callable[[Scratch], Source]


class _Note(msgspec.Struct):
    """What `<place>.json` holds: the files of a data set and the entry that was made of them."""

    record: Record
    entry: str
    before: str = ""  # the entry that it replaced: a training that started earlier may still read it


def cache_folder() -> Path:
    """The folder of kept indices."""
    return cache_root() / "index"


def cached(way: tuple[object, ...], watch: Watch, build: Build) -> Source:
    """The data set as it was stored, or as `build` reads it, stored for the next time.

    Where it cannot be stored, it is read once by each process, and a warning says so.

    Args:
        way: how it is read, the folder, options.
        watch: the files it depends on.
        build: reads it, with its working columns in the scratch.

    Raises:
        ValueError: whatever `build` does, or if the files change while they are read.
        OSError: there is no room for the working columns, neither there nor in the folder of temporary files.
    """
    place = hashlib.sha256(repr((code_digest(), *way)).encode()).hexdigest()[:24]
    folder, root = cache_folder(), way[1]
    for known in [folder, *([_of_this_process()] if _of_this_process.cache_info().currsize else [])]:
        found = _opened(known, place, watch)
        if found is not None:
            return found
    refused = _refusal(folder)
    if refused is None:
        try:
            return _locked(folder, place, watch, build)
        except OSError as error:
            if error.errno not in FULL:
                raise
            refused = error
    _log.warning(
        "the index of %s is not kept, for %s cannot be written (%s); it is made anew each time; set ZOO_CACHE "
        "to a folder that can be, and has room",
        root, folder, refused.strerror or refused,
    )  # fmt: skip
    folder = _of_this_process()
    try:
        return _locked(folder, place, watch, build)
    except OSError as error:
        if error.errno not in FULL:
            raise
        told = (
            f"{error.strerror}; {root} cannot be read without room for its working columns: make some, or set"
        )
        raise OSError(
            error.errno, f"{told} ZOO_CACHE or TMPDIR to a folder that has it", str(folder)
        ) from error


def _refusal(folder: Path) -> OSError | None:
    """Why nothing can be written into the folder, which is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error


def _locked(folder: Path, place: str, watch: Watch, build: Build) -> Source:
    with FileLock(folder / f"{place}.lock"):
        return _opened(folder, place, watch) or _made(folder, place, watch, build)


def _opened(folder: Path, place: str, watch: Watch) -> Source | None:
    """The stored data set if it is whole and its files have not changed since; else None."""
    note = _read_note(folder, place)
    if note is None or not watch.unchanged(note.record):
        return None
    return _entry(folder / note.entry)


def _made(folder: Path, place: str, watch: Watch, build: Build) -> Source:
    """The entry for the files as they are now, stored before or made now; the caller holds the lock."""
    record = watch.record()
    entry = f"{place}-{watch.digest()[:24]}"
    found = _entry(folder / entry)
    if found is None:
        making = folder / f".making-{place}"
        shutil.rmtree(making, ignore_errors=True)  # of a process that was killed
        making.mkdir()
        try:
            source = build(Scratch(making))
            if any(_leads_out(index) for index in source.splits.values()):
                return source  # not kept: images outside the folder are not watched
            write_source(source, making / entry)
            if watch.record().facts != record.facts:
                raise ValueError(
                    "the data set was changed while it was read; start again when no program writes to it"
                )
            shutil.rmtree(folder / entry, ignore_errors=True)  # damaged, or it would have been opened
            (making / entry).rename(folder / entry)
        finally:
            shutil.rmtree(making, ignore_errors=True)
        found = open_source(folder / entry)
    old = _read_note(folder, place)
    before = old.entry if old is not None and old.entry != entry else (old.before if old else "")
    write_atomically(folder / f"{place}.json", encode(_Note(record, entry, before)))
    for other in folder.glob(f"{place}-*"):
        if other.name not in (entry, before):
            shutil.rmtree(other, ignore_errors=True)
    return found


def _read_note(folder: Path, place: str) -> _Note | None:
    try:
        return decode((folder / f"{place}.json").read_bytes(), _Note)
    except (OSError, ValueError):
        return None


def _entry(folder: Path) -> Source | None:
    try:
        return open_source(folder)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("a stored index is damaged and made again: %s", error)
        return None


def _leads_out(index: AnnotationIndex) -> bool:
    """Whether an image lies outside the folder of the data set."""
    letters = index.columns.name_bytes
    return any(b"../" in letters[i : i + _STRIDE + 2].tobytes() for i in range(0, len(letters), _STRIDE))


@cache
def code_digest() -> str:
    """Digest of the code that decides what is in an index: a new version of it reads the data set again."""
    package = Path(__file__).parents[1]
    files = sorted(file for pattern in _CODE for file in package.glob(pattern))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@cache
def _of_this_process() -> Path:
    """A temporary folder that is removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="detr-zoo-index-")
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not a forked worker
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return Path(folder)
