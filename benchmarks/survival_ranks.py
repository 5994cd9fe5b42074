"""Trainings of several processes: each of `survival.py`'s rows of ranks ends them at every moment in turn.

Lightning starts the other ranks as it always does; only that they are no new Pythons but forks, made before, of this
process, which has imported everything. One rank waits at the moment until the signal has been sent, so that the
others are in the middle of what they do together, or wait for it there.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from survival_trial import KILL, Start, Trial

from zoo.cli.main import run_command

LONGEST_SECONDS = 60.0  # that a rank waits for its signal
_MODULE = ("zoo.training.module", "DetectionModule")
_SAVER = ("zoo.training.saving", "CheckpointSaver")
# name: (module, class, the call that waits first, and where: of the call's first argument)
MOMENTS: dict[str, tuple[str, str, str, Callable[[Any], bool]]] = {
    "start": ("zoo.runs.train", "", "refuse_missing_data", lambda recipe: True),
    "connected": (*_SAVER, "setup", lambda saver: True),
    "before the first step": ("lightning.pytorch", "Trainer", "_run_stage", lambda trainer: True),
    "step": (*_MODULE, "training_step", lambda module: module.global_step == 2),
    "end of a step": (*_SAVER, "on_train_batch_end", lambda saver: True),
    "checkpoint": ("lightning.pytorch", "Trainer", "save_checkpoint", lambda trainer: trainer.global_step == 3),
    "validation": (*_MODULE, "validation_step", lambda module: module.trainer.state.fn == "fit"),
    "last validation": (*_MODULE, "validation_step",
        lambda module: module.trainer.state.fn == "fit" and module.trainer.current_epoch == 1),
    "end of the training": (*_SAVER, "on_train_end", lambda saver: True),
    "scores": (*_MODULE, "validation_step", lambda module: module.trainer.state.fn == "validate"),
    "report": ("zoo.runs.report", "", "hardware", lambda trainer: True),
    "end": ("zoo.training.stopping", "StopRequest", "__exit__", lambda stop: True),
}  # fmt: skip


class Fork:
    """As much of `subprocess.Popen` as Lightning asks of another rank: a fork that waits until it is begun."""

    def __init__(self, arguments: list[str], moment: str, before: list[Fork]) -> None:
        reads, self._writes = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            for end in (self._writes, *(fork._writes for fork in before)):
                os.close(end)
            code = 99
            try:
                with open(reads) as told:
                    environment = told.read()
                os.environ.update(json.loads(environment or "{}"))
                code = rank(arguments, moment) if environment else 0
            finally:
                os._exit(code)
        os.close(reads)

    def begin(self, environment: dict[str, str]) -> Fork:
        """Of the rank that these variables name."""
        with open(self._writes, "w") as told:
            json.dump(environment, told)
        return self

    def poll(self) -> int | None:
        """Its exit code, once it has ended."""
        if self.returncode is None:
            with contextlib.suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """By SIGKILL."""
        self.send_signal(KILL)


def rank(arguments: list[str], moment: str) -> int:
    """The command in one rank, which waits if the moment, `RANK NAME`, is its own; its exit code."""
    number = os.environ.get("LOCAL_RANK", "0")
    rank_zero_only.rank = int(number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    whose, _, name = moment.partition(" ")
    if whose == number:
        wait_before(*MOMENTS[name])
    return run_command(arguments)


def wait_before(module: str, owner: str, name: str, here: Callable[[Any], bool]) -> None:
    """Makes the first such call wait until the signal was sent: as long as a file stands, which it writes."""
    found = importlib.import_module(module)
    holder = getattr(found, owner) if owner else found
    function, waited = getattr(holder, name), []

    @functools.wraps(function)
    def waiting(first: Any, *arguments: Any, **options: Any) -> Any:
        if not waited and here(first):
            waited.append(True)
            place, until = Path("moment"), time.monotonic() + LONGEST_SECONDS
            place.write_text(str(os.getpid()))
            while place.is_file() and time.monotonic() < until:
                time.sleep(0.01)
        return function(first, *arguments, **options)

    setattr(holder, name, waiting)


class Rank(Start):
    """The first process of a training of several."""

    def __init__(self, folder: Path, arguments: list[str], ranks: int, moment: str) -> None:
        self.ranks, self.moment, self.place = ranks, moment, folder / "moment"
        self.place.unlink(missing_ok=True)
        super().__init__(folder, arguments)

    def command(self, arguments: list[str]) -> int:
        """In the new process: forks the others, then trains."""
        forks: list[Fork] = []
        while len(forks) < self.ranks - 1:
            forks.append(Fork(arguments, self.moment, forks))
        subprocess_script.subprocess = SimpleNamespace(  # type: ignore[attr-defined]
            Popen=lambda command, env, cwd: forks.pop(0).begin(env)
        )
        return rank(arguments, self.moment)

    def send(self, signals: tuple[int, ...], to: str = "first") -> bool:
        """As of any; who waits then goes on."""
        sent = super().send(signals, to)
        self.place.unlink(missing_ok=True)
        return sent

    def stacks(self) -> str:
        """Of all threads of all ranks."""
        before = len(self.said())
        for pid in self.living():
            os.kill(pid, signal.SIGUSR2)
        time.sleep(1)
        return self.said()[before:]


class Ranks(Trial):
    """A training of several processes, which are sent the signals at each of the moments in turn."""

    def run(self, kills: int) -> None:
        """As of any."""
        self.kills = kills
        super().run(kills)

    def _start(self, folder: Path, arguments: list[str]) -> Rank:
        turn, ranks = self.row.kills, self.row.changes["trainer.devices"]
        whose = {"first": 0, "last": ranks - 1, "all": turn % ranks}[self.row.to]
        alone = folder.name in ("alone", "timed") or turn == self.kills
        return Rank(
            folder, arguments, ranks, "" if alone else f"{whose} {list(MOMENTS)[turn % len(MOMENTS)]}"
        )

    def _wait(self, start: Start, seconds: float) -> None:
        end = time.time() + self.longest
        while not start.place.is_file() and time.time() < end and not start.wait(0.01):  # type: ignore[attr-defined]
            pass

    def _stuck(self, start: Start) -> str:
        return start.stacks()  # type: ignore[attr-defined, no-any-return]

    def _ended_as_asked(self, folder: Path, start: Start) -> bool:
        """With the signal's code, or an error of one line where another process was ended before it could agree."""
        numbers = [number for number in self.row.signals if number != KILL]
        said, codes = start.said(), {2, *(128 + n for n in numbers), *(-n for n in numbers)}
        told = re.findall(r"^error: .*$", said, re.MULTILINE)
        if start.code not in codes or "Traceback" in said or len(told) > 1:
            return self._fault(f"{start.log.name} ({start.moment}): exit code {start.code}: {said[-1500:]}")  # type: ignore[attr-defined]
        return True
