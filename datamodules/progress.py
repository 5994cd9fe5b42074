"""Reports how far the reading, decoding or copying of a data set is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Meter = Callable[[int, int], None]  # called with (done, total): bytes of a file, or images
_LARGE = 32 << 20  # bytes; a smaller file is read before a bar would be seen


def watched() -> bool:
    """Whether somebody sees a bar on stderr while it moves: in a terminal or a notebook."""
    return sys.stderr.isatty() or "ipykernel.zmqshell" in sys.modules


@contextmanager
def image_bar(what: str = "images", *, shown: bool = True, leave: bool = False) -> Iterator[Meter]:
    """A meter that moves a bar of images while somebody watches.

    Args:
        what: is done with the images; stands before the bar.
        shown: false for no bar.
        leave: whether the bar stays when it is done.
    """
    with _bar(desc=what, unit="image", disable=not shown or not watched(), leave=leave) as advance:
        yield advance


@contextmanager
def byte_bar(path: Path, asked: Meter | None = None) -> Iterator[Meter | None]:
    """A meter for the bytes of a file: `asked` itself, else a bar where the file is large and somebody watches."""
    if asked is not None or path.stat().st_size < _LARGE:
        yield asked
        return
    with _bar(unit="B", unit_scale=True, desc=f"reading {path.name}", disable=not watched()) as advance:
        yield advance


@contextmanager
def _bar(**options: Any) -> Iterator[Meter]:
    from tqdm.auto import tqdm  # a widget in a notebook

    with tqdm(file=sys.stderr, **options) as bar:

        def advance(done: int, total: int) -> None:
            if bar.total != total:
                bar.reset(total)  # the widget takes its length from here alone
            bar.update(done - bar.n)

        yield advance
