"""`zoo data convert` and `zoo data split`: a copy of a data set in another format, or divided anew."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from tqdm import tqdm

from datamodules.formats.detect import FORMATS, read
from datamodules.images.identical import identical_files
from datamodules.index import AnnotationIndex, concatenate
from datamodules.index.source import Source
from datamodules.outputs import require_apart
from datamodules.shards.reader import is_address, local_path
from datamodules.splits import Rows, divide, group_keys, grouped, joined
from datamodules.writers.convert import TARGETS, Conversion, Images, require_empty
from datamodules.writers.convert import convert as write
from zoo.runs.console import Console, counted, quoted

_SHOWN = 2


@dataclass(frozen=True)
class Copying:
    """What the user chose of a copy.

    Attributes:
        folder: the data set; shards also by their address.
        output: a new or empty folder.
        to: format of the copy.
        images: `copy`, `link` or `symlink`.
        format: of the data set, `auto` to detect it.
    """

    folder: str
    output: Path
    to: str = "coco"
    images: str = "copy"
    format: str = "auto"


@dataclass(frozen=True)
class Division:
    """How `zoo data split` divides.

    Attributes:
        val, test: shares of the images; 0 makes no such split.
        seed: of the drawing.
        stratify: by class.
        group_by: `stem`, `none` or a regular expression.
    """

    val: float
    test: float
    seed: int
    stratify: bool
    group_by: str


def convert(choices: Copying, console: Console) -> None:
    """Writes the copy and says what it could not hold.

    Raises:
        ValueError: for an unknown format, an output with anything in it, a data set that cannot be read.
    """
    source = read_source(choices)
    done = _write(source, choices)
    console.result({"output": str(choices.output), "source_format": source.format, **done.to_dict()})
    _tell(done, source, choices, console)


def split(choices: Copying, division: Division, console: Console) -> None:
    """Joins the splits there are, divides them anew and writes the copy.

    Raises:
        ValueError: as `convert`, or if the shares or the groups cannot be had.
    """
    shares = _shares(division)
    source = read_source(choices)
    whole = replace(_whole(source), faults=())
    copies = [] if division.group_by == "none" else identical_files(whole)
    rows = divide(
        whole, shares, division.seed, stratify=division.stratify, group_by=division.group_by, copies=copies
    )
    parts = {name: whole.take(own) for name, own in rows.items()}
    done = _write(replace(source, splits=parts), choices)
    groups = joined(grouped(group_keys(whole.files.tolist(), division.group_by)), copies)
    kept = sorted((own for own in groups if len(own) > 1), key=len, reverse=True)
    console.result({
        "output": str(choices.output), "source_format": source.format, **done.to_dict(), "seed": division.seed,
        "rows": {name: own.tolist() for name, own in rows.items()}, "groups": len(kept),
    })  # fmt: skip
    console.table(
        ("class", *(f"{name} images" for name in parts), *parts), _class_rows(source.classes, parts)
    )
    console.say()
    if len(source.splits) > 1:
        console.say(f"the splits there were ({', '.join(source.splits)}) were joined and divided anew")
    for line in _told_of_groups(whole, rows, kept, copies, division.group_by):
        console.say(line)
    _tell(done, source, choices, console)


def read_source(choices: Copying) -> Source:
    """Reads the data set after the choices were checked, which is quick.

    Raises:
        ValueError: for an unknown format or a way to place images, or an output with anything in it
            or inside the data set.
    """
    for value, allowed, option in (
        (choices.to, TARGETS, "--to"),
        (choices.images, get_args(Images), "--images"),
        (choices.format, ("auto", *FORMATS), "--format"),
    ):
        if value not in allowed:
            raise ValueError(f"{option} {value} is unknown; it is one of {', '.join(allowed)}")
    require_empty(choices.output.expanduser().absolute())
    if not is_address(choices.folder):
        require_apart(local_path(choices.folder), choices.output)
    format: Any = choices.format
    return read(choices.folder, format)


def _whole(source: Source) -> AnnotationIndex:
    indices = list(source.splits.values())
    return indices[0] if len(indices) == 1 else concatenate(indices)


def _write(source: Source, choices: Copying) -> Conversion:
    to: Any = choices.to
    images: Any = choices.images
    total = sum(len(index) for index in source.splits.values())
    interval = 0.2 if sys.stderr.isatty() else 30.0
    with tqdm(total=total, unit=" images", mininterval=interval) as bar:
        return write(source, to, choices.output, images, progress=lambda done, _: bar.update(done - bar.n))


def _tell(done: Conversion, source: Source, choices: Copying, console: Console) -> None:
    for words, number in done.losses.items():
        console.say(f"{done.format} cannot hold: {number} x {words}")
    if done.renamed:
        some = ", ".join(f"{old!r} -> {new!r}" for old, new in list(done.renamed.items())[:_SHOWN])
        more = (
            f", and {len(done.renamed) - _SHOWN} more (--json lists all)"
            if len(done.renamed) > _SHOWN
            else ""
        )
        console.say(f"{counted(len(done.renamed), 'file')} under another name in the copy: {some}{more}")
    if done.left_out:
        console.say(
            f"{counted(done.left_out, 'fault')} in {choices.folder} left out an image or object at reading, which is "
            f"not in the copy; `zoo data check {quoted(choices.folder)}` lists them"
        )
    counts = ", ".join(
        f"{name} {counted(images, 'image')} {counted(objects, 'object')}"
        for name, (images, objects) in done.splits.items()
    )
    console.say(
        f"{source.format} -> {done.format} in {choices.output}: {counts}; pixels were not decoded, "
        f"`zoo data check {quoted(choices.output)}` does"
    )


def _class_rows(classes: Mapping[int, str], parts: Mapping[str, AnnotationIndex]) -> list[tuple[Any, ...]]:
    """Per class: images with it and objects of it in each split; the last row counts everything."""
    rows: list[tuple[Any, ...]] = []
    for source_id, name in classes.items():
        images = [_images_with(index, source_id) for index in parts.values()]
        rows.append(
            (name, *images, *(int((index.source_ids == source_id).sum()) for index in parts.values()))
        )
    empty = [int((np.diff(index.offsets) == 0).sum()) for index in parts.values()]
    rows.append(("(no object)", *empty, *(0 for _ in parts)))
    rows.append(("all", *map(len, parts.values()), *(index.num_objects for index in parts.values())))
    return rows


def _images_with(index: AnnotationIndex, source_id: int) -> int:
    image = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    return len(np.unique(image[index.source_ids == source_id]))


def _shares(division: Division) -> dict[str, float]:
    """Split -> share.

    Raises:
        ValueError: naming the options, if no such split can be made.
    """
    for option, share in (("--val", division.val), ("--test", division.test)):
        if not 0 <= share < 1:
            meant = f" ({share:g} % is {share / 100:g})" if 1 < share < 100 else ""
            raise ValueError(f"{option} {share:g} is no share of the images; give one from 0 to 1{meant}")
    total = division.val + division.test
    if total == 0:
        raise ValueError("--val 0 with --test 0 divides nothing; give one of them a share, e.g. --val 0.2")
    if total >= 1:
        raise ValueError(
            f"--val {division.val:g} and --test {division.test:g} together are {total:g}, which leaves nothing "
            "to train on; their sum must be below 1"
        )
    return {name: share for name, share in (("val", division.val), ("test", division.test)) if share}


def _told_of_groups(
    whole: AnnotationIndex, rows: Mapping[str, Rows], kept: list[Rows], copies: list[Rows], group_by: str
) -> list[str]:
    """What was kept together, the largest groups first."""
    if group_by == "none":
        return ["every image was taken by itself, byte-identical ones too (--group-by none)"]
    if not kept:
        return ["no two images belong to one group, and no two files are byte-identical"]
    split_of = {int(row): name for name, own in rows.items() for row in own}
    examples = [
        f"{whole.files[own[0]]} and {len(own) - 1} more in {split_of[int(own[0])]}" for own in kept[:_SHOWN]
    ]
    largest = len(kept[0])
    lines = [
        f"{counted(len(kept), 'group')} of {f'2 to {largest}' if largest > 2 else '2'} images "
        f"{'was' if len(kept) == 1 else 'were'} kept together, {sum(map(len, kept))} images in all, e.g. "
        + "; ".join(examples)
    ]
    if copies:
        lines.append(
            f"{sum(map(len, copies))} of the files are byte-identical to another one "
            f"({counted(len(copies), 'picture')}); they were kept together"
        )
    return lines
