"""Do the published speeds still hold on this machine and this release of torch?

Runs benchmarks by name, each in a process of its own, prints one table, and compares each ratio with the one that is
kept for this release of torch in benchmarks/results/: it holds if its median lies within the kept range. Ends with 1 if
one does not.
    python benchmarks/run.py loss train_step [--rounds N] [--quick] [--keep] [--results DIR]
    --quick: sizes that show that it runs; kept apart from the others
    --keep: the ratios of this run take the place of those that are kept
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zoo.runs.timing import processor_name
from zoo.tracking.lineage import installed

HERE = Path(__file__).parent
LIBRARIES = (
    "torch",
    "transformers",
    "torchvision",
    "numpy",
    "scipy",
    "onnxruntime",
    "openvino",
    "hotcoco",
    "pycocotools",
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """A script that prints `{"rows": [...]}` as its last line with --json.

    Attributes:
        script: beside this file.
        name: what a row measures, unique among its rows.
        ours: milliseconds of a row.
        ratio: how many times longer the other takes.
        spread: of the ratio, round by round.
        arguments: always given.
    """

    script: str
    name: Callable[[Row], str]
    ours: Callable[[Row], float]
    ratio: Callable[[Row], float]
    spread: Callable[[Row], list[float]]
    arguments: tuple[str, ...] = ()


def against_transformers(script: str, *arguments: str) -> Benchmark:
    """A script whose rows are of families."""
    return Benchmark(
        script,
        lambda row: row["family"],
        lambda row: row["ours_ms"],
        lambda row: row["ratio_transformers"],
        lambda row: row["ratios"],
        arguments,
    )


BENCHMARKS = {
    "loss": against_transformers("loss.py"),
    "train_step": against_transformers("train_step.py"),
    "train_step_2_threads": against_transformers("train_step.py", "--threads", "2"),
    "inference": Benchmark(
        "inference.py",
        lambda row: f"{row['family']}, {row['way']}",
        lambda row: row["cpu_ms"],
        lambda row: row["ratio"],
        lambda row: row["ratio_range"],
    ),
    "evaluation": Benchmark(
        "evaluation.py",
        lambda row: f"{row['what']}, {row['detections']} detections, {row['other']}",
        lambda row: row["ours_ms"],
        lambda row: row["ratio"],
        lambda row: row["ratios"],
    ),
    "loader": Benchmark(
        "data_loader.py",
        lambda row: row["pipeline"],
        lambda row: row["cpu_ms"],
        lambda row: row["cpu_ratio"],
        lambda row: row["cpu_ratios"],
    ),
    "transforms": Benchmark(
        "data_transforms.py",
        lambda row: f"{row['chain']}: {row['contestant']}",
        lambda row: row["ms"],
        lambda row: row["ratio"],
        lambda row: row["range"],
    ),
}


def measured(name: str, rounds: int | None, quick: bool) -> dict[str, Row]:
    """{case: {ours_ms, ratio, low, high}} of a benchmark.

    Raises:
        SystemExit: the script failed; with the last line that it said.
    """
    benchmark = BENCHMARKS[name]
    command = [sys.executable, str(HERE / benchmark.script), "--json", *benchmark.arguments]
    command += ["--tiny"] if quick else []
    command += ["--rounds", str(rounds)] if rounds else []
    environment = {
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if ended.returncode:
        said = (ended.stderr or ended.stdout).strip().splitlines() or ["it said nothing"]
        raise SystemExit(f"{name}: {benchmark.script} ended with {ended.returncode}: {said[-1]}")
    rows = json.loads(ended.stdout.splitlines()[-1])["rows"]
    return {
        f"{name}: {benchmark.name(row)}": {
            "ours_ms": round(benchmark.ours(row), 2),
            "ratio": round(benchmark.ratio(row), 2),
            "low": round(min(benchmark.spread(row)), 2),
            "high": round(max(benchmark.spread(row)), 2),
        }
        for row in rows
    }


def verdict(now: Row, kept: Row | None) -> str:
    """Whether a ratio is still what it was; empty where nothing was kept."""
    if kept is None:
        return ""
    if now["ratio"] < kept["low"]:
        return "NO, less"
    return "NO, more" if now["ratio"] > kept["high"] else "yes"


def kept_file(folder: Path, quick: bool) -> Path:
    """The results of this release of torch: of 2.14.1 torch-2.14.json."""
    release = ".".join(version("torch").split(".")[:2])
    return folder / f"torch-{release}{'-quick' if quick else ''}.json"


def main() -> int:
    """Prints the table; 1 if a kept ratio does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=BENCHMARKS, metavar=f"{{{','.join(BENCHMARKS)}}}")
    parser.add_argument("--rounds", type=int, help="default: that of each script")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    machine = f"{processor_name()}, {os.cpu_count()} cores"
    file = kept_file(options.results, options.quick)
    kept = json.loads(file.read_text()) if file.is_file() else {"rows": {}}
    versions = ", ".join(f"{name} {found}" for name, found in installed(LIBRARIES).items())
    print(f"{machine}, load average {os.getloadavg()[0]:.0f}; {versions}")
    comparable = kept.get("machine", machine) == machine
    if not comparable:
        print(f"{file.name} is of another machine ({kept['machine']}): nothing is compared")
    print("\n| benchmark | ours, ms | ratio | range | kept | holds |\n|---|---|---|---|---|---|", flush=True)
    found, failed = {}, []
    for name in options.names:
        for case, now in measured(name, options.rounds, options.quick).items():
            before = kept["rows"].get(case) if comparable else None
            said, found[case] = verdict(now, before), now
            failed += [case] if said.startswith("NO") else []
            was = f"{before['ratio']}x, {before['low']} to {before['high']}" if before else ""
            print(
                f"| {case} | {now['ours_ms']} | {now['ratio']}x | {now['low']} to {now['high']} | {was} | {said} |",
                flush=True,
            )
    if options.keep:
        rows = (kept["rows"] if comparable else {}) | found
        document = {"machine": machine, "versions": installed(LIBRARIES), "rows": dict(sorted(rows.items()))}
        options.results.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document, indent=1) + "\n")
        return 0
    if failed:
        print(f"\nno longer within the range of {file}: {'; '.join(failed)}; --keep takes the new numbers")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
