"""`zoo data check`: what a folder holds and what is wrong with it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.options import DataFormat, Json
from zoo.runs import signals
from zoo.runs.console import Console, counted, quoted

if TYPE_CHECKING:
    from datamodules.doctor import Examination
    from datamodules.index import Fault, Severity

_SHOWN: dict[Severity, int] = {"error": 5, "warning": 3, "note": 1}  # of each kind; --json has all
_PLACES = 3  # of equal messages


def check(
    folder: Annotated[str, typer.Argument(help="Data set; shards also by their address.")],
    quick: Annotated[bool, typer.Option("--quick", help="Headers and annotations only.")] = False,
    queries: Annotated[int | None, typer.Option("--queries", help="Of the model; default 300.")] = None,
    image_size: Annotated[
        str | None,
        typer.Option("--image-size", help="640, 480x640 (height x width) or 800/1333; default 640."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            help="Processes that decode; 0 or 1: none but this one; default: the cores there are.",
        ),
    ] = None,
    fix: Annotated[
        Path | None, typer.Option("--fix", help="Write a cleaned copy here, as COCO, with a log.")
    ] = None,
    format: DataFormat = "auto",
    report: Annotated[
        str | None,
        typer.Option(
            "--report", help="Write a page with plots and pictures: report.html, or a folder for it."
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Format, splits, classes with their source ids, and every fault, by file and id."""
    from datamodules.doctor import IMAGE_SIZE, QUERIES, examine
    from datamodules.doctor.fix import check_target, mend
    from datamodules.outputs import require_writable
    from datamodules.progress import image_bar
    from datamodules.shards.reader import place_of

    console = Console(as_json)
    known: Any = format  # refused by the reader if it is unknown
    page = None if report is None else report_file(report)
    with signals.leaving_nothing(fix, page):
        if page is not None:
            require_writable(page, "--report")
        if fix is not None:
            check_target(place_of(folder), fix, quick)
            require_writable(fix, "--fix")
        with image_bar() as progress:
            found = examine(
                folder, quick=quick, queries=QUERIES if queries is None else queries,
                image_size=IMAGE_SIZE if image_size is None else image_size, workers=workers, progress=progress,
                format=known,
            )  # fmt: skip
        document = found.summary.to_dict() | {"statistics": found.statistics.to_dict()}
        if found.tiles is not None:
            document["tiles"] = asdict(found.tiles)
        failures: list[Exception] = []  # reported after the findings, which took the time
        if fix is not None:
            try:
                with image_bar("copying") as progress:
                    log = mend(found, fix, progress)
                document["fixed"] = {"folder": str(fix), "changes": dict(log.counts)}
            except (ValueError, OSError) as error:
                failures.append(error)
        if page is not None:
            from datamodules.doctor.report import write_report  # with matplotlib and jinja2

            try:
                write_report(found, page)
            except OSError as error:
                failures.append(error)
    console.result(document)
    if not as_json:
        _tell(found, console)
        console.say()
        for line in next_steps(folder, found, fix, page) if not failures else ():
            console.say(line)
    if failures:
        for failure in failures[1:]:
            console.say(f"also: {failure}")
        raise failures[0]
    return 0 if fix is not None or not found.summary.errors else 1


def report_file(given: str) -> Path:
    """Where the page goes: the file that is named, or report.html in a folder that is there or ends in `/`."""
    path = Path(given).expanduser()
    return path / "report.html" if given.endswith(("/", os.sep)) or path.is_dir() else path


def _tell(found: Examination, console: Console) -> None:
    summary = found.summary
    console.say(f"format {summary.format}\n")
    rows = [(name, s.listed, s.images, s.objects, s.crowd, s.empty) for name, s in summary.splits.items()]
    console.table(("split", "listed", "images", "objects", "crowds", "images without any"), rows)
    splits = list(summary.splits)
    console.say()
    console.table(
        ("head index", "class", "source id", *splits),
        [(c.head_index, c.name, c.source_id, *(c.counts[s] for s in splits)) for c in summary.classes],
    )
    console.say()
    from datamodules.index import by_kind

    for faults in by_kind(found.faults):
        for line in fault_lines(faults):
            console.say(line)


def fault_lines(faults: Sequence[Fault]) -> list[str]:
    """Faults of one kind for the terminal: their number and the first of them; equal notes are one line."""
    from datamodules.index.faults import visible

    first = faults[0]
    lines, shown = [f"{first.severity} {first.kind}: {len(faults)}"], 0
    alike: dict[str, list[Fault]] = defaultdict(list)
    for fault in faults:
        alike[fault.message if fault.severity == "note" else str(fault)].append(fault)
    for same in list(alike.values())[: _SHOWN[first.severity]]:
        places = ", ".join(fault.where for fault in same[:_PLACES])
        more = f" and {len(same) - _PLACES} more" if len(same) > _PLACES else ""
        lines.append(f"  {places}{more}: {visible(same[0].message)}")
        shown += len(same)
    if shown < len(faults):
        lines.append(f"  ... and {len(faults) - shown} more (--json lists all)")
    return lines


def next_steps(folder: str, found: Examination, fixed: Path | None, report: Path | None) -> list[str]:
    """How many faults there are, and the command that comes next."""
    from datamodules.doctor import NO_TRAIN, TOO_FEW
    from datamodules.doctor.image_files import INPUT_SCALE, options_of
    from datamodules.shards.reader import is_address

    counts = {severity: sum(f.severity == severity for f in found.faults) for severity in _SHOWN}
    line = ", ".join(counted(number, severity) for severity, number in counts.items())
    lines = [line if found.probes else f"{line}; no image was decoded (--quick)"]
    if report is not None:
        lines.append(f"the page: {report}")
    place = quoted(folder)
    splits = found.summary.splits
    if "train" in splits and not any(splits[name].images for name in ("val", "test") if name in splits):
        lines.append(
            "no val split: zoo finetune holds out some of the training images to score on; to choose them: zoo data "
            f"split {place} --val 0.1 --output OUT"
        )
    if fixed is not None:
        copy = quoted(fixed)
        lines += [
            f"a cleaned copy is in {fixed}; read what was changed and left out: {fixed / 'fix_log.md'}",
            f"next: zoo data check {copy}, then zoo finetune MODEL --data {copy}",
        ]
    elif counts["error"] == 1 and any(f.kind == NO_TRAIN for f in found.faults):
        lines.append(
            f"next: make a train split, or score a model on the set: zoo validate MODEL --data {place}"
        )
    elif counts["error"] and is_address(folder):
        lines.append("next: correct the errors in the data set that was packed, and pack it again")
    elif counts["error"]:
        lines.append(
            f"next: correct the errors, or let zoo data check {place} --fix OUT write a cleaned copy"
        )
    elif any(f.kind == TOO_FEW for f in found.faults):
        lines.append("next: add images; zoo finetune needs one to train on and another to score on")
    else:
        tiles = found.tiles
        lines.append(f"next: zoo finetune MODEL --data {place}{'' if tiles is None else f' {tiles.option}'}")
        scales = [f for f in found.faults if f.kind == INPUT_SCALE]
        if len(scales) == 1:
            lines[-1] += f" {options_of(scales[0])}"
        elif scales:  # of several kinds of images, of which a network takes one
            lines[-1] += f", with the options of one of the notes {INPUT_SCALE}"
    return lines
