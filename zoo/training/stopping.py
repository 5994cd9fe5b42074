"""SIGTERM and Ctrl-C during a training end it at the next point where a checkpoint can be written.

So does SIGUSR1, which SLURM sends before a job's time is up: Lightning would save inside the signal's handler, which
is inside a step. Who sends it also queues the job again.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

from lightning.pytorch.utilities.exceptions import SIGTERMException

_SIGNALS = (signal.SIGTERM, signal.SIGINT, *((signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ()))
_NOTED = b"\nending after this step; Ctrl-C once more ends at once\n"


class StopRequest:
    """Within this context the first signal is noted, and a second Ctrl-C raises at once.

    Attributes:
        signal: the one that came first; None as long as none has.
        apart: whether the processes of a training leave, or have nothing left to do together: from then on one that
            is gone is missed by none.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.apart = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def install(self) -> None:
        """Installs the handlers; again after Lightning, whose own handler communicates with other ranks."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._note)

    def obey(self) -> NoReturn:
        """Ends the training as the signal asks; of several processes only where all do."""
        self.apart = True
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SIGTERMException

    def obey_if_asked(self) -> None:
        """Ends it if a signal has come."""
        if self.signal is not None:
            self.obey()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data worker receives Ctrl-C too; its parent ends it
            if self.signal is not None:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
        elif number == signal.SIGINT:
            if self.signal is not None:
                raise KeyboardInterrupt
            os.write(2, _NOTED)
        self.signal = self.signal or number
