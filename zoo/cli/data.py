"""`zoo data check`: what a folder holds and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import typer

from zoo.cli.console import Console


def check(folder: Path, console: Console) -> None:
    """Prints the summary; exit code 1 if there are errors that would keep a training from starting."""
    from datamodules.doctor import check as check_folder

    summary = check_folder(folder)
    console.result(summary.to_dict())
    if not console.as_json:
        console.say(f"format {summary.format}\n")
        rows = [(name, s.images, s.objects, s.empty) for name, s in summary.splits.items()]
        console.table(("split", "images", "objects", "images without any"), rows)
        splits = list(summary.splits)
        console.say()
        console.table(
            ("head index", "class", "source id", *splits),
            [(c.head_index, c.name, c.source_id, *(c.counts[s] for s in splits)) for c in summary.classes],
        )
        console.say()
        for fault in summary.faults:
            console.say(str(fault))
        errors = len(summary.errors)
        console.say(f"{errors} errors, {len(summary.faults) - errors} warnings")
    if summary.errors:
        raise typer.Exit(1)
