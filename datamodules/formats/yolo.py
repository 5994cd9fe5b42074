"""YOLO: one txt a picture with rows `class cx cy w h` in [0, 1], classes in data.yaml."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from datamodules.formats.source import Source, image_overlaps
from datamodules.images import ImageFolder, frame_size, list_images
from datamodules.index import AnnotationIndex, Fault, IndexBuilder, shown_path

_SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
_NORMALISED = 1.5  # larger values are pixels; boxes a little over the edge are not


def data_file(root: Path) -> Path | None:
    """data.yaml, or the only yaml that has names."""
    for file in [root / "data.yaml", root / "data.yml", *sorted(root.glob("*.y*ml"))]:
        if file.is_file() and "names" in _load_yaml(file):
            return file
    return None


def _load_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be parsed: {error}") from error
    return content if isinstance(content, dict) else {}


def image_folders(root: Path, content: Mapping[str, Any]) -> tuple[dict[str, Path], dict[str, str]]:
    """Per split its image folder; per lost split the path in data.yaml that does not exist."""
    found: dict[str, Path] = {}
    lost: dict[str, str] = {}
    for split, keys in _SPLIT_KEYS.items():
        named = next((str(content[k]) for k in keys if content.get(k)), "")
        guesses = _named_folders(root, content, named) if named else []
        guesses += [base for k in keys for base in (root / "images" / k, root / k / "images")]
        folder = next((g for g in guesses if g.is_dir() and list_images(g)), None)
        if folder:
            found[split] = folder
        elif named:
            lost[split] = named
    if not found and (root / "images").is_dir() and list_images(root / "images"):
        found["train"] = root / "images"
    return found, lost


def _named_folders(root: Path, content: Mapping[str, Any], named: str) -> list[Path]:
    parts = [p for p in named.replace("\\", "/").split("/") if p not in ("", ".", "..")]
    base = root / str(content.get("path") or "")
    # Roboflow writes ../train/images for the folder beside data.yaml, Colab users absolute paths
    return [base / named, root / named, *(root.joinpath(*parts[-n:]) for n in (3, 2) if len(parts) >= n)]


def read(root: Path, *, verify_sizes: bool = True) -> Source:
    """A folder with data.yaml, or with images/ and labels/. Sizes always come from the images.

    Raises:
        ValueError: if data.yaml cannot be parsed or no image folder is found.
    """
    file = data_file(root)
    content = _load_yaml(file) if file else {}
    folders, lost = image_folders(root, content)
    if not folders:
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
            f"{path} does not exist; the split is left out; correct the path",
        )
        for split, path in lost.items()
    ]
    classes, class_notes = _classes(root, file, content, folders)
    splits = {split: _read_split(root, folder, classes) for split, folder in folders.items()}
    return Source("yolo", root, classes, splits, (*notes, *class_notes, *image_overlaps(root, splits)))


def _classes(
    root: Path, file: Path | None, content: Mapping[str, Any], folders: Mapping[str, Path]
) -> tuple[dict[int, str], list[Fault]]:
    names = content.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if isinstance(names, dict) and names:
        classes = {int(k): str(v) for k, v in names.items()}
        return classes, _class_count(shown_path(file or root, root), content.get("nc"), classes)
    for folder in (root, *(label_folder(f) for f in folders.values())):
        for candidate in ("classes.txt", "obj.names"):
            if (folder / candidate).is_file():
                lines = (folder / candidate).read_text(encoding="utf-8-sig").splitlines()
                return dict(enumerate(line.strip() for line in lines if line.strip())), []
    used = sorted({row for f in folders.values() for row in _used_classes(label_folder(f))})
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


def _used_classes(folder: Path) -> set[int]:
    used = set()
    for file in sorted(folder.glob("*.txt")):
        for line in file.read_text(encoding="utf-8-sig").splitlines():
            first = line.split()[0] if line.split() else ""
            if first.isdigit():
                used.add(int(first))
    return used


def label_folder(images: Path) -> Path:
    """The labels beside an image folder: the last `images` in the path becomes `labels`."""
    parts = list(images.parts)
    for position in range(len(parts) - 1, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            return Path(*parts)
    return images


def _read_split(root: Path, folder: Path, classes: Mapping[int, str]) -> AnnotationIndex:
    builder = IndexBuilder(root, classes)
    labels = label_folder(folder)
    known = ImageFolder(labels)
    images = list_images(folder)
    number = 0
    for image_id, path in enumerate(images):
        frame = frame_size(path, None)
        if frame.size is None:
            builder.fault("error", frame.kind, path, image_id, frame.message)
            continue
        builder.add_image(path, image_id, frame.size)
        file, _ = known.find(f"{path.stem}.txt")
        if file is None:
            builder.fault(
                "warning",
                "no_label_file",
                path,
                image_id,
                f"there is no {shown_path(labels / path.stem, root)}.txt; the image counts as one without "
                "objects; write an empty file if that is so",
            )
            continue
        number = _read_labels(builder, file, image_id, frame.size, number)
    stems = {p.stem for p in images}
    for file in sorted(labels.glob("*.txt")) if labels.is_dir() else []:
        if file.stem not in stems and file.name not in ("classes.txt", "train.txt", "val.txt", "test.txt"):
            builder.fault(
                "warning",
                "orphan_label",
                file,
                None,
                "there is no image of this name; add it or remove the file",
            )
    return builder.build()


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
        builder.add_object(image_id, box, int(source_id), number, file=file)
    return number


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
            f"line {line} is a polygon; its bounding box is taken; nothing to do unless masks were meant",
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
