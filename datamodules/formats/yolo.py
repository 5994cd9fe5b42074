"""YOLO: one txt for each image with rows `class cx cy w h` in [0, 1]; classes in data.yaml or obj.names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.formats import yolo_layout as layout
from datamodules.formats.yolo_keypoints import KeyPoints, key_points
from datamodules.formats.yolo_label_files import LabelFiles, is_listing, text_files
from datamodules.formats.yolo_labels import read_labels
from datamodules.images.files import frame_size, list_images
from datamodules.index import AnnotationIndex, Fault, IndexBuilder, shown_path
from datamodules.index.source import Source, image_overlaps, similar_names
from datamodules.reading import kinds as sniff
from datamodules.reading.parsing import read_lines
from datamodules.reading.reader import Evidence, Reader, Signs, claimed
from datamodules.reading.text import as_utf8
from zoo.storage.opening import read_file

_NO_LABELS = frozenset(
    {"classes.txt", "predefined_classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "README.txt"}
)
_UNKNOWN_ID = re.compile(r"category (\d+) is not in the class list")
_MANY = 10  # objects of unknown classes from which the list of names is at fault, not the rows

_LONGEST_ID = 18  # digits of a class number that are read


def read(root: Path, *, verify_sizes: bool = True) -> Source:
    """A folder with data.yaml, or with images/ and labels/. Sizes always come from the images.

    Raises:
        ValueError: if data.yaml cannot be parsed or no image folder is found.
    """
    file = layout.data_file(root)
    content = layout.load(file) if file else {}
    with sniff.one_walk():
        found = layout.find(root, content)
    shown = shown_path(file or root, root)
    if not found.images:
        raise ValueError(_nothing_found(root, file, content))
    notes = [
        Fault(
            "warning",
            "missing_split",
            shown,
            split,
            f"{path} does not exist or has no image; it is left out; correct the path",
        )
        for split, path in found.lost.items()
    ]
    if file and file.suffix != ".data":  # darknet's paths are relative to where it is started
        notes += _inexact_paths(root, shown, content, found)
    labels = LabelFiles()
    classes, class_notes = _classes(root, file, content, found.images, labels)
    every = (own for images in found.images.values() for image in images if (own := labels.find(image)))
    shape = key_points(file, content, every)
    splits = {split: _read_split(root, own, classes, labels, shape) for split, own in found.images.items()}
    splits, short = _short_class_list(shown, classes, splits)
    orphans = _orphans(root, found.images, labels)
    splits = {s: replace(i, faults=(*i.faults, *orphans.get(s, ()))) for s, i in splits.items()}
    notes += [*class_notes, *short]
    notes += [shape.fault(shown)] if shape and shape.rows else []
    return Source("yolo", root, classes, splits, (*notes, *image_overlaps(root, splits)))


def _nothing_found(root: Path, file: Path | None, content: Mapping[str, Any]) -> str:
    """The error message: what was expected and what is there instead."""
    named = "; ".join(f"{s}: {', '.join(own)}" for s, own in layout.named_paths(content).items() if own)
    expected = named or "images/train, train/images or images, each with labels"
    if content.get("path") and named:
        expected += f" (below path: {content['path']})"
    there = [shown_path(folder, root) for folder in sniff.image_folders(root)]
    found = ", ".join(there[:_MANY]) + (", ..." if len(there) > _MANY else "")
    where = shown_path(file, root) if file else "the layout"
    return (
        f"{root}: {where} expects images in {expected}, of which none is there; found "
        f"{f'images in {found}; correct the paths' if there else 'no image at all; put them there'}"
    )


def _inexact_paths(root: Path, shown: str, content: Mapping[str, Any], found: layout.Found) -> list[Fault]:
    """A note for each path of data.yaml that does not exist as written, although its images were found."""
    base = content.get("path")
    if base and not os.path.exists(root / str(base)) and found.taken:
        before = f"path: {base} does not exist here; "
    else:
        before = ""
    notes = []
    for (split, name), taken in found.taken.items():
        if not any(map(os.path.exists, (root / str(base or "") / name, root / name))):
            message = f"{before}{name} does not exist as written; {shown_path(taken, root)} is taken; correct the path"
            notes.append(Fault("note", "split_path", shown, split, message))
    return notes


def _classes(
    root: Path,
    file: Path | None,
    content: Mapping[str, Any],
    images: Mapping[str, list[Path]],
    labels: LabelFiles,
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
        classes = {int(str(k)[:_LONGEST_ID]): str(v) for k, v in names.items()}
        if len(classes) < len(names):
            raise ValueError(f"{file}: names gives a class number twice, as in 0 and 00; keep one of them")
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
    message = (
        f"there is no data.yaml or classes.txt, so the classes {used} are named by their numbers; add "
        "data.yaml with names"
    )
    note = Fault("warning", "no_class_names", str(root), None, message)
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
    """One fault for a list of names that lacks the classes of many objects, instead of one for each object."""
    unknown = [f for index in splits.values() for f in index.faults if f.kind == "unknown_category"]
    ids = [int(match[1]) for f in unknown if (match := _UNKNOWN_ID.match(f.message))]
    if len(ids) < _MANY or max(ids) <= max(classes, default=-1):
        return dict(splits), []
    names = ", ".join(map(repr, list(classes.values())[:_MANY]))
    message = (
        f"the label files have class ids up to {max(ids)} but there are only {len(classes)} names ({names}); "
        f"{len(unknown)} objects are left out; add the names that are missing"
    )
    kept = {
        name: replace(index, faults=tuple(f for f in index.faults if f.kind != "unknown_category"))
        for name, index in splits.items()
    }
    return kept, [Fault("error", "short_class_list", file, None, message)]


def _used_classes(file: Path | None) -> set[int]:
    text = as_utf8(read_file(file)).decode("utf-8-sig", errors="replace") if file and file.is_file() else ""
    firsts = text.split("\n")
    return {
        int(line.split()[0][:_LONGEST_ID])
        for line in firsts
        if line.split() and line.split()[0][:_LONGEST_ID].isdecimal()
    }


def _read_split(
    root: Path,
    images: list[Path],
    classes: Mapping[int, str],
    labels: LabelFiles,
    shape: KeyPoints | None,
) -> AnnotationIndex:
    builder = IndexBuilder(root, classes)
    number = labelled = 0
    outlined: list[int] = []  # positions of the faults that report polygons and nothing else
    for image_id, path in enumerate(images):
        if not os.path.isfile(path):
            message = (
                "it is listed and there is no such file; the image is left out; put the file there or remove "
                "the line"
            )
            builder.fault("error", "missing_image", path, image_id, message)
            continue
        frame = frame_size(path, None)
        if frame.size is None:
            builder.fault("error", frame.kind, path, image_id, frame.message)
            continue
        builder.add_image(path, image_id, frame.size)
        file = labels.find(path)
        if file is None:
            message = (
                f"there is no {shown_path(labels.folder(path) / path.stem, root)}.txt; the image counts as one "
                "without objects; write an empty file if that is so"
            )
            builder.fault("warning", "no_label_file", path, image_id, message)
            continue
        before = number
        number = read_labels(builder, root, file, image_id, frame.size, number, outlined, shape)
        labelled += number > before
    if 2 * len(outlined) >= labelled:  # then it is a set of outlines, and these rows are no mistakes
        for k in outlined:
            builder.faults[k] = replace(builder.faults[k], severity="note")
    return builder.build()


def _orphans(root: Path, images: Mapping[str, list[Path]], labels: LabelFiles) -> dict[str, list[Fault]]:
    """Label files without an image on disk and lists of other tools, each reported in the first split of its folder."""
    folders: dict[Path, dict[Path, str]] = {}  # of labels -> of their images -> split
    for split, own in images.items():
        for folder in dict.fromkeys(image.parent for image in own):
            folders.setdefault(labels.folder(folder / "x"), {}).setdefault(folder, split)
    faults: dict[str, list[Fault]] = {}
    for folder, beside in folders.items():
        listed = faults.setdefault(next(iter(beside.values())), [])
        stems = {image.stem for place in beside if place.is_dir() for image in list_images(place)}
        where = " or ".join(shown_path(place, root) for place in beside)
        for file in text_files(folder):
            if file.stem in stems:
                continue
            if file.name in _NO_LABELS or is_listing(file):
                message = "no labels, a list of names; nothing to do"
                listed.append(Fault("note", "stray_file", shown_path(file, root), None, message))
            else:
                message = f"there is no image of this name in {where}; add it or remove the file"
                listed.append(Fault("warning", "orphan_label", shown_path(file, root), None, message))
    return faults


def _look(root: Path, before: Sequence[Evidence]) -> Signs:
    file = layout.data_file(root)
    if file and not claimed(before, "oriented"):  # Roboflow's yolo_obb has a data.yaml too
        return Signs([file], True)
    labels = None if any(e.layout for e in before) else layout.loose_labels(root)
    others = claimed(before, "box_list", "kitti", "visdrone", "wider_face", "mot")  # txt with numbers too
    return Signs([labels] if labels and labels not in others else [], False)


FORMAT = Reader(
    name="yolo",
    look=_look,
    read=read,
    title="YOLO",
    places="data.yaml, images/train/*.jpg, labels/train/*.txt (or train/images, train/labels); darknet's "
    "obj.data, obj.names, train.txt",
)
