"""Times of things that are compared: in turns over several rounds, so that a load of the machine meets all alike."""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

PAUSE_SECONDS = 0.1
MOST_RUNS = 50


@dataclass
class Times:
    """Milliseconds of each run; one entry a run in both lists."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, wall: float, cpu: float) -> None:
        """One more run."""
        self.wall.append(wall)
        self.cpu.append(cpu)

    def summary(self) -> dict[str, float]:
        """`median_ms`, `p99_ms` (the slowest of fewer than 100 runs) and `cpu_ms`, the median over all threads."""
        return {
            "median_ms": statistics.median(self.wall),
            "p99_ms": percentile(self.wall, 0.99),
            "cpu_ms": statistics.median(self.cpu),
        }


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least `share` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


class Laps:
    """Wall and CPU times of the stages of runs; waits for the device at the end of each stage."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stages: dict[str, Times] = defaultdict(Times)
        self._now = (0.0, 0.0)

    def begin(self) -> None:
        """Before the first stage of a run."""
        self._now = self._read()

    def end(self, stage: str) -> None:
        """After a stage; the next one begins."""
        before, self._now = self._now, self._read()
        wall, cpu = (1000 * (now - then) for now, then in zip(self._now, before, strict=True))
        self.stages[stage].add(wall, cpu)

    def forget(self) -> None:
        """All runs until now: they were the warm-up."""
        self.stages.clear()

    def together(self) -> Times:
        """Of all stages of a run."""
        stages = list(self.stages.values())
        return Times(
            [sum(runs) for runs in zip(*(s.wall for s in stages), strict=True)],
            [sum(runs) for runs in zip(*(s.cpu for s in stages), strict=True)],
        )

    def _read(self) -> tuple[float, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter(), time.process_time()


def in_turns(contestants: Sequence[tuple[Callable[[], object], Laps]], rounds: int, seconds: float) -> None:
    """Gives each contestant a turn a round: a pause, a run that is forgotten, then runs that count.

    Every second round goes backwards. A contestant writes its times into its own `Laps`.

    Args:
        contestants: (what runs once, where its times go).
        rounds: how many.
        seconds: of a turn, in which there is at least one run and at most `MOST_RUNS`.
    """
    for number in range(rounds):
        for run, laps in contestants if number % 2 == 0 else reversed(contestants):
            time.sleep(PAUSE_SECONDS)
            kept, laps.stages = laps.stages, defaultdict(Times)
            run()
            laps.stages = kept
            begun, runs = time.perf_counter(), 0
            while not runs or (runs < MOST_RUNS and time.perf_counter() - begun < seconds):
                run()
                runs += 1


def processor_name() -> str:
    """As the system writes it, e.g. `AMD EPYC 9554`; else the kind of processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
