"""Tables of boxes: Roboflow's and TensorFlow's csv, RetinaNet's without header, VoTT's, and the like."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from datamodules.formats import open_images
from datamodules.formats.csv_columns import ONE_CLASS, Columns, boxes_in, columns_of
from datamodules.formats.csv_repeats import Table, read_once
from datamodules.index import Fault, shown_path
from datamodules.index.source import split_of
from datamodules.reading import kinds as sniff
from datamodules.reading.annotation_folder import AnnotationFolder, named_classes
from datamodules.reading.parsing import read_rows
from datamodules.reading.records import Box, ImageRecord, Mark, named_split


def annotation_files(root: Path) -> list[Path]:
    """Every table of boxes in the folder."""
    return [file for file in _tables(root) if isinstance(_columns(file), Columns)]


def lacking(root: Path) -> dict[Path, str]:
    """Every table that has columns of boxes and lacks another that it needs, and what it lacks in words."""
    return {file: lacks for file in _tables(root) if isinstance(lacks := _columns(file), str) and lacks}


def _tables(root: Path) -> list[Path]:
    return [*sniff.files(root, ".csv"), *sniff.files(root, ".tsv")]


def _columns(file: Path) -> Columns | str:
    """The columns of a table of boxes, else what it lacks; Open Images' tables are none."""
    first, second, _ = sniff.table_head(file)
    return "" if set(open_images.COLUMNS) <= set(first) else columns_of(first, second)


def _lacks(root: Path) -> str:
    found = "; ".join(f"{file.name}: {why}" for file, why in lacking(root).items())
    return (
        f"csv of boxes{f' ({found})' if found else ''}; it needs a header such as "
        "filename,width,height,class,xmin,ymin,xmax,ymax or rows path,x1,y1,x2,y2,class without one"
    )


def _read(folder: AnnotationFolder) -> Iterable[ImageRecord]:
    """A row is an object, an image without objects has a row with an empty box.

    Splits by a column `split`, else by the name of the file or its folders. Corners are edges: the width
    is xmax - xmin. Boxes whose numbers all lie in [0, 1] are shares of the image. Classes in
    alphabetical order, or as a table `name,id` (classes.csv) says.
    """
    tables, folder.notes = read_once(folder.root, [_read_table(file, folder) for file in folder.files])
    records: dict[tuple[str, str], ImageRecord] = {}
    for table in tables:
        folder.notes += table.notes
        for key, record in table.records.items():
            known = records.setdefault(key, record)
            if known is not record:
                known.marks += record.marks
    folder.ids = _class_table(folder.root)
    return records.values()


def _read_table(file: Path, folder: AnnotationFolder) -> Table:
    root, remarks, columns = folder.root, folder.remarks, _columns(file)
    assert isinstance(columns, Columns)
    if columns.unknown:
        message = "column that is not known; not read; nothing to do unless it names boxes or classes"
        for name in columns.unknown:
            remarks.add("warning", "unknown_column", file, message, name)
    near, named = file.parent.relative_to(root), named_split(file, root)
    whole = (
        "trainval" in file.stem.lower()
    )  # trainval.csv may lie beside train.csv and val.csv, which repeat its rows
    table = Table(file, columns.split is not None or (named is not None and not whole))
    if columns.name is None:
        message = f"there is no column of classes, so all objects are of one, called {ONE_CLASS!r}; add a column class"
        table.notes.append(Fault("note", "one_class", shown_path(file, root), None, message))
    rows = _rows(file, columns)
    boxes = [_boxes(row, columns) for row in rows]
    inside = [box for own in boxes for box in own if box is not None]
    fraction = bool(inside) and all(-1e-6 <= v <= 1 + 1e-6 for box in inside for v in (*box[:2], *_far(box)))
    if fraction and all(v == int(v) for box in inside for v in box):
        fraction = False  # boxes of one pixel, not of the whole image
    for number, (row, own) in enumerate(zip(rows, boxes, strict=True), start=1):
        name = row[columns.image].strip() if columns.image < len(row) else ""
        if not name:
            message = "row without an image; left out; name it"
            remarks.add("error", "invalid_row", file, message, f"row {number}")
            continue
        split = split_of(_cell(row, columns.split)) or named or "train"
        key = (split, name)
        if key not in table.records:
            shown = name if near == Path(".") else (near / name.replace("\\", "/")).as_posix()
            table.records[key] = ImageRecord(shown, file, split, _size(row, columns), [], (name,))
        label = ONE_CLASS if columns.name is None else _cell(row, columns.name)
        table.records[key].marks += [Mark(label, box, fraction=fraction) for box in own]
    return table


def _rows(file: Path, columns: Columns) -> list[list[str]]:
    rows = list(read_rows(file, sniff.table_head(file)[2]))
    return rows[1:] if columns.header else rows


def _cell(row: Sequence[str], position: int | None) -> str:
    return row[position].strip() if position is not None and position < len(row) else ""


def _boxes(row: Sequence[str], columns: Columns) -> list[Box | None]:
    """The boxes of a row: none for an image without objects, None for one that cannot be read."""
    if not any(_cell(row, position) for position in columns.box):
        return []
    if len(columns.box) == 1:
        cells = boxes_in(_cell(row, columns.box[0]))
        if cells is None:
            return [None]
    else:
        try:
            cells = [tuple(float(_cell(row, position)) for position in columns.box)]
        except ValueError:
            return [None]
    return [(a, b, c, d) if columns.sides else (a, b, c - a, d - b) for a, b, c, d in cells]


def _far(box: Box) -> tuple[float, float]:
    return box[0] + box[2], box[1] + box[3]


def _size(row: Sequence[str], columns: Columns) -> tuple[int, int] | None:
    if columns.size is None:
        return None
    try:
        width, height = (float(_cell(row, position)) for position in columns.size)
    except ValueError:
        return None
    whole = math.isfinite(width) and math.isfinite(height) and min(width, height) >= 1
    return (int(height), int(width)) if whole else None


def _class_table(root: Path) -> Mapping[str, int] | None:
    """Class ids of RetinaNet's second table, rows `name,id`."""
    for file in sniff.files(root, ".csv"):
        first, second, delimiter = sniff.table_head(file)
        if all(len(row) == 2 and row[1].isdigit() for row in (first, second or first)):
            rows = [row for row in read_rows(file, delimiter) if len(row) == 2 and row[1].strip().isdigit()]
            return {name.strip(): int(number) for name, number in rows}
    return None


FORMAT = named_classes(
    name="csv",
    find=annotation_files,
    records=_read,
    lacks=_lacks,
    unlisted="image that no table names; left out; give it a row with an empty box if it has no object",
    title="CSV",
    places="rows filename,width,height,class,xmin,ymin,xmax,ymax or path,x1,y1,x2,y2,class, or a column bbox",
)
