"""YOLO: one txt a picture with rows `class cx cy w h` in [0, 1]; classes in data.yaml or obj.names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.formats import yolo_layout as layout
from datamodules.formats.source import Source, image_overlaps
from datamodules.images import frame_size
from datamodules.index import AnnotationIndex, Fault, IndexBuilder, shown_path

_NO_LABELS = frozenset({"classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "README.txt"})
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
    labels = layout.LabelFiles()
    classes, class_notes = _classes(root, file, content, images, labels)
    splits = {split: _read_split(root, own, classes, labels) for split, own in images.items()}
    return Source("yolo", root, classes, splits, (*notes, *class_notes, *image_overlaps(root, splits)))


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
        classes = {int(k): str(v) for k, v in names.items()}
        return classes, _class_count(shown_path(file or root, root), content.get("nc"), classes)
    every = [image for own in images.values() for image in own]
    folders = dict.fromkeys(folder for i in every for folder in (labels.folder(i), i.parent))
    for folder in (root, *folders):
        for candidate in layout.NAME_FILES:
            if (folder / candidate).is_file():
                lines = (folder / candidate).read_text(encoding="utf-8-sig").splitlines()
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


def _used_classes(file: Path | None) -> set[int]:
    firsts = file.read_text(encoding="utf-8-sig").split("\n") if file else []
    return {int(line.split()[0]) for line in firsts if line.split() and line.split()[0].isdigit()}


def _read_split(
    root: Path, images: list[Path], classes: Mapping[int, str], labels: layout.LabelFiles
) -> AnnotationIndex:
    builder = IndexBuilder(root, classes)
    number = 0
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
        number = _read_labels(builder, file, image_id, frame.size, number)
    _orphans(builder, images, labels)
    return builder.build()


def _orphans(builder: IndexBuilder, images: list[Path], labels: layout.LabelFiles) -> None:
    """A warning for each label file without an image."""
    stems = {(labels.folder(p), p.stem) for p in images}
    for folder in dict.fromkeys(labels.folder(p) for p in images):
        for file in sorted(folder.glob("*.txt")) if folder.is_dir() else []:
            if (folder, file.stem) not in stems and file.name not in _NO_LABELS:
                builder.fault(
                    "warning",
                    "orphan_label",
                    file,
                    None,
                    "there is no image of this name; add it or remove the file",
                )


def _read_labels(builder: IndexBuilder, file: Path, image_id: int, size: tuple[int, int], number: int) -> int:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        builder.fault(
            "error", "unreadable_labels", file, image_id, f"not a text file: {error}; write it again"
        )
        return number
    seen: set[tuple[float, ...]] = set()
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        number += 1
        row = _parse_row(builder, file, line_number, line)
        if row is None:
            continue
        if row in seen:
            builder.fault(
                "warning",
                "duplicate_object",
                file,
                line_number,
                f"line {line_number} repeats an earlier one ({line.strip()}); it is left out; remove it",
            )
            continue
        seen.add(row)
        source_id, cx, cy, w, h = row
        height, width = size
        box = ((cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height)
        builder.add_object(
            image_id, box, int(source_id), number, segmentation=_outline(line, size), file=file
        )
    return number


def _outline(line: str, size: tuple[int, int]) -> list[list[float]] | None:
    """The polygon of a row in pixels, as COCO writes it; None for a row of a box."""
    points = [float(value) for value in line.split()[1:]]
    if len(points) < 6:
        return None
    height, width = size
    return [[value * (height if i % 2 else width) for i, value in enumerate(points)]]


def _parse_row(builder: IndexBuilder, file: Path, line: int, text: str) -> tuple[float, ...] | None:
    """(class, cx, cy, w, h), or None and a fault."""
    rule = "a row is `class cx cy w h` with numbers in [0, 1]; the object is left out; correct the row"
    try:
        values = [float(v) for v in text.split()]
    except ValueError:
        builder.fault(
            "error", "invalid_row", file, line, f"line {line} {text.strip()!r} is not made of numbers; {rule}"
        )
        return None
    if len(values) > 6 and len(values) % 2 == 1:
        builder.fault(
            "warning",
            "polygon",
            file,
            line,
            f"line {line} is a polygon or a turned box; the upright box around it is taken, with its outline",
        )
        xs, ys = values[1::2], values[2::2]
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
            f"line {line} {text.strip()!r} has {len(values)} values{hint}; {rule}",
        )
        return None
    if max(abs(v) for v in values[1:]) > _NORMALISED:
        builder.fault(
            "error", "not_normalised", file, line, f"line {line} {text.strip()!r} looks like pixels; {rule}"
        )
        return None
    return tuple(values)
