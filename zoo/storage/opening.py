"""Opening files that others made: a pipe or a device, which may never end, is refused before it is read."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO


class NoFileError(ValueError):
    """A pipe, a socket or a device stands where a file should."""


def open_file(path: Path | str) -> BinaryIO:
    """A regular file to read bytes from.

    Raises:
        NoFileError: it is a pipe, a socket or a device.
        OSError: it cannot be opened.
    """
    stream = open(path, "rb", opener=_without_waiting)
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise NoFileError(f"{path} is a pipe or a device, not a file; remove it")
    return stream


def read_file(path: Path | str) -> bytes:
    """The bytes of a regular file; raises as `open_file`."""
    with open_file(path) as stream:
        return stream.read()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # else opening a pipe waits for a writer
