"""Does the gradient of a step depend on how its images are cut over devices and micro-batches?

Every network that the zoo's recipes describe, made small (tests/tiny), trains one step of 8 images, one of them empty
and one with 30 objects, by the real training loop: in one process, in micro-batches, and on 2 and 4 gloo ranks.
Compared with 8 images at once; beside it what accumulation makes of an official training step.
    python benchmarks/invariance.py [--quick] [--recipes detr/r50_coco_500e ...] [--json]
What is measured is in benchmarks/INVARIANCE.md.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import torch
from nursery import Nursery
from partitions import (
    COUNTS,
    PARTITIONS,
    WHOLE,
    Case,
    Partition,
    Result,
    difference,
    has_batch_norm,
    pads,
    results,
)
from tiny_families import distinct, first_of_each_class

from zoo.runs.lightning import quiet

QUICK = ("1 x 4, 2 times", "2 ranks x 2, 2 times")
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-6}
SHOWN = ("recipe", "partition", "dtype", "batch_norm", "padding", "relative_difference", "worst_parameter",
         "plain_accumulation", "note")  # fmt: skip


def cases_of(key: str, quick: bool) -> list[Case]:
    """What is trained of a recipe, beside its plain form."""
    kinds = ["fixed", "synchronised"] if has_batch_norm(key) else ["fixed"]
    dtypes = [torch.float64] if quick else list(LIMITS)
    cases = [Case(key, dtype, kind) for kind in kinds for dtype in dtypes]
    return cases + ([Case(key, padding="batch")] if pads(key) else [])


def gradients(nursery: Nursery, cases: Sequence[Case], partitions: Sequence[Partition]) -> dict[Any, Result]:
    """{(case, partition): result}; each number of ranks is started once."""
    found: dict[Any, Result] = {}
    for ranks in sorted({p.ranks for p in partitions}):
        works = [(case, p) for case in cases for p in partitions if p.ranks == ranks]
        work = functools.partial(results, works)
        answers = nursery.answers([work]) if ranks == 1 else nursery.answers_of_ranks(work, ranks)
        found |= zip(works, answers[0], strict=True)
    return found


def note_of(case: Case, partition: Partition) -> str:
    """Why the gradient is another one, where it has to be."""
    images = partition.images_of_a_pass
    if case.statistics == "synchronised" and len(partition.parts) > 1:
        return f"not equivalent: batch statistics of {images} images, published {len(COUNTS)}"
    if case.padding == "batch" and partition != WHOLE:
        largest = max(partition.parts)
        return f"not equivalent: padded to the largest of {largest} images, published {len(COUNTS)}"
    return ""


def rows_of(nursery: Nursery, key: str, quick: bool) -> Iterator[dict[str, Any]]:
    chosen = [p for p in PARTITIONS if not quick or p.name in QUICK]
    cases = cases_of(key, quick)
    plain = [replace(c, plain=True) for c in cases if c.padding == "step"]
    found = gradients(nursery, [*cases, *plain], [WHOLE, *chosen])
    batch_norm = has_batch_norm(key)
    for case in cases:
        whole = found[case, WHOLE]
        exact = found[replace(case, dtype=torch.float64), WHOLE]
        for partition in chosen:
            own = found[case, partition]
            apart = difference(own.gradients, whole.gradients)
            row = {
                "family": key.partition("/")[0],
                "recipe": key,
                "partition": partition.name,
                "dtype": str(case.dtype).removeprefix("torch."),
                "batch_norm": case.statistics if batch_norm else "none",
                "padding": case.padding if pads(key) else "none",
                "relative_difference": apart.whole,
                "worst_parameter": apart.worst,
                "worst_name": apart.worst_name,
                "from_float64": difference(whole.gradients, exact.gradients).whole,
                "plain_accumulation": None,
                "running_statistics": None,
                "note": note_of(case, partition),
            }
            if case.padding == "step":
                other = found[replace(case, plain=True), partition]
                row["plain_accumulation"] = difference(other.gradients, whole.gradients).whole
            if case.statistics == "synchronised":
                row["running_statistics"] = difference(own.statistics, whole.statistics).whole
            yield row


def main() -> None:
    """Prints a table; with --json one object last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", help="default: one of each network that the recipes describe")
    parser.add_argument(
        "--quick", action="store_true", help="float64, one recipe of each class, two partitions"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    quiet()
    keys = options.recipes or (first_of_each_class() if options.quick else distinct(num_classes=3))
    nursery = Nursery()  # before anything is computed: the threads of torch do not survive a fork
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "lightning"))
    print(f"{versions}, {platform.processor() or platform.machine()}, {time.strftime('%Y-%m-%d')}")
    print("  ".join(SHOWN))
    rows = []
    for key in keys:
        for row in rows_of(nursery, key, options.quick):
            rows.append(row)
            cells = [row[name] for name in SHOWN]
            print(
                "  ".join(f"{c:.1e}" if isinstance(c, float) else "-" if c is None else c for c in cells),
                flush=True,
            )
    nursery.close()
    if options.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
