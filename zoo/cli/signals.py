"""SIGTERM ends a command with exit code 143; during a training only between two steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(BaseException):
    """SIGTERM arrived; a BaseException, so that nothing on the way mistakes it for a fault."""


_deferred = False


@contextmanager
def raising() -> Iterator[None]:
    """Inside, SIGTERM raises `Terminated`; afterwards it does what it did before."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def deferred() -> Iterator[None]:
    """While Lightning trains, it notes the signal itself and stops where a checkpoint is consistent."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False


def _terminate(signum: int, frame: FrameType | None) -> None:
    if not _deferred:
        raise Terminated
