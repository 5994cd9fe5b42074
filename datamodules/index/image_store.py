"""Where image files lie: a folder here; shards, local or remote, in `datamodules.shards.reader`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class StoreError(OSError):
    """The bytes of a file cannot be had, or are not those that were stored; the message says what to do."""


class ImageStore(Protocol):
    """Hands out the bytes of an image by its name in an index. Its pickle is small: each worker process gets one."""

    def read(self, name: str) -> bytes:
        """The file's bytes.

        Raises:
            OSError: if it cannot be had, naming it.
        """
        ...

    def where(self, name: str) -> str:
        """The place of the file, for a message."""
        ...


@dataclass(frozen=True)
class Folder:
    """Plain files below `root`."""

    root: str

    def read(self, name: str) -> bytes:
        """The file's bytes."""
        path = Path(self.root, name)
        if path.exists() and not path.is_file():
            raise OSError("it is no regular file (a folder, pipe, socket or device)")
        return path.read_bytes()

    def where(self, name: str) -> str:
        """The path of the file."""
        return str(Path(self.root, name))
