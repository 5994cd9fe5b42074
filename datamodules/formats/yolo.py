"""YOLO: one txt a picture with rows `class cx cy w h` in [0, 1]; classes in data.yaml or obj.names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.formats import yolo_layout as layout
from datamodules.formats.coco import similar_names
from datamodules.formats.parsing import read_lines
from datamodules.formats.reader import Evidence, Reader, Signs, claimed
from datamodules.formats.source import Source, image_overlaps
from datamodules.formats.text import encoding_of
from datamodules.images import frame_size
from datamodules.index import AnnotationIndex, Fault, IndexBuilder, shown_path
from zoo.opening import read_file

_NO_LABELS = frozenset(
    {"classes.txt", "predefined_classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "README.txt"}
)
_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+")
_UNKNOWN_ID = re.compile(r"category (\d+) is not in the class list")
_MANY = 10  # objects of unknown classes from which the list of names is at fault, not the rows
_LONGEST_ROW = 1 << 20  # letters: an outline of some 50 000 points
_SHOWN = 100  # letters of a row in a message
_NORMALISED = 1.5  # larger values are pixels; boxes a little over the edge are not


def read(root: Path, *, verify_sizes: bool = True) -> Source:
    """A folder with data.yaml, or with images/ and labels/. Sizes always come from the images.

    Raises:
        ValueError: if data.yaml cannot be parsed or no image folder is found.
    """
    file = layout.data_file(root)
    content = layout.load(file) if file else {}
    images, lost = layout.split_images(root, content)
    if not images:
        raise ValueError(
            f"{root}: none of the image folders exists: {lost or 'images/train, train/images, images'}"
        )
    shown = shown_path(file or root, root)
    notes = [
        Fault(
            "warning",
            "missing_split",
            shown,
            split,
            f"{path} does not exist or has no image; it is left out; correct the path",
        )
        for split, path in lost.items()
    ]
    if file and file.suffix != ".data":  # darknet's paths are relative to where it is started
        notes += _inexact_paths(root, shown, content, images, lost)
    labels = layout.LabelFiles()
    classes, class_notes = _classes(root, file, content, images, labels)
    splits = {split: _read_split(root, own, classes, labels) for split, own in images.items()}
    splits, short = _short_class_list(shown, classes, splits)
    return Source(
        "yolo", root, classes, splits, (*notes, *class_notes, *short, *image_overlaps(root, splits))
    )


def _inexact_paths(
    root: Path,
    shown: str,
    content: Mapping[str, Any],
    images: Mapping[str, list[Path]],
    lost: Mapping[str, str],
) -> list[Fault]:
    """A note for each path of data.yaml that does not exist as written, although its images were found."""
    notes = []
    for split, named in layout.named_paths(content).items():
        for name in named if split in images and split not in lost else []:
            if not (root / str(content.get("path") or "") / name).exists() and not (root / name).exists():
                taken = shown_path(images[split][0].parent, root)
                message = f"{name} does not exist as written; {taken} is taken; correct the path"
                notes.append(Fault("note", "split_path", shown, split, message))
    return notes


def _classes(
    root: Path,
    file: Path | None,
    content: Mapping[str, Any],
    images: Mapping[str, list[Path]],
    labels: layout.LabelFiles,
) -> tuple[dict[int, str], list[Fault]]:
    names = content.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if isinstance(names, dict) and names:
        if not all(str(k).lstrip("+-").isdigit() for k in names):
            raise ValueError(
                f"{file}: names has the keys {list(names)[:3]}, which must be class numbers; write "
                f"`0: {next(iter(names))}`"
            )
        classes = {int(k): str(v) for k, v in names.items()}
        shown = shown_path(file or root, root)
        notes = _class_count(shown, content.get("nc"), classes)
        return classes, [*notes, *similar_names(shown, classes)]
    every = [image for own in images.values() for image in own]
    folders = dict.fromkeys(folder for i in every for folder in (labels.folder(i), i.parent))
    for folder in (root, *folders):
        for candidate in layout.NAME_FILES:
            if (folder / candidate).is_file():
                lines = read_lines(folder / candidate)
                return dict(enumerate(line.strip() for line in lines if line.strip())), []
    used = sorted({row for image in every for row in _used_classes(labels.find(image))})
    note = Fault(
        "warning",
        "no_class_names",
        str(root),
        None,
        f"there is no data.yaml or classes.txt, so the classes {used} are named by their numbers; add "
        "data.yaml with names",
    )
    return {c: f"class_{c}" for c in used}, [note]


def _class_count(file: str, count: object, classes: Mapping[int, str]) -> list[Fault]:
    if count is None or count == len(classes):
        return []
    names = list(classes.values())
    message = f"nc is {count} but there are {len(classes)} names {names}; names is taken; correct nc"
    return [Fault("error", "class_list", file, None, message)]


def _short_class_list(
    file: str, classes: Mapping[int, str], splits: Mapping[str, AnnotationIndex]
) -> tuple[dict[str, AnnotationIndex], list[Fault]]:
    """One fault for a list of names that lacks many objects' classes, instead of one for each object."""
    unknown = [f for index in splits.values() for f in index.faults if f.kind == "unknown_category"]
    ids = [int(match[1]) for f in unknown if (match := _UNKNOWN_ID.match(f.message))]
    if len(ids) < _MANY or max(ids) <= max(classes, default=-1):
        return dict(splits), []
    names = ", ".join(map(repr, list(classes.values())[:_MANY]))
    message = (
        f"the label files have class ids up to {max(ids)} but there are only {len(classes)} names ({names}); "
        f"{len(unknown)} objects are left out; add the names that are missing"
    )
    told = {
        name: replace(index, faults=tuple(f for f in index.faults if f.kind != "unknown_category"))
        for name, index in splits.items()
    }
    return told, [Fault("error", "short_class_list", file, None, message)]


def _used_classes(file: Path | None) -> set[int]:
    firsts = file.read_text(encoding="utf-8-sig", errors="replace").split("\n") if file else []
    return {int(line.split()[0]) for line in firsts if line.split() and line.split()[0].isdigit()}


def _read_split(
    root: Path, images: list[Path], classes: Mapping[int, str], labels: layout.LabelFiles
) -> AnnotationIndex:
    builder = IndexBuilder(root, classes)
    number = labelled = 0
    outlined: list[int] = []  # places of the faults that tell of polygons alone
    for image_id, path in enumerate(images):
        if not path.is_file():
            builder.fault(
                "error",
                "missing_image",
                path,
                image_id,
                "it is listed and there is no such file; the image is left out; put the file there or remove "
                "the line",
            )
            continue
        frame = frame_size(path, None)
        if frame.size is None:
            builder.fault("error", frame.kind, path, image_id, frame.message)
            continue
        builder.add_image(path, image_id, frame.size)
        file = labels.find(path)
        if file is None:
            builder.fault(
                "warning",
                "no_label_file",
                path,
                image_id,
                f"there is no {shown_path(labels.folder(path) / path.stem, root)}.txt; the image counts as one "
                "without objects; write an empty file if that is so",
            )
            continue
        before = number
        number = _read_labels(builder, root, file, image_id, frame.size, number, outlined)
        labelled += number > before
    if 2 * len(outlined) >= labelled:  # a set of outlines, not a slip in one of boxes
        for k in outlined:
            builder.faults[k] = replace(builder.faults[k], severity="note")
    _orphans(builder, images, labels)
    return builder.build()


def _orphans(builder: IndexBuilder, images: list[Path], labels: layout.LabelFiles) -> None:
    """A warning for each label file without an image, a note for each list of another tool."""
    stems = {(labels.folder(p), p.stem) for p in images}
    for folder in dict.fromkeys(labels.folder(p) for p in images):
        for file in layout.text_files(folder):
            if (folder, file.stem) in stems:
                continue
            if file.name in _NO_LABELS:
                builder.fault("note", "stray_file", file, None, "no labels, a list of names; nothing to do")
            else:
                builder.fault(
                    "warning",
                    "orphan_label",
                    file,
                    None,
                    "there is no image of this name; add it or remove the file",
                )


def _read_labels(
    builder: IndexBuilder,
    root: Path,
    file: Path,
    image_id: int,
    size: tuple[int, int],
    number: int,
    outlined: list[int],
) -> int:
    """Adds the objects of a file; the number of the last, and in `outlined` where its polygons were told."""
    try:
        data = read_file(file)
        encoding = encoding_of(data) or "utf-8"
        lines = data.decode(encoding).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        builder.fault(
            "error", "unreadable_labels", file, image_id, f"not a UTF-8 text: {error}; save it as UTF-8"
        )
        return number
    if encoding == "utf-8-sig":
        builder.fault(
            "note", "byte_order_mark", file, None, "read without it; other programs may stumble on it"
        )
    elif encoding != "utf-8":
        told = f"read as {encoding.upper()}; other programs expect UTF-8; save it as that"
        builder.fault("note", "other_encoding", file, None, told)
    shown = shown_path(file, root)
    seen: set[tuple[float, ...]] = set()
    polygons: list[int] = []
    turned = False
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        number += 1
        if len(line) > _LONGEST_ROW:
            builder.fault(
                "error",
                "invalid_row",
                file,
                line_number,
                f"line {line_number} has {len(line)} letters, more than an outline has; the object is left out; "
                "look what the file is",
            )
            continue
        row = _parse_row(builder, file, line_number, line)
        if row is None:
            continue
        (source_id, cx, cy, w, h), points = row
        polygons += [line_number] if points else []
        turned = turned or _is_turned(points)
        if (source_id, cx, cy, w, h, *points) in seen:
            builder.fault(
                "warning",
                "duplicate_object",
                file,
                line_number,
                f"line {line_number} repeats an earlier one ({_cut(line)}); it is left out; remove it",
            )
            continue
        seen.add((source_id, cx, cy, w, h, *points))
        height, width = size
        box = ((cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height)
        outline = [[v * (height if i % 2 else width) for i, v in enumerate(points)]] if points else None
        told = len(builder.faults)
        builder.add_object(image_id, box, int(source_id), number, segmentation=outline, file=file)
        # a line of the label file is what a user can find, not the number of the object
        builder.faults[told:] = [replace(f, file=shown, id=line_number) for f in builder.faults[told:]]
    if polygons:
        builder.fault(
            "warning",
            "polygon",
            file,
            polygons[0],
            f"{len(polygons)} x row of a polygon or a turned box, the first in line {polygons[0]}; the upright "
            "box around it is taken, with its outline",
        )
        if not turned:
            outlined.append(len(builder.faults) - 1)
    return number


def _is_turned(points: tuple[float, ...]) -> bool:
    """Whether a row may be a turned box, of which the box around it is not what was drawn."""
    return len(points) == 8 and not len(set(points[::2])) == len(set(points[1::2])) == 2


def _numbers(builder: IndexBuilder, file: Path, line: int, text: str) -> list[float] | None:
    """The numbers of a row, or None if it has anything else. Commas are understood, and told."""
    tokens = text.split()
    if len(tokens) == 5 and all(_DECIMAL_COMMA.fullmatch(t) for t in tokens[1:]):
        told, tokens = "has decimal commas", [t.replace(",", ".") for t in tokens]
    elif "," in text or ";" in text:
        told, tokens = "is separated by commas", re.split(r"[\s,;]+", text.strip(" \t,;"))
    else:
        told = ""
    try:
        values = [float(v) for v in tokens]
    except ValueError:
        return None
    if "_" in text:  # a number to Python, a slip to everyone else
        return None
    if told:
        builder.fault(
            "warning",
            "comma_separated",
            file,
            line,
            f"line {line} {_cut(text)!r} {told}; it is read as meant; write `class cx cy w h`",
        )
    if values and not tokens[0].lstrip("+-").isdigit() and values[0].is_integer():
        builder.fault("note", "float_class", file, line, f"class {tokens[0]} is read as {int(values[0])}")
    return values


def _cut(text: str) -> str:
    """A row as a message shows it."""
    row = text.strip()
    return row if len(row) <= _SHOWN else f"{row[:_SHOWN]}..."


def _parse_row(
    builder: IndexBuilder, file: Path, line: int, text: str
) -> tuple[tuple[float, float, float, float, float], tuple[float, ...]] | None:
    """(class, cx, cy, w, h) and the points of a polygon, or None and a fault."""
    rule = "a row is `class cx cy w h` with numbers in [0, 1]; the object is left out; correct the row"
    values = _numbers(builder, file, line, text)
    if values is None:
        builder.fault(
            "error", "invalid_row", file, line, f"line {line} {_cut(text)!r} is not made of numbers; {rule}"
        )
        return None
    points: tuple[float, ...] = ()
    if len(values) > 6 and len(values) % 2 == 1 and all(math.isfinite(v) for v in values):
        points = tuple(values[1:])
        xs, ys = points[::2], points[1::2]
        values = [
            values[0],
            (min(xs) + max(xs)) / 2,
            (min(ys) + max(ys)) / 2,
            max(xs) - min(xs),
            max(ys) - min(ys),
        ]
    if len(values) != 5 or not all(math.isfinite(v) for v in values) or values[0] != int(values[0]):
        hint = "; a sixth number is a score: these are predictions, not labels" if len(values) == 6 else ""
        builder.fault(
            "error",
            "invalid_row",
            file,
            line,
            f"line {line} {_cut(text)!r} has {len(values)} values{hint}; {rule}",
        )
        return None
    if max(abs(v) for v in values[1:]) > _NORMALISED:
        builder.fault(
            "error", "not_normalised", file, line, f"line {line} {_cut(text)!r} looks like pixels; {rule}"
        )
        return None
    source_id, cx, cy, w, h = values
    return (source_id, cx, cy, w, h), points


def _look(root: Path, before: Sequence[Evidence]) -> Signs:
    file = layout.data_file(root)
    if file and not claimed(before, "oriented"):  # Roboflow's yolo_obb has a data.yaml too
        return Signs([file], True)
    others = claimed(before, "box_list", "kitti", "visdrone", "wider_face", "mot")  # txt with numbers too
    labels = None if others or any(e.layout for e in before) else layout.loose_labels(root)
    return Signs([labels] if labels else [], False)


FORMAT = Reader(
    name="yolo",
    look=_look,
    read=read,
    title="YOLO",
    places="data.yaml, images/train/*.jpg, labels/train/*.txt (or train/images, train/labels); darknet's "
    "obj.data, obj.names, train.txt",
)
