"""Does inference cost less than transformers' model of the same family with the same weights?

Normalised images at the published size to raw predictions, batch 1, random weights, process CPU time, in turns:
    python benchmarks/inference.py [--rounds 5] [--threads 1] [--families rt_detr_r18] [--tiny] [--json] [--profile]
Outputs are compared first; a difference ends the run. What is the same and what is not is in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from loss import timed
from pairs import PAIRS, build, difference
from torch.profiler import ProfilerActivity, profile

from zoo.contract.batch import Batch
from zoo.runs.bench_cases import batch_of
from zoo.runs.timing import processor_name

FAMILIES = ("detr_r50", "deformable_detr_r50", "rt_detr_r18", "rt_detrv2_s", "dfine_s")
THEIRS, OURS = "transformers", "PyTorch"
SAME = 1e-4  # of logits and boxes
Run = Callable[[], object]


def normalised(size: tuple[int, int]) -> Batch:
    """One image of noise."""
    return batch_of([torch.randn(3, *size, generator=torch.Generator().manual_seed(0))], [size])


def contestants(name: str, tiny: bool) -> tuple[dict[str, Run], float, tuple[int, int]]:
    """(what runs once by name, how far outputs are apart, size of the image)."""
    module, model = build(name, tiny)
    size = (64, 96) if tiny else PAIRS[name].size
    batch = normalised(size)
    apart = difference(module, model, batch)
    if apart > SAME:
        raise SystemExit(f"{name}: not the same network, outputs differ by {apart:.1e}")
    mask = (~batch.padding).long()

    @torch.no_grad()
    def theirs() -> object:
        return model(pixel_values=batch.images, pixel_mask=mask)

    return {THEIRS: theirs, OURS: lambda: module.predictions(batch)}, apart, size


def milliseconds(runs: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """CPU times by contestant, one a round, every second round backwards; a round of warm-up goes before."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(-1, rounds):
        for name in list(runs) if index % 2 else reversed(list(runs)):
            times[name].append(timed(runs[name]))
    return {name: values[1:] for name, values in times.items()}


def measure(name: str, rounds: int, tiny: bool) -> list[dict[str, Any]]:
    """The rows of a family, theirs first."""
    runs, apart, size = contestants(name, tiny)
    times = milliseconds(runs, rounds)
    rows = []
    for way, values in times.items():
        ratios = [theirs / ours for theirs, ours in zip(times[THEIRS], values, strict=True)]
        rows.append(
            {
                "family": name, "size": f"batch 1, {size[0]}x{size[1]}", "way": way,
                "cpu_ms": statistics.median(values), "ratio": statistics.median(ratios),
                "ratio_range": [min(ratios), max(ratios)], "output_difference": apart,
            }
        )  # fmt: skip
    return rows


def by_operator(run: Run, rows: int = 15) -> str:
    """Where the CPU time of one run goes."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    return str(
        found.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=40)
    )


def main() -> None:
    """Prints a table; with --json one object last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--families", nargs="+", choices=list(PAIRS), default=list(FAMILIES))
    parser.add_argument("--tiny", action="store_true", help="sizes that show that it runs, and nothing else")
    parser.add_argument("--profile", action="store_true", help="instead: operators of one run of each")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where = f"{processor_name()}, {options.threads} thread(s)"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {where}", flush=True)
    rows = []
    for name in options.families:
        if options.profile:
            for way, run in contestants(name, options.tiny)[0].items():
                print(f"\n{name}, {way}\n{by_operator(run)}", flush=True)
            continue
        found = measure(name, options.rounds, options.tiny)
        rows += found
        print(f"\n{name}, {found[0]['size']}, median of {options.rounds}, outputs differ by", end=" ")
        print(f"{found[0]['output_difference']:.1e}")
        for row in found:
            low, high = row["ratio_range"]
            print(
                f"  {row['way']:24} {row['cpu_ms']:8.1f} CPU ms   {row['ratio']:.2f}x ({low:.2f} to {high:.2f})"
            )
    if options.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
