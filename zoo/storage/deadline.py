"""A call that is waited for no longer than a deadline, whatever the other side does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillRunning  # the builtin one only from Python 3.11 on
from typing import TypeVar

_T = TypeVar("_T")


class Deadline:
    """Runs calls one at a time in a thread; one that is late goes on alone, and no other begins beside it.

    The timeouts of sockets do not serve: they count from the last byte, and a server may send one now and then.
    """

    def __init__(self) -> None:
        self._late: threading.Thread | None = None

    def call(self, function: Callable[[], _T], seconds: float) -> _T:
        """What `function` returns or raises.

        Raises:
            TimeoutError: it takes longer, or an earlier one has not ended yet. It may still do its work.
        """
        if self._late is not None and self._late.is_alive():
            raise TimeoutError("it has not answered an earlier call yet")
        outcome: Future[_T] = Future()
        thread = threading.Thread(target=_run, args=(function, outcome), daemon=True)
        thread.start()
        try:
            return outcome.result(seconds)
        except StillRunning:
            if outcome.done():
                raise
            self._late = thread
            raise TimeoutError(f"no answer within {seconds:g} s") from None


def _run(function: Callable[[], _T], outcome: Future[_T]) -> None:
    try:
        outcome.set_result(function())
    except BaseException as error:  # it is raised where the outcome is read
        outcome.set_exception(error)
