"""Hashing files, and writing them so that they survive a power cut."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT)  # errors of a disk, or of a user's share of it
_CHUNK = 1 << 20
_TEMPORARY = re.compile(r"^\..+\.(?P<host>[^.]+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp$")
_FOREIGN_TEMPORARY_SECONDS = 24 * 3600.0  # age after which temporary files of other machines are removed


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Waits until the disk has a file's content, or a folder's names: the renames in it.

    File systems that cannot sync a folder are left as they are.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """While `path` is written: an error of the disk (full, or read-only) names the file.

    Python names the file if opening fails, not if writing does, and safetensors raises a class of its own.

    Raises:
        OSError: with `path` as its file name.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def write_atomically(target: Path, content: bytes | Callable[[Any], object]) -> None:
    """Writes a temporary file beside `target`, makes it durable, renames it: a reader sees the old file or the new.

    Args:
        target: its folder exists.
        content: the bytes, or a function that writes them into the open file it is given.

    Raises:
        OSError: a full or read-only disk, with `target` as its file name, whatever error `content` raised.
    """
    temporary = temporary_of(target)
    failed: list[OSError] = []
    try:
        with open(temporary, "wb", buffering=0) as raw:
            file = io.BufferedWriter(_Remembering(raw, failed), _CHUNK)
            file.write(content) if isinstance(content, bytes) else content(file)
            file.flush()
            os.fsync(raw.fileno())
        os.replace(temporary, target)
    except (OSError, RuntimeError) as error:
        # torch's writer replaces an error of the disk by a RuntimeError about positions in its archive
        cause = failed[0] if failed else error
        if not isinstance(cause, OSError) or cause.errno is None:
            raise
        raise OSError(cause.errno, os.strerror(cause.errno), str(target)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync(target.parent)


def temporary_of(target: Path) -> Path:
    """A new name beside `target` for what will be renamed to it, which `sweep_temporaries` knows."""
    return target.with_name(f".{target.name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def write_json(path: Path, document: Any, indent: int | None = None) -> None:
    """Writes JSON as `write_atomically`; a byte that is not UTF-8, as in a file name, becomes a JSON escape."""
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


class _Remembering(io.RawIOBase):
    """Writes to `raw` and remembers errors of the disk, for a writer that hides them."""

    def __init__(self, raw: io.FileIO, failed: list[OSError]) -> None:
        self._raw = raw
        self._failed = failed

    def writable(self) -> bool:
        """True; the buffer around it asks for this."""
        return True

    def write(self, data: Any) -> int | None:
        """As `raw`.

        Raises:
            OSError: as `raw`; it is noted.
        """
        try:
            return self._raw.write(data)
        except OSError as error:
            self._failed.append(error)
            raise


def sweep_temporaries(folder: Path, every: bool = False) -> list[Path]:
    """Removes the temporary files of processes that are gone; returns what it removed.

    Args:
        folder: the files lie in it, not below.
        every: nobody else writes there now, so those of this machine are old, also where their process number
            is now that of another process, as in a container that was started again.
    """
    host = _host()
    removed = []
    for path in sorted(folder.iterdir()):
        match = _TEMPORARY.match(path.name)
        if match is None:
            continue
        if match["host"] == host:
            stale = every or not _is_running(int(match["pid"]))
        else:
            stale = time.time() - path.stat().st_mtime > _FOREIGN_TEMPORARY_SECONDS
        if stale:
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
