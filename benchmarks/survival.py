"""Does a training that is killed again and again end as the one that was left alone?

Every family's first recipe, made tiny, is trained by `zoo fit`; the same training is then ended by a signal at
random moments (start, preflight, steps, validations, checkpoints, report) and resumed each time. At the end are
compared, bit by bit: weights, average, optimizer and scheduler of last.ckpt; which checkpoint is the best, and what
it holds; the scores; and what MLflow holds: one run, each step of each metric once, and its value. After each start
no temporary file is older than it, and ten seconds after each signal none of its processes lives.
    python benchmarks/survival.py [--kills 10] [--only START OF A ROW] [--seed 0] [--quick] [--json]

--kills is that of a row; --quick takes one row of a family and two kills each. A row's trainings are forked from this
process, which has imported everything, as importing takes longer than they do.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from survival_cases import Disk, Index, Publishing, SlowTracker, Together
from survival_ranks import Ranks
from survival_trial import INT, KILL, TERM, Row, Start, Trial, tiny

from datamodules.shapes import generate_shapes
from zoo.runs import recipes, schema
from zoo.training.freezing import PARTS

IMAGES = 24
EXTRA = {"ema": {"decay": 0.9, "warmup_steps": 3}, "multi_scale": [64, 96]}  # where a family has them


def rows() -> list[Row]:
    """What is trained, and how it is ended."""
    every_step = {"checkpoint.every_n_train_steps": 1}
    two_workers = {"data.num_workers": 2}
    found = []
    for family in sorted({key.partition("/")[0] for key in recipes.bundled()}):
        taken = inspect.signature(schema.module_class(tiny(family, Path()))).parameters
        extra = {f"model.{name}": value for name, value in EXTRA.items() if name in taken}
        found += [
            Row("every step, average", family, every_step | extra),
            Row("every epoch, 2 workers", family, two_workers),
            Row("every second, steps of 4 x 1, 2 workers", family,
                {"checkpoint.every_n_minutes": 1 / 60, "data.batch_size": 1} | two_workers),
            Row("every step, of 2 x 2, validations inside", family,
                every_step | {"data.batch_size": 2, "trainer.val_check_interval": 2}),
            Row("shards, bucketing, 2 workers", family, every_step | two_workers | {
                "data.root": "shards", "data.bucketing": 2, "data.train_transform": "finetune"}),
            Row("long chain", family, every_step, early=0.1),
            Row("options of fine-tuning", family, every_step | extra | {
                "stopping.patience": 2, "trainer.max_epochs": 4, "trainer.precision": "bf16-mixed",
                "computing.checkpointing": True, "data.batch_size": 2,
                "model.schedule.rules": [{"match": PARTS["backbone"], "freeze": True}]}),
            Row("first start", family, every_step, early=0.5, new_store=True),
        ]  # fmt: skip
        for name, signals in {
            "SIGTERM": (TERM,), "SIGINT": (INT,), "SIGTERM, SIGINT": (TERM, INT), "SIGINT twice": (INT, INT),
            "SIGTERM twice": (TERM, TERM), "SIGTERM, SIGKILL": (TERM, KILL),
        }.items():  # fmt: skip
            found.append(
                Row(f"{name}, steps of 2 x 2", family, {"data.batch_size": 2} | two_workers, signals)
            )
    two = every_step | {"trainer.devices": 2, "data.batch_size": 2}
    three = every_step | {
        "trainer.devices": 3,
        "data.batch_size": 1,
        "model.schedule.global_batch_size": 6,
        "trainer.strategy": "ddp_find_unused_parameters_true",
    }
    for family in ("detr", "rt_detr"):
        found += [
            Row("SIGTERM to the first of two ranks", family, two, (TERM,), trial=Ranks),
            Row("SIGTERM to the second of two ranks", family, two, (TERM,), trial=Ranks, to="last"),
            Row("SIGTERM to both ranks", family, two, (TERM,), trial=Ranks, to="all"),
            Row("SIGINT to both ranks", family, two, (INT,), trial=Ranks, to="all"),
            Row("kill -9 of the second of two ranks", family, two, trial=Ranks, to="last"),
            Row("SIGTERM to one of three ranks, steps of 3 x 1 x 2", family, three, (TERM,), trial=Ranks, to="last"),
            Row("SIGTERM to three ranks, steps of 3 x 1 x 2", family, three, (TERM,), trial=Ranks, to="all"),
            Row("disk full: checkpoints", family, every_step, trial=Disk, place="run"),
            Row("disk full: MLflow and its spool", family, every_step, trial=Disk, place="mlruns"),
            Row("disk full: everything", family, every_step, trial=Disk, place="."),
            Row("disk full: everything, first start", family, every_step, new_store=True, trial=Disk, place="."),
            Row("disk full: index of the data", family, every_step, trial=Index, place="cache"),
            Row("tracker of a byte a second, steps of 6 x 1", family,
                {"data.batch_size": 1, "model.schedule.global_batch_size": 6}, new_store=True, trial=SlowTracker),
        ]  # fmt: skip
        for name, changes in {
            "no monitor": {"checkpoint.monitor": None},
            "one step": {"trainer.max_epochs": -1, "trainer.max_steps": 1},
            "a validation every second of three epochs": {
                "trainer.check_val_every_n_epoch": 2, "trainer.max_epochs": 3},
            "one image to validate on": {"data.root": "one"},
        }.items():  # fmt: skip
            found += [
                Row(f"{name}, {word}", family, every_step | changes, (number,))
                for word, number in (("kill -9", KILL), ("SIGTERM", TERM))
            ]
    found += [
        Row("three fine-tunings at once", "rt_detr", trial=Together),
        Row("disk full: registry", "rt_detr", trial=Publishing, place="mlruns/registry"),
    ]
    return found


def table(done: list[Row]) -> str:
    """Of Markdown."""
    lines = [
        "| family | row | kills | resumes | longest chain | differences | records lost |",
        "|" + "---|" * 7,
    ]
    for row in done:
        cells = (
            row.family,
            row.name,
            row.kills,
            row.resumes,
            row.longest_chain,
            len(row.differences),
            row.records_lost,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", type=Path, help="new folder for what the trainings wrote")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [row for row in rows() if f"{row.family}: {row.name}".startswith(options.only)]
    if options.quick:
        chosen = [row for row in chosen if row.name == "every step, average"]
    with contextlib.ExitStack() as stack:
        work = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        work = work.resolve()
        if not (work / "shapes").is_dir():
            generate_shapes(work / "shapes", IMAGES, 6, seed=0, size=64)
            generate_shapes(work / "one", IMAGES, 1, seed=0, size=64)
            Start(work, ["data", "shard", "shapes", "--output", "shards"]).wait(60)
        for row in chosen:
            begun = time.time()
            (row.trial or Trial)(row, work, options.seed).run(2 if options.quick else options.kills)
            print(
                f"{row.family}: {row.name}: {row.kills} kills, {row.resumes} resumes, {row.chains} chains, "
                f"{len(row.differences)} differences, {time.time() - begun:.0f} s"
                + (f", stalled {row.stalled:.0f} s at most" if row.stalled else ""),
                *row.differences, sep="\n  ", file=sys.stderr, flush=True,
            )  # fmt: skip
    if options.json:
        summed = ("kills", "resumes", "records_lost")
        total = {name: sum(getattr(row, name) for row in chosen) for name in summed}
        total["differences"] = sum(len(row.differences) for row in chosen)
        told = []
        for row in chosen:
            names = [signal.Signals(number).name for number in row.signals]
            told.append(vars(row) | {"signals": names, "trial": (row.trial or Trial).__name__})
        print(json.dumps(total | {"rows": told}))
    else:
        print(table(chosen))


if __name__ == "__main__":
    main()
