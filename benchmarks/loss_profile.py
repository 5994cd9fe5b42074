"""Which operators take the time of the matching loss, and how does that differ between releases of torch?

The least time of each call over the rounds, which leaves out what other work on the machine took, summed by operator.
    python benchmarks/loss_profile.py [--families rt_detr dfine] [--rounds 12] [--most 12] [--tiny] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from typing import Any

import loss
import torch
from torch.profiler import ProfilerActivity, profile

from zoo.runs.timing import processor_name


def calls(run: loss.Run) -> list[tuple[str, float]]:
    """(operator, own microseconds) of every call, in order."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as found:
        run()
    return [(event.name, event.self_cpu_time_total) for event in found.events()]


def measure(family: str, rounds: int, tiny: bool) -> list[dict[str, Any]]:
    """A row an operator, the longest first."""
    contest = loss.FAMILIES[family](**({"batch": 2, "queries": 20, "classes": 5} if tiny else {}))
    contest.ours()
    every = [calls(contest.ours) for _ in range(rounds)]
    names = [[name for name, _ in run] for run in every]
    same = [run for run, own in zip(every, names, strict=True) if own == names[-1]]
    spent: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    for call in zip(*same, strict=True):
        name = call[0][0]
        spent[name] += min(time for _, time in call) / 1000
        count[name] += 1
    return [
        {"family": family, "operator": name, "ms": round(spent[name], 3), "calls": count[name]}
        for name in sorted(spent, key=lambda name: -spent[name])
    ]


def main() -> None:
    """Prints a table; with --json one object last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", nargs="+", choices=loss.FAMILIES, default=list(loss.FAMILIES))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--most", type=int, default=12, help="operators of a family that are printed")
    parser.add_argument("--tiny", action="store_true", help="sizes that show that it runs, and nothing else")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(f"torch {torch.__version__}, {processor_name()}, one thread")
    for family in options.families:
        found = measure(family, options.rounds, options.tiny)
        rows += found
        print(
            f"\n{family}: {sum(row['ms'] for row in found):.2f} ms in {sum(row['calls'] for row in found)} calls"
        )
        for row in found[: options.most]:
            print(f"  {row['operator']:34}{row['ms']:9.3f} ms  x{row['calls']}", flush=True)
    if options.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
