"""What a job has done so far: a file beside its output that grows by a line a batch and survives any end.

The first line says which job it is. A process that is killed leaves at most one line cut off, which is dropped and done
again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from zoo.storage.durable import written

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None  # type: ignore[assignment]

Line = dict[str, Any]
_START = b'{"job":'


class Journal:
    """The open file. Use as a context.

    Args:
        path: of the file; made if absent.

    Raises:
        ValueError: another process writes it, or it is no journal.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[int, tuple[int, int]] = {}  # of a batch: where its line is, and how long
        self.job: Line | None = None
        with written(path):
            self._file: BinaryIO = open(path, "a+b", buffering=0)
        try:
            self._lock()
            self._recover()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    @property
    def done(self) -> Mapping[int, object]:
        """The numbers of the batches that are finished."""
        return self._places

    def begin(self, job: Line) -> None:
        """Says which job it is."""
        self.job = {"job": job}
        self._append(self.job)

    def add(self, batch: int, found: Line) -> None:
        """A batch is finished; a second time is not noted."""
        if batch not in self._places:
            self._places[batch] = self._append({"batch": batch, **found})

    def lines(self) -> Iterator[Line]:
        """The batches in the order of their numbers, one in memory at a time."""
        with open(self.path, "rb") as file:
            for batch in sorted(self._places):
                start, length = self._places[batch]
                file.seek(start)
                yield json.loads(file.read(length))

    def remove(self) -> None:
        """The job is finished."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _append(self, line: Line) -> tuple[int, int]:
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
        content = text.encode("utf-8", "backslashreplace") + b"\n"
        start = self._file.seek(0, os.SEEK_END)
        with written(self.path):
            rest = memoryview(content)
            while rest:
                rest = rest[self._file.write(rest) :]
        return start, len(content)

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{self.path} is being written by another process; wait for it, or give another --output"
            ) from error
        except OSError:  # a file system without locks
            return

    def _recover(self) -> None:
        """Reads what is there and drops what is cut off."""
        end = 0
        with open(self.path, "rb") as file:
            for content in file:
                line = _parsed(content)
                if line is None:
                    break
                if self.job is None:
                    self.job = line
                else:
                    self._places[line["batch"]] = (end, len(content))
                end += len(content)
            file.seek(0)
            start = file.read(len(_START))
        if not _START.startswith(start):
            raise ValueError(f"{self.path} is not what an interrupted zoo predict leaves; remove it")
        self._file.truncate(end)


def _parsed(content: bytes) -> Line | None:
    if not content.endswith(b"\n"):
        return None
    with contextlib.suppress(ValueError):
        line = json.loads(content)
        if isinstance(line, dict):
            return line
    return None
