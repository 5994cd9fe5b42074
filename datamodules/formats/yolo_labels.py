"""A label file of YOLO: rows `class cx cy w h` in [0, 1], rows of polygons, rows with key points after the box."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

from datamodules.formats.yolo_keypoints import BOX, KeyPoints
from datamodules.index import IndexBuilder, shown_path
from datamodules.reading.text import encoding_of
from zoo.storage.opening import read_file

_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+")
_LONGEST_ROW = 1 << 20  # letters: an outline of some 50 000 points
_SHOWN = 100  # letters of a row in a message
_NORMALISED = 1.5  # larger values are pixels; boxes a little over the edge are not


def read_labels(
    builder: IndexBuilder,
    root: Path,
    file: Path,
    image_id: int,
    size: tuple[int, int],
    number: int,
    outlined: list[int],
    shape: KeyPoints | None,
) -> int:
    """Adds the objects of a file; returns the number of the last.

    Args:
        builder: of the split.
        root: folder of the data set.
        file: the txt.
        image_id: its image.
        size: (h, w) of the image.
        number: of the last object before.
        outlined: gets the position of the file's fault if it reports polygons and nothing else.
        shape: the key points after the box in each row, whose rows it counts; None: there are none.
    """
    try:
        data = read_file(file)
        encoding = encoding_of(data) or "utf-8"
        lines = data.decode(encoding).splitlines()
    except (OSError, ValueError) as error:
        builder.fault(
            "error", "unreadable_labels", file, image_id, f"not a UTF-8 text: {error}; save it as UTF-8"
        )
        return number
    if encoding == "utf-8-sig":
        builder.fault(
            "note",
            "byte_order_mark",
            file,
            None,
            "read without it; other programs may fail to read the first row",
        )
    elif encoding != "utf-8":
        message = f"read as {encoding.upper()}; other programs expect UTF-8; save it as that"
        builder.fault("note", "other_encoding", file, None, message)
    shown = shown_path(file, root)
    seen: set[tuple[float, ...]] = set()
    polygons: list[int] = []
    turned = False
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        number += 1
        if len(line) > _LONGEST_ROW:
            message = (
                f"line {line_number} has {len(line)} letters, more than an outline has; the object is left out; "
                "check which file it is"
            )
            builder.fault("error", "invalid_row", file, line_number, message)
            continue
        row = _parse_row(builder, file, line_number, line, shape)
        if row is None:
            continue
        (source_id, cx, cy, w, h), points = row
        polygons += [line_number] if points else []
        turned = turned or _is_turned(points)
        if (source_id, cx, cy, w, h, *points) in seen:
            message = f"line {line_number} repeats an earlier one ({_cut(line)}); it is left out; remove it"
            builder.fault("warning", "duplicate_object", file, line_number, message)
            continue
        seen.add((source_id, cx, cy, w, h, *points))
        height, width = size
        box = ((cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height)
        outline = [[v * (height if i % 2 else width) for i, v in enumerate(points)]] if points else None
        before = len(builder.faults)
        builder.add_object(image_id, box, int(source_id), number, segmentation=outline, file=file)
        # a user can find a line of the label file, not the number of an object
        builder.faults[before:] = [replace(f, file=shown, id=line_number) for f in builder.faults[before:]]
    if polygons:
        message = (
            f"{len(polygons)} x row of a polygon or a turned box, the first in line {polygons[0]}; the upright "
            "box around it is taken, with its outline"
        )
        builder.fault("warning", "polygon", file, polygons[0], message)
        if not turned:
            outlined.append(len(builder.faults) - 1)
    return number


def _is_turned(points: tuple[float, ...]) -> bool:
    """Whether a row may be a turned box, which the upright box around it does not equal."""
    return len(points) == 8 and not len(set(points[::2])) == len(set(points[1::2])) == 2


def _numbers(builder: IndexBuilder, file: Path, line: int, text: str) -> list[float] | None:
    """The numbers of a row, or None if it has anything else. Commas are understood, with a note."""
    tokens = text.split()
    if len(tokens) == BOX and all(_DECIMAL_COMMA.fullmatch(t) for t in tokens[1:]):
        slip, tokens = "has decimal commas", [t.replace(",", ".") for t in tokens]
    elif "," in text or ";" in text:
        slip, tokens = "is separated by commas", re.split(r"[\s,;]+", text.strip(" \t,;"))
    else:
        slip = ""
    try:
        values = [float(v) for v in tokens]
    except ValueError:
        return None
    if "_" in text:  # Python reads 1_000 as a number; in a label file it is a mistake
        return None
    if slip:
        message = f"line {line} {_cut(text)!r} {slip}; it is read as meant; write `class cx cy w h`"
        builder.fault("warning", "comma_separated", file, line, message)
    if values and not tokens[0].lstrip("+-").isdigit() and values[0].is_integer():
        builder.fault("note", "float_class", file, line, f"class {tokens[0]} is read as {int(values[0])}")
    return values


def _cut(text: str) -> str:
    """A row as a message shows it."""
    row = text.strip()
    return row if len(row) <= _SHOWN else f"{row[:_SHOWN]}..."


def _parse_row(
    builder: IndexBuilder, file: Path, line: int, text: str, shape: KeyPoints | None
) -> tuple[tuple[float, float, float, float, float], tuple[float, ...]] | None:
    """(class, cx, cy, w, h) and the points of a polygon, or None and a fault."""
    rule = "a row is `class cx cy w h` with numbers in [0, 1]; the object is left out; correct the row"
    if shape is not None:
        rule = f"a row is `class cx cy w h` and {shape}; the object is left out; correct the row"
    values = _numbers(builder, file, line, text)
    if values is None:
        builder.fault(
            "error", "invalid_row", file, line, f"line {line} {_cut(text)!r} is not made of numbers; {rule}"
        )
        return None
    points: tuple[float, ...] = ()
    if shape is not None and len(values) == shape.row:
        shape.rows += 1
        values = values[:BOX]
    elif shape is None and len(values) > 6 and len(values) % 2 == 1 and all(math.isfinite(v) for v in values):
        points = tuple(values[1:])
        xs, ys = points[::2], points[1::2]
        values = [
            values[0],
            (min(xs) + max(xs)) / 2,
            (min(ys) + max(ys)) / 2,
            max(xs) - min(xs),
            max(ys) - min(ys),
        ]
    if len(values) != BOX or not all(math.isfinite(v) for v in values) or values[0] != int(values[0]):
        hint = "; a sixth number is a score: these are predictions, not labels" if len(values) == 6 else ""
        message = f"line {line} {_cut(text)!r} has {len(values)} values{hint}; {rule}"
        builder.fault("error", "invalid_row", file, line, message)
        return None
    if max(abs(v) for v in values[1:]) > _NORMALISED:
        builder.fault(
            "error", "not_normalised", file, line, f"line {line} {_cut(text)!r} looks like pixels; {rule}"
        )
        return None
    source_id, cx, cy, w, h = values
    return (source_id, cx, cy, w, h), points
