"""Columns that grow while a data set is read: in memory, or in nameless temporary files where it is large."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

BLOCK = 1 << 18  # entries that are worked on at a time


class Scratch:
    """Makes growing columns, all in memory or all on the disk.

    Args:
        folder: where temporary files go, a real disk; None: columns lie in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def column(self, dtype: DTypeLike, width: int = 1) -> Column:
        """An empty column of entries of `width` numbers."""
        return Column(self.folder, dtype, width)


class Column:
    """A column that grows at its end. `array` is a view of it: do not grow the column after taking one."""

    def __init__(self, folder: Path | None, dtype: DTypeLike, width: int = 1) -> None:
        self._dtype = np.dtype(dtype)
        self._width = width
        self._bytes = bytearray()
        self._file = None if folder is None else tempfile.TemporaryFile(dir=folder)
        self._size = 0  # bytes
        self._array: NDArray[Any] | None = None

    def __len__(self) -> int:
        return self._size // (self._dtype.itemsize * self._width)

    def extend(self, values: NDArray[Any]) -> None:
        """Adds entries."""
        self.write(np.ascontiguousarray(values, dtype=self._dtype).data)

    def write(self, raw: Any) -> None:
        """Adds entries as bytes."""
        view = memoryview(raw).cast("B") if len(raw) else b""
        if self._file is None:
            self._bytes += view
        else:
            self._file.write(view)
        self._size += len(view)

    def array(self) -> NDArray[Any]:
        """All entries: [n], or [n, width]."""
        if self._array is None:
            self._array = self._view()
        return self._array

    def _view(self) -> NDArray[Any]:
        if not self._size:
            flat = np.zeros(0, dtype=self._dtype)
        elif self._file is None:
            flat = np.frombuffer(self._bytes, dtype=self._dtype)
        else:
            self._file.flush()
            flat = np.asarray(
                np.memmap(self._file, dtype=self._dtype, mode="r+")
            )  # memmap's own slices are slow
            self._file.close()
        return flat if self._width == 1 else flat.reshape(-1, self._width)


def filled(scratch: Scratch, dtype: DTypeLike, length: int) -> NDArray[Any]:
    """A column of zeros to be written in any order.

    Raises:
        OSError: the disk is full.
    """
    if scratch.folder is None or not length:
        return np.zeros(length, dtype=dtype)
    with tempfile.TemporaryFile(dir=scratch.folder) as file:
        size = np.dtype(dtype).itemsize * length
        if hasattr(
            os, "posix_fallocate"
        ):  # a mapped page that finds no room later would end the process (SIGBUS)
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        return np.asarray(np.memmap(file, dtype=dtype, mode="r+", shape=(length,)))
