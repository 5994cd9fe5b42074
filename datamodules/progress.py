"""How far long work is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

Progress = Callable[[int, int], None]  # done, in all: bytes of a file, or images
_LARGE = 32 << 20  # bytes; a smaller file is read before a bar would be seen


@contextmanager
def byte_bar(path: Path, asked: Progress | None = None) -> Iterator[Progress | None]:
    """Told the bytes that were read: `asked` itself, or a bar on stderr where that is a terminal."""
    size = path.stat().st_size
    if asked is not None or size < _LARGE:
        yield asked
        return
    # disable=None: not if stderr is no terminal
    with tqdm(
        total=size, unit="B", unit_scale=True, desc=f"reading {path.name}", file=sys.stderr, disable=None
    ) as bar:

        def advance(done: int, total: int) -> None:
            bar.update(done - bar.n)

        yield advance
