"""`zoo data convert` and `zoo data split`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.options import DataFormat, DataSet, Json, NewFolder
from zoo.runs import signals
from zoo.runs.console import Console, counted, quoted

if TYPE_CHECKING:
    from datamodules.index.source import Source
    from datamodules.writers.convert import Conversion
    from datamodules.writers.split import Division

_SHOWN = 2

CopyFormat = Annotated[str, typer.Option("--to", help="coco, yolo, voc or csv.")]
Images = Annotated[str, typer.Option("--images", help="copy, link (hard) or symlink.")]


def convert(
    folder: DataSet,
    to: CopyFormat,
    output: NewFolder,
    images: Images = "copy",
    format: DataFormat = "auto",
    as_json: Json = False,
) -> None:
    """Copy a data set into another format; says what that cannot hold."""
    from datamodules.writers.convert import read_to_copy

    console = Console(as_json)
    with signals.leaving_nothing(output):
        source = read_to_copy(folder, output, to, images, format)
        done = _written(source, to, output, images)
    console.result({"output": str(output), "source_format": source.format, **done.to_dict()})
    _tell(done, source, folder, output, console)


def split(
    folder: DataSet,
    output: NewFolder,
    val: Annotated[float, typer.Option("--val", help="Share of the images; 0.2 is 20 %.")] = 0.1,
    test: Annotated[float, typer.Option("--test", help="Share of the images; 0: no such split.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw of images.")] = 0,
    stratify: Annotated[
        bool, typer.Option("--stratify", help="Give each split its share of every class.")
    ] = False,
    group_by: Annotated[
        str,
        typer.Option(
            "--group-by",
            help="What stays together besides byte-identical files: stem (equal names before .rf.), a regular "
            "expression searched in the path, e.g. 'scene\\d+'; or none: every image by itself.",
        ),
    ] = "stem",
    to: CopyFormat = "coco",
    images: Images = "copy",
    format: DataFormat = "auto",
    as_json: Json = False,
) -> None:
    """Divide a data set into train, val and test, in a copy; identical and augmented copies stay together."""
    from datamodules.writers.convert import read_to_copy
    from datamodules.writers.split import divide_source, shares_of

    console = Console(as_json)
    with signals.leaving_nothing(output):
        shares = shares_of(val, test)
        source = read_to_copy(folder, output, to, images, format)
        new = divide_source(source, shares, seed, stratify=stratify, group_by=group_by)
        done = _written(new.source, to, output, images)
    rows = {name: own.tolist() for name, own in new.rows.items()}
    console.result({
        "output": str(output), "source_format": source.format, **done.to_dict(), "seed": seed, "rows": rows,
        "groups": len(new.groups),
    })  # fmt: skip
    header = ("class", *(f"{name} images" for name in rows), *rows)
    console.table(header, _class_rows(new.source))
    console.say()
    if len(source.splits) > 1:
        console.say(f"the splits there were ({', '.join(source.splits)}) were joined and divided anew")
    for line in _group_lines(new, group_by):
        console.say(line)
    _tell(done, source, folder, output, console)


def _written(source: Source, to: Any, output: Path, images: Any) -> Conversion:
    from datamodules.progress import image_bar
    from datamodules.writers.convert import convert as write

    with image_bar("copying", leave=True) as bar:
        return write(source, to, output, images, progress=bar)


def _tell(done: Conversion, source: Source, folder: str, output: Path, console: Console) -> None:
    for words, number in done.losses.items():
        console.say(f"{done.format} cannot hold: {number} x {words}")
    if done.renamed:
        some = ", ".join(f"{old!r} -> {new!r}" for old, new in list(done.renamed.items())[:_SHOWN])
        rest = len(done.renamed) - _SHOWN
        more = f", and {rest} more (--json lists all)" if rest > 0 else ""
        console.say(f"{counted(len(done.renamed), 'file')} under another name in the copy: {some}{more}")
    if done.left_out:
        console.say(
            f"{counted(done.left_out, 'fault')} in {folder} left out an image or object at reading, which is "
            f"not in the copy; `zoo data check {quoted(folder)}` lists them"
        )
    counts = ", ".join(
        f"{name} {counted(images, 'image')} {counted(objects, 'object')}"
        for name, (images, objects) in done.splits.items()
    )
    console.say(
        f"{source.format} -> {done.format} in {output}: {counts}; pixels were not decoded, "
        f"`zoo data check {quoted(output)}` does"
    )


def _class_rows(source: Source) -> list[tuple[Any, ...]]:
    """Per class: images with it and objects of it in each split; the last row counts everything."""
    splits = source.splits.values()
    rows: list[tuple[Any, ...]] = []
    for source_id, name in source.classes.items():
        found = [(index.source_ids == source_id).nonzero()[0] for index in splits]
        images = [
            len(set(index.offsets.searchsorted(objects, side="right").tolist()))
            for index, objects in zip(splits, found, strict=True)
        ]
        rows.append((name, *images, *map(len, found)))
    empty = [int((index.offsets[1:] == index.offsets[:-1]).sum()) for index in splits]
    rows.append(("(no object)", *empty, *(0 for _ in splits)))
    rows.append(("all", *map(len, splits), *(index.num_objects for index in splits)))
    return rows


def _group_lines(new: Division, group_by: str) -> list[str]:
    """What was kept together, the largest groups first."""
    if group_by == "none":
        return ["every image was taken by itself, byte-identical ones too (--group-by none)"]
    if not new.groups:
        return ["no two images belong to one group, and no two files are byte-identical"]
    split_of = {int(row): name for name, own in new.rows.items() for row in own}
    examples = [
        f"{new.whole.files[own[0]]} and {len(own) - 1} more in {split_of[int(own[0])]}"
        for own in new.groups[:_SHOWN]
    ]
    number, largest = len(new.groups), len(new.groups[0])
    lines = [
        f"{counted(number, 'group')} of {f'2 to {largest}' if largest > 2 else '2'} images "
        f"{'was' if number == 1 else 'were'} kept together, {sum(map(len, new.groups))} images in all, e.g. "
        + "; ".join(examples)
    ]
    if new.copies:
        lines.append(
            f"{sum(map(len, new.copies))} of the files are byte-identical to another one "
            f"({counted(len(new.copies), 'picture')}); they were kept together"
        )
    return lines
