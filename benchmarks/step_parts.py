"""What does each of our parts bring to a training step on a CPU?

The steps of train_step.py, ours, with one part switched off at a time, in turns with all of them on; process CPU time.
    python benchmarks/step_parts.py [--families detr] [--rounds 5] [--threads 1] [--side 256] [--tiny] [--json]
A part's ratio is the time without it over the time with it. The loss is the difference of loss.py at the step's batch.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import loss
import torch
from pairs import reasonable_norms
from torch import Tensor
from train_step import FAMILIES, OBJECTS, PADDED, our_step, random_batch, recipe_module

from zoo.layers import backbone, deformable_attention, onednn
from zoo.runs.timing import processor_name

Off = Callable[[], AbstractContextManager[Any]]


def never(module: Any, name: str) -> Off:
    """A kernel's own path on the CPU is not taken."""
    return lambda: mock.patch.object(module, name, return_value=False)


@contextmanager
def tensor_by_tensor() -> Iterator[None]:
    """The moving average without the kernel for many tensors."""

    def lerp(averages: Sequence[Tensor], values: Sequence[Tensor], weight: float) -> None:
        for average, value in zip(averages, values, strict=True):
            average.lerp_(value, weight)

    with mock.patch.object(torch, "_foreach_lerp_", lerp):
        yield


PARTS: Mapping[str, Off] = {
    "oneDNN": never(onednn, "runs_eagerly_on_cpu"),
    "frozen norm": never(backbone, "runs_eagerly_on_cpu"),
    "attention": never(deformable_attention, "_eager_on_cpu"),
    "moving average": tensor_by_tensor,
}


def measure(name: str, side: int, rounds: int, tiny: bool) -> list[dict[str, Any]]:
    """A row a part that the family has."""
    torch.manual_seed(0)
    module = recipe_module(FAMILIES[name], tiny)
    reasonable_norms(module.network)
    batch = random_batch((side, side), module.num_classes, padded=name in PADDED)
    step, _ = our_step(module, batch)
    plain, _ = our_step(module, batch, fused=False)
    parts: dict[str, Callable[[], None]] = {"all on": step, "optimizer": plain}
    for part, off in PARTS.items():
        if (part != "moving average" or module.ema is not None) and (part, name) != ("attention", "detr"):
            parts[part] = lambda off=off: within(off, step)
    times: dict[str, list[float]] = {part: [] for part in parts}
    for index in range(-1, rounds):  # the first is the warm-up
        for part in list(parts) if index % 2 else reversed(list(parts)):
            times[part].append(loss.timed(parts[part]))
    times = {part: values[1:] for part, values in times.items()}
    rows = [row(name, part, times["all on"], values) for part, values in times.items()]
    contest = loss.FAMILIES[name](batch=len(OBJECTS), **({"queries": 20, "classes": 5} if tiny else {}))
    contest.ours(), contest.theirs()
    apart = [loss.timed(contest.theirs) - loss.timed(contest.ours) for _ in range(rounds)]
    others = [spent + more for spent, more in zip(times["all on"], apart, strict=True)]
    return [*rows, row(name, "loss", times["all on"], others)]


def within(off: Off, step: Callable[[], None]) -> None:
    """The step without a part."""
    with off():
        step()


def row(family: str, part: str, on: list[float], off: list[float]) -> dict[str, Any]:
    """The times of a part switched off."""
    ratios = [b / a for a, b in zip(on, off, strict=True)]
    return {
        "family": family, "part": part, "ours_ms": statistics.median(on), "without_ms": statistics.median(off),
        "ratio": statistics.median(ratios), "ratios": ratios,
    }  # fmt: skip


def main() -> None:
    """Prints a table; with --json one object last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--tiny", action="store_true", help="sizes that show that it runs, and nothing else")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {processor_name()}, {options.threads} thread(s)\n")
    print("| family | without | ms | times all on | range |\n|---|---|---|---|---|", flush=True)
    rows = []
    for name in options.families:
        for found in measure(name, options.side, options.rounds, options.tiny):
            rows.append(found)
            low, high = min(found["ratios"]), max(found["ratios"])
            print(
                f"| {name} | {found['part']} | {found['without_ms']:.0f} | {found['ratio']:.2f}x "
                f"| {low:.2f} to {high:.2f} |",
                flush=True,
            )
    if options.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
