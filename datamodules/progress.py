"""Reports how far the reading, decoding or copying of a data set is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

Meter = Callable[[int, int], None]  # called with (done, total): bytes of a file, or images
_LARGE = 32 << 20  # bytes; a smaller file is read before a bar would be seen


@contextmanager
def byte_bar(path: Path, asked: Meter | None = None) -> Iterator[Meter | None]:
    """A meter for the bytes of a file: `asked` itself, else, for a large file, a bar on a terminal's stderr."""
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
