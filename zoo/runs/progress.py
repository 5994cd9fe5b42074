"""How far a long command is: a bar where somebody watches, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from datamodules.progress import Meter, image_bar, watched
from zoo.runs.console import Console

_SAID_EVERY = 30.0  # seconds


@contextmanager
def progress(doing: str, unit: str, console: Console, kept: int = 0) -> Iterator[Meter]:
    """A meter to be called with (done, total), total 0 where it is not known.

    Args:
        doing: stands before the bar.
        unit: of what is counted, as a plural.
        console: for the lines.
        kept: how many were done before, which is no work of this time.
    """
    begun = said = time.monotonic()
    with image_bar(doing) as meter:

        def at(done: int, total: int) -> None:
            nonlocal said
            meter(done, max(done, total))
            now = time.monotonic()
            if now - said > _SAID_EVERY and not watched():
                said = now
                of_all = f" of {total}" if total else ""
                rate = (done - kept) / (now - begun)
                console.say(f"progress    {done}{of_all} {unit}, {rate:.1f} {unit}/s")

        yield at
