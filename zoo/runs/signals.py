"""SIGTERM ends a command with exit code 143, SIGUSR1 a training with 138.

A training checks for them between two steps (`zoo.training.stopping`).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


class Terminated(SystemExit):
    """SIGTERM or SIGUSR1 arrived; a script that trains ends by it as the command does: 143, 138."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(128 + number)
        self.signal = number


class Interrupted(BaseException):
    """Ctrl-C, with what was written until then, or empty. No KeyboardInterrupt: Typer would drop its message."""


class Told(KeyboardInterrupt):
    """Ctrl-C of which the user has been told all: what is kept, and how to go on."""


@contextmanager
def leaving_nothing(*outputs: Path | None) -> Iterator[None]:
    """Inside, Ctrl-C says that nothing was written if none of the outputs exists or has anything in it."""
    try:
        yield
    except KeyboardInterrupt as error:
        written = [out for out in outputs if out is not None and _holds_anything(out)]
        rest = f"; look at {', '.join(map(str, written))}" if written else "; nothing was written"
        raise Interrupted(f"interrupted{rest}") from error


def _holds_anything(output: Path) -> bool:
    place = output.expanduser()
    return any(place.iterdir()) if place.is_dir() else place.exists()


@contextmanager
def raising() -> Iterator[None]:
    """Inside, SIGTERM raises `Terminated`; afterwards it does what it did before."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated
