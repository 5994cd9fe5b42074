"""Hugging Face imagefolder: metadata.jsonl or metadata.csv with `file_name` and `objects`, beside the images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.reading import kinds as sniff
from datamodules.reading.annotation_folder import AnnotationFolder, named_classes
from datamodules.reading.json_lines import first_object, four, objects, whole_size
from datamodules.reading.parsing import MALFORMED, read_lines, read_rows
from datamodules.reading.records import ImageRecord, Mark, Remarks

_NAMES = ("file_name", "filename", "image", "image_path")
_OBJECTS = ("objects", "annotations", "object")
_BOXES = ("bbox", "bboxes", "boxes", "box")
_CLASSES = ("categories", "category", "category_id", "labels", "label", "classes", "class", "name", "names")
_CROWD = ("is_crowd", "iscrowd", "is_crowds")
_LOOKED_AT = 20  # lines


def annotation_files(root: Path) -> list[Path]:
    """Every jsonl, and every metadata.csv, with a name of an image and objects with boxes in its first lines."""
    lines = [f for f in sniff.files(root, ".jsonl") if any(map(_is_image, sniff.first_lines(f, _LOOKED_AT)))]
    tables = [f for f in sniff.files(root, ".csv") if f.name == "metadata.csv" and _is_table(f)]
    return lines + tables


def _is_image(line: str) -> bool:
    if line.startswith("{") and '"objects"' in line and '"bbox"' in line and '"file_name"' in line:
        return True  # also if the line was cut off, or is broken
    content = first_object(line)
    return _key(content, _NAMES) is not None and _boxed(content) is not None


def _is_table(file: Path) -> bool:
    head = sniff.table_head(file)[0]
    return any(name in head for name in _NAMES) and any(name in head for name in _OBJECTS)


def _key(content: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    return next((key for key in keys if key in content), None)


def _boxed(content: Mapping[str, Any]) -> Any:
    """The objects of an image, None if it has none that may have boxes."""
    for key in _OBJECTS:
        value = content.get(key)
        if isinstance(value, dict) and _key(value, _BOXES):
            return value
        if isinstance(value, list) and all(isinstance(v, dict) and _key(v, _BOXES) for v in value):
            return value
    return content if _key(content, _BOXES) and _key(content, _CLASSES) else None


def without_boxes(root: Path) -> str:
    """What a metadata.jsonl has instead of objects, in words; empty if there is no such file."""
    for file in sniff.files(root, ".jsonl"):
        keys = [first_object(line) for line in sniff.first_lines(file, 1)]
        if keys and _key(keys[0], _NAMES) and _boxed(keys[0]) is None:
            return f"{file.relative_to(root).as_posix()} has the keys {', '.join(list(keys[0])[:6])}"
    return ""


def _read(folder: AnnotationFolder) -> list[ImageRecord]:
    """Boxes are x, y, width, height in pixels, as the data sets of the hub with `objects` have them.

    `objects` is a dictionary of lists (bbox, categories) or a list of dictionaries. Classes that are numbers
    are named by `class_label: names` of the README.md beside or above, else by the numbers themselves, with a remark.
    """
    names = _class_names(folder.root)
    records = []
    message = "line that cannot be understood; left out; correct it"
    for file in folder.files:
        near = file.parent.relative_to(folder.root)
        for number, content in _rows(file, folder.remarks):
            with folder.left_out(file, message, f"line {number}"):
                image = str(content[_key(content, _NAMES) or _NAMES[0]])
                marks = list(_marks(content, names, file, folder.remarks))
                size = whole_size(content.get("height"), content.get("width"))
                placed = (near / image.replace("\\", "/")).as_posix()
                records.append(folder.with_split(ImageRecord(placed, file, "train", size, marks, (image,))))
    folder.names = _in_order(records, names)
    return records


def _rows(file: Path, remarks: Remarks) -> Iterator[tuple[int, dict[str, Any]]]:
    if file.suffix.lower() != ".csv":
        yield from objects(file, remarks)
        return
    rows = read_rows(file, sniff.table_head(file)[2])
    head = [cell.strip() for cell in next(rows, [])]
    for number, row in enumerate(rows, start=2):
        content: dict[str, Any] = dict(zip(head, row, strict=False))
        for key in _OBJECTS:
            content[key] = _cell(content[key]) if key in content else None
        yield number, {key: value for key, value in content.items() if value is not None}


def _cell(text: str) -> Any:
    """The json in a cell, or the text itself if it is none: reading objects from it then fails."""
    try:
        return json.loads(text) if text.strip() else []
    except (ValueError, RecursionError):
        return text


def _marks(
    content: Mapping[str, Any], names: Mapping[int, str], file: Path, remarks: Remarks
) -> Iterator[Mark]:
    listed = _boxed(content)
    if listed is None:
        if any(content.get(key) for key in _OBJECTS):
            raise TypeError("objects without boxes")
        return
    for entry in listed if isinstance(listed, list) else _columns(listed):
        value = entry.get(_key(entry, _CLASSES) or "")
        name = "" if value is None else str(value).strip()
        if isinstance(value, int) and not isinstance(value, bool):
            name = names.get(value, name)
            if value not in names:
                message = (
                    "class number without a name; it is called by its number; write names in the lines, or "
                    "`class_label: names` in README.md"
                )
                remarks.add("note", "no_class_names", file, message, str(value))
        try:
            box = four(entry[_key(entry, _BOXES) or ""])
        except MALFORMED:
            box = None
        yield Mark(name, box, crowd=bool(entry.get(_key(entry, _CROWD) or "")))


def _columns(listed: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A dictionary of lists as one dictionary an object.

    Raises:
        ValueError: there are not as many classes as boxes.
    """
    boxes = _key(listed, _BOXES)
    assert boxes is not None
    kept = [key for key in (boxes, _key(listed, _CLASSES), _key(listed, _CROWD)) if key is not None]
    for values in zip(*(listed[key] for key in kept), strict=True):
        yield dict(zip(kept, values, strict=True))


def _class_names(root: Path) -> dict[int, str]:
    """Number -> name, from the head of README.md as the hub writes it; empty if there are none."""
    file = root / "README.md"
    if not file.is_file() or file.stat().st_size > 1 << 20:
        return {}
    found: dict[int, str] = {}
    inside = False
    for line in read_lines(file):
        number, colon, name = (part.strip().strip("'\"") for part in line.partition(":"))
        entry = bool(colon and name) and number.isascii() and number.isdigit() and len(number) < 7
        if inside and entry:
            found[int(number)] = name
        elif found:
            break
        inside = line.strip() == "names:" or (inside and entry)
    return found


def _in_order(records: Sequence[ImageRecord], names: Mapping[int, str]) -> list[str]:
    """Class names in order: by their number in `names`, else numbers by their value and not by alphabet."""
    used = {mark.name for record in records for mark in record.marks}
    numbers = sorted((n for n in used if n.isascii() and n.isdigit() and len(n) < 10), key=int)
    return [*(name for _, name in sorted(names.items())), *numbers]


FORMAT = named_classes(
    name="imagefolder",
    find=annotation_files,
    records=_read,
    lacks="metadata.jsonl with file_name and objects (bbox, categories)",
    unlisted="image that no metadata file names; left out",
    title="Hugging Face imagefolder",
    places="train/metadata.jsonl with file_name and objects (bbox, categories), train/*.jpg",
)
