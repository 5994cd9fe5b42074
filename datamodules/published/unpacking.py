"""Unpacking downloaded archives: as a whole or not at all, and never outside of the target folder."""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, cast

from zoo.storage.durable import FULL

_CHUNK = 1 << 20
_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, struct.error, EOFError,
    RuntimeError, UnicodeError, OverflowError, MemoryError,
)  # fmt: skip
# pictures are packed 1:1 and annotations 10:1; what grows much more is made to fill the disk
_LARGEST_RATIO = 100
_SMALLEST_LIMIT = 64 << 20  # bytes
_MOST_MEMBERS = 10_000_000  # the largest data set here has 2 million files


class ArchiveError(ValueError):
    """An archive is damaged, or holds what no data set needs; nothing of it was unpacked."""


def unpack(archive: Path, into: Path, staging: Path) -> list[str]:
    """Unpacks a .zip or .tar.gz; returns what is at its top.

    Everything is written to `staging`, with every checksum of the archive verified, then moved, so that
    `into` never has half a file. Files that are there are replaced, folders are joined.

    Args:
        archive: the file.
        into: made if it is not there.
        staging: a folder on the same disk that does not exist yet; it is removed afterwards.

    Raises:
        ArchiveError: the archive is damaged, has a link, a device, or a path that leaves the folder, or holds a
            hundred times its own size.
        OSError: the disk is full, or cannot be written.
    """
    room = _Room(archive)
    staging.mkdir(parents=True)
    members = _zip_members if archive.name.endswith(".zip") else _tar_members
    try:
        for name, content in members(archive, room):
            room.take_member()
            _write(content, staging / name)
        top = sorted(entry.name for entry in staging.iterdir())
        if not top:
            raise ArchiveError(f"{archive} is empty")
        into.mkdir(parents=True, exist_ok=True)
        _move(staging, into)
        return top
    except ArchiveError:
        raise
    except _DAMAGED as error:
        raise ArchiveError(f"{archive} is no whole archive: {error}") from error
    except OSError as error:
        if error.errno in FULL:
            raise OSError(
                f"the disk of {into} became full while {archive.name} was unpacked; what was unpacked of it is "
                "removed again. Make room and run the same command again"
            ) from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


class Readable(Protocol):
    """What a file of an archive is copied from."""

    def read(self, count: int, /) -> bytes:
        """At most `count` bytes."""


class _Room:
    """How much an archive may still unfold to."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._bytes = max(_SMALLEST_LIMIT, _LARGEST_RATIO * archive.stat().st_size)
        self._members = _MOST_MEMBERS

    def take(self, count: int) -> None:
        """Raises ArchiveError where `count` more bytes are too many."""
        self._bytes -= count
        if self._bytes < 0:
            raise ArchiveError(
                f"{self._archive} unfolds to more than {_LARGEST_RATIO} times its size; it is not unpacked: fetch the "
                "published file again"
            )

    def take_member(self) -> None:
        """Raises ArchiveError where one more file is too many."""
        self._members -= 1
        if self._members < 0:
            raise ArchiveError(f"{self._archive} holds more than {_MOST_MEMBERS} files; it is not unpacked")


class _Counted:
    """A stream that takes what is read of it from the room; of a tar its headers too, which may be as long as files."""

    def __init__(self, stream: Readable, room: _Room) -> None:
        self._stream = stream
        self._room = room

    def read(self, count: int, /) -> bytes:
        """At most `count` bytes."""
        content = self._stream.read(count)
        self._room.take(len(content))
        return content


def _zip_members(archive: Path, room: _Room) -> Iterator[tuple[PurePosixPath, Readable]]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ArchiveError(f"{archive} has {info.filename!r}, a link or device; it is not unpacked")
            name = _inside(archive, info.filename)
            if not info.is_dir():
                with opened.open(info) as content:
                    yield name, _Counted(content, room)


def _tar_members(archive: Path, room: _Room) -> Iterator[tuple[PurePosixPath, Readable]]:
    with gzip.open(archive) as stream:
        with tarfile.open(fileobj=cast(IO[bytes], _Counted(stream, room)), mode="r|") as opened:
            for member in opened:
                name = _inside(archive, member.name)
                content = opened.extractfile(member) if member.isreg() else None
                if content is not None:
                    yield name, content
                elif not member.isdir():
                    raise ArchiveError(f"{archive} has {member.name!r}, a link or device; it is not unpacked")
        while rest := stream.read(_CHUNK):  # to the end, where the checksum is
            room.take(len(rest))


def _inside(archive: Path, name: str) -> PurePosixPath:
    """The name as a path below the folder; neither Unix nor Windows paths may lead out of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise ArchiveError(f"{archive} has {name!r}, which leads out of the folder; it is not unpacked")
    return path


def _write(content: Readable, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as file:
        shutil.copyfileobj(cast(IO[bytes], content), file, _CHUNK)


def _move(source: Path, into: Path) -> None:
    for entry in sorted(source.iterdir()):
        target = into / entry.name
        if entry.is_dir() and target.is_dir():
            _move(entry, target)
            continue
        try:
            os.replace(entry, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _move_over(entry, target)


def _move_over(entry: Path, target: Path) -> None:
    """Moves a file, also to another disk that a folder of the data set links to, never leaving half a file there."""
    if entry.is_dir():
        target.mkdir()
        _move(entry, target)
        return
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(entry, part)
    os.replace(part, target)
