"""Tells whether the files of a data set are still those that an index was made of.

What is compared: size, time of change, inode of files, and the same of folders, whose times change when an
entry comes, goes or is renamed. A file system that does not keep the times of folders (some that show object
stores as folders) does not show such a change; there, remove the cached index by hand.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

_TICK = 2_000_000_000  # ns; a file changed twice within the clock's resolution may look unchanged
_READ = 1 << 20

Facts = list[int]  # size (0 for a folder), mtime_ns, ctime_ns, inode; empty: it is not there


class Record(msgspec.Struct, frozen=True):
    """The files and folders as they were when an index was made.

    Attributes:
        facts: path -> its facts; of many files one entry with a digest instead of a path.
        settled: nothing had been changed just before, so that equal facts mean equal files.
    """

    facts: dict[str, Facts]
    settled: bool


class Watch(Protocol):
    """The files that an index depends on."""

    def record(self) -> Record:
        """The facts of the files as they are now."""
        ...

    def unchanged(self, record: Record) -> bool:
        """Whether the files are still as in `record`."""
        ...

    def digest(self) -> str:
        """Digest of what the index depends on; equal digests make equal indices."""
        ...


@dataclass(frozen=True)
class LayoutWatch:
    """Annotation files, and folders of images of which only the names matter: sizes are those of the annotations.

    A check costs a system call for each annotation file and image folder. An image that is overwritten in
    place is not noticed, for nothing of its content is in the index.

    Attributes:
        files: annotation files; their content counts.
        folders: folders of images and their subfolders; the names of their entries count. A missing folder
            counts too, for it may be made later.
    """

    files: Sequence[Path]
    folders: Sequence[Path]

    def record(self) -> Record:
        """The facts of the annotation files and of every folder."""
        below = (place for f in self.folders for place, _ in _walk(str(f)))
        places = dict.fromkeys([*map(str, self.files), *map(str, self.folders), *below])
        return _record({place: _facts_at(place) for place in places})

    def unchanged(self, record: Record) -> bool:
        """Whether every file and folder is as it was and no other came; never if one had just been changed."""
        known = {str(place) for place in (*self.files, *self.folders)} <= record.facts.keys()
        return record.settled and known and all(_facts_at(p) == facts for p, facts in record.facts.items())

    def digest(self) -> str:
        """BLAKE2b, twice as fast as sha256, over the annotation files and the names in the folders."""
        digest = hashlib.blake2b(digest_size=32)
        for file in self.files:
            digest.update(f"{file}\0".encode("utf-8", "surrogateescape"))
            with file.open("rb") as stream:
                while block := stream.read(_READ):
                    digest.update(block)
        for folder in self.folders:
            for place, entries in _walk(str(folder)):
                names = "\0".join(sorted(e.name for e in entries))
                digest.update(f"{place}\0{names}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True)
class TreeWatch:
    """Everything below a folder, for formats whose images are opened: each file's facts count."""

    root: Path

    def record(self) -> Record:
        """One entry: the digest of the facts of all files, and the newest of their times."""
        digest, newest = hashlib.sha256(), 0
        for place, entries in _walk(str(self.root)):
            for entry in sorted(entries, key=lambda e: e.name):
                try:
                    facts = [] if entry.is_dir() else _facts(entry.stat())
                except OSError:  # a link to nowhere
                    facts = []
                newest = max(newest, *facts[1:3]) if facts else newest
                line = f"{place}\0{entry.name}\0{facts}\0"
                digest.update(line.encode("utf-8", "surrogateescape"))
        return _record({digest.hexdigest(): [0, newest, newest, 0]})

    def unchanged(self, record: Record) -> bool:
        """Whether every file is as it was; never if one had just been changed at that time."""
        return record.settled and self.record().facts == record.facts

    def digest(self) -> str:
        """Digest of the facts: file contents are not read a second time."""
        return next(iter(self.record().facts))


def _facts(found: os.stat_result) -> Facts:
    size = found.st_size if not stat.S_ISDIR(found.st_mode) else 0
    return [size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _facts_at(place: str) -> Facts:
    try:
        return _facts(os.stat(place))
    except OSError:
        return []


def _record(facts: dict[str, Facts]) -> Record:
    newest = max((max(own[1], own[2]) for own in facts.values() if own), default=0)
    return Record(facts, settled=newest < time.time_ns() - _TICK)


def _walk(
    folder: str, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Every folder from `folder` down, links followed, with its entries; one that is not there has none."""
    try:
        own = os.stat(folder)
        entries = list(os.scandir(folder))
    except OSError:
        return
    here = (own.st_dev, own.st_ino)
    if here in above:  # a link to a folder above
        return
    yield folder, entries
    below = sorted(entry.name for entry in entries if entry.is_dir())
    del entries
    for name in below:
        yield from _walk(f"{folder}/{name}", above | {here})
