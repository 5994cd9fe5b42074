"""How do time and memory of the matching loss grow with objects, queries, images, classes and layers?

Deformable DETR's loss, forward and backward, ours and transformers' in turns, one size changed at a time; process CPU
time, the least of the rounds, the median ratio, and the largest sum of tensors alive at once, predictions included,
which is exact.
    python benchmarks/loss_growth.py [--axes objects batch] [--rounds 5] [--threads 1] [--tiny] [--json]
    python benchmarks/loss_growth.py --plot growth.json picture.svg     draws what --json has written
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import loss
import torch
from mask_head import LiveBytes

from zoo.runs.timing import processor_name

BASE = {"objects": 10, "queries": 300, "batch": 4, "classes": 80, "layers": 6}
AXES: Mapping[str, Sequence[int]] = {
    "objects": (1, 10, 100, 300),
    "queries": (100, 300, 900),
    "batch": (1, 4, 16, 64),
    "classes": (1, 80, 365, 1203),
    "layers": (1, 3, 6),
}
TINY = {"objects": 2, "queries": 20, "batch": 2, "classes": 5, "layers": 2}


def alive(run: loss.Run) -> int:
    """Megabytes at most."""
    with LiveBytes() as counted:
        run()
    return round(counted.peak / 1e6, 4)


def measure(sizes: Mapping[str, int], rounds: int) -> dict[str, float]:
    """Milliseconds and megabytes of both."""
    contest = loss.deformable_detr(**sizes)
    loss.check_equal(contest)
    pairs = [(loss.timed(contest.ours), loss.timed(contest.theirs)) for _ in range(rounds)]
    mine, other = (min(values) for values in zip(*pairs, strict=True))
    ratios = [b / a for a, b in pairs]
    return {
        "ours_ms": round(mine, 2), "transformers_ms": round(other, 2), "ratio": round(statistics.median(ratios), 2),
        "low": round(min(ratios), 2), "high": round(max(ratios), 2),
        "ours_mb": alive(contest.ours), "transformers_mb": alive(contest.theirs),
    }  # fmt: skip


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Time above memory, an axis a column, both scales logarithmic."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "growth"
    figure = Figure(figsize=(13, 5), layout="constrained")
    grid = figure.subplots(2, len(AXES), sharey="row", squeeze=False)
    for column, axis in zip(grid.T, AXES, strict=True):
        own = [row for row in rows if row["axis"] == axis]
        for panel, unit in zip(column, ("ms", "mb"), strict=True):
            for who in ("ours", "transformers"):
                panel.loglog(
                    [row[axis] for row in own], [row[f"{who}_{unit}"] for row in own], "o-", label=who
                )
            panel.set_xticks(AXES[axis], [str(size) for size in AXES[axis]])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
        column[1].set_xlabel({"objects": "objects an image", "batch": "images"}.get(axis, axis))
    grid[0, 0].set_ylabel("CPU ms")
    grid[1, 0].set_ylabel("MB of tensors alive")
    grid[0, 0].legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Prints a table; with --json one object last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="sizes that show that it runs, and nothing else")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", nargs=2, type=Path, metavar=("JSON", "PICTURE"))
    options = parser.parse_args()
    if options.plot:
        draw(json.loads(options.plot[0].read_text())["rows"], options.plot[1])
        return
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {processor_name()}, {options.threads} thread(s); others as {BASE}\n")
    print("| axis | size | ours, ms | transformers, ms | ratio | range | ours, MB | transformers, MB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    rows: list[dict[str, Any]] = []
    for axis in options.axes:
        for size in (1, 2) if options.tiny else AXES[axis]:
            sizes = (TINY if options.tiny else BASE) | {axis: size}
            row = {"axis": axis} | sizes | measure(sizes, options.rounds)
            rows.append(row)
            print(
                f"| {axis} | {size} | {row['ours_ms']} | {row['transformers_ms']} | {row['ratio']}x "
                f"| {row['low']} to {row['high']} | {row['ours_mb']:.1f} | {row['transformers_mb']:.1f} |",
                flush=True,
            )
    if options.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
