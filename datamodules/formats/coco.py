"""COCO json: the 2017 layout and its common relatives."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from datamodules.formats.source import Source, add_checked_image, class_key, image_overlaps, split_of
from datamodules.images import ImageFolder
from datamodules.index import AnnotationIndex, Fault, IndexBuilder, shown_path
from datamodules.judge import is_id

# other kinds of COCO annotation, without boxes to train on or twice the same
_OTHER_KINDS = ("panoptic", "captions", "person_keypoints", "image_info", "images_info", "stuff")


class _Category(msgspec.Struct):
    id: Any = None
    name: Any = None
    supercategory: Any = None


class CocoImage(msgspec.Struct):
    """One entry of `images`, with any values."""

    id: Any = None
    file_name: Any = None
    width: Any = None
    height: Any = None


class _Annotation(msgspec.Struct):
    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    area: Any = None
    iscrowd: Any = 0
    segmentation: Any = None


class CocoFile(msgspec.Struct):
    """The parts of a COCO json that detection needs."""

    images: list[CocoImage]
    categories: list[_Category]
    annotations: list[_Annotation] = []


def load(path: Path) -> CocoFile:
    """Parses a COCO json.

    Raises:
        ValueError: naming the file, if it is no json or lacks images or categories.
    """
    data = path.read_bytes()
    try:
        return msgspec.json.decode(data, type=CocoFile)
    except (msgspec.DecodeError, UnicodeDecodeError) as strict:
        try:  # python's parser takes the bare NaN and Infinity that some tools write, and a byte order mark
            return msgspec.convert(json.loads(data.decode("utf-8-sig")), CocoFile)
        except ValueError as error:
            raise ValueError(
                f"{path} is no COCO annotation file: {error or strict}; it needs the lists images, "
                "annotations and categories"
            ) from error


def read_classes(file: Path, content: CocoFile, root: Path) -> tuple[dict[int, str], list[Fault]]:
    """Classes in the order of the file, and what is wrong with the list."""
    classes: dict[int, str] = {}
    faults = []
    shown = shown_path(file, root)
    for category in content.categories:
        if not is_id(category.id) or not isinstance(category.name, str):
            faults.append(
                Fault(
                    "error",
                    "invalid_category",
                    shown,
                    str(category.id),
                    f"category {category.id!r} named {category.name!r} is left out; it needs an integer id "
                    "and a name",
                )
            )
        elif category.id in classes:
            faults.append(
                Fault(
                    "error",
                    "duplicate_category",
                    shown,
                    category.id,
                    f"category id {category.id} is {classes[category.id]!r} and {category.name!r}; the "
                    "first is taken; give each class one id",
                )
            )
        else:
            classes[category.id] = category.name
    return classes, [*faults, *similar_names(shown, classes)]


def similar_names(file: str, classes: Mapping[int, str]) -> Iterable[Fault]:
    """A warning for each class whose name differs from an earlier one by its spelling only."""
    first: dict[str, int] = {}
    for source_id, name in classes.items():
        key = class_key(name)
        if key in first:
            yield Fault(
                "warning",
                "similar_classes",
                file,
                source_id,
                f"classes {first[key]} {classes[first[key]]!r} and {source_id} {name!r} differ by case, "
                "spaces or Unicode form only; they are kept apart; merge them if they mean the same",
            )
        first.setdefault(key, source_id)


def read_split(
    root: Path,
    file: Path,
    folder: Path,
    classes: Mapping[int, str],
    *,
    content: CocoFile | None = None,
    verify_sizes: bool = True,
) -> AnnotationIndex:
    """One annotation file and its image folder as an index."""
    content = content or load(file)
    builder = IndexBuilder(root, classes)
    images = ImageFolder(folder)
    for image in content.images:
        if not is_id(image.id) or not isinstance(image.file_name, str):
            builder.fault(
                "error",
                "invalid_image",
                folder / image.file_name if isinstance(image.file_name, str) else file,
                str(image.id),
                f"image {image.id!r} with file_name {image.file_name!r} is left out; it needs an integer "
                "id of 64 bits and a name",
            )
            continue
        add_checked_image(builder, images, image.file_name, image.id, declared_size(image), verify_sizes)
    shown = shown_path(file, root)
    unusable = [a.id for a in content.annotations if a.id is not None and not is_id(a.id)]
    if unusable:
        builder.fault(
            "warning",
            "invalid_annotation_id",
            file,
            str(unusable[0]),
            f"{len(unusable)} annotations have an id that is no whole number of 64 bits; they are numbered by "
            "their place in the file; number them anew",
        )
    for number, annotation in enumerate(content.annotations):
        builder.add_object(
            annotation.image_id,
            annotation.bbox,
            annotation.category_id,
            annotation.id if is_id(annotation.id) else number,
            area=annotation.area,
            crowd=bool(annotation.iscrowd),
            segmentation=annotation.segmentation,
            file=shown,
        )
    return builder.build()


def declared_size(image: CocoImage) -> tuple[int, int] | None:
    """(h, w) of an image entry, None if it has none that can be."""
    known = (
        isinstance(image.height, int) and isinstance(image.width, int) and min(image.height, image.width) > 0
    )
    return (image.height, image.width) if known else None


def annotation_files(root: Path) -> dict[str, Path]:
    """Per split: annotation file, of the common layouts; empty if there is none.

    Looked for: annotations/*.json, then *.json in the folder itself. Of several, those called
    instances_* win. A single file of no known split is the training split.
    """
    for folder in (root / "annotations", root / "Annotations", root):
        files = [f for f in sorted(folder.glob("*.json")) if _holds_boxes(f)] if folder.is_dir() else []
        instances = [f for f in files if f.stem.startswith("instances")]
        found: dict[str, Path] = {}
        for file in instances or files:
            split = split_of(file.stem)
            if split:
                found.setdefault(split, file)
        if not found and len(files) == 1:
            found = {"train": files[0]}
        if found:
            return found
    return {}


def _holds_boxes(file: Path) -> bool:
    if file.name.startswith((".", *_OTHER_KINDS)):
        return False
    with file.open("rb") as stream:
        head = stream.read(1 << 16)
        stream.seek(max(0, file.stat().st_size - (1 << 16)))
        ends = head + stream.read()
    # the keys of a large file may stand anywhere: its start and end are enough to tell it from other json
    keys = (b'"images"', b'"annotations"', b'"categories"')
    whole = file.stat().st_size <= len(head)  # a list of classes alone, as Label Studio's notes.json, is none
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and any(
        key in ends for key in (keys[:2] if whole else keys)
    )


def image_folder(root: Path, file: Path, names: list[str]) -> Path:
    """The folder that holds most of `names`: beside, above or below the annotation file, by usual names."""
    stem = file.stem.removeprefix("instances_")
    split = split_of(stem)
    words = dict.fromkeys(w for w in (stem, split, "valid" if split == "val" else None) if w)
    bases = (root, root / "images", root / "data")
    candidates = [base / word for word in words for base in bases]
    candidates += [root / word / "images" for word in words]
    candidates += [root / "images", root / "JPEGImages", root / "data", root, file.parent]
    existing = [c for c in candidates if c.is_dir()]
    sample = names[:: max(1, len(names) // 50)]
    return max(
        existing, key=lambda c: sum(ImageFolder(c).find(n)[0] is not None for n in sample), default=root
    )


def read(root: Path, *, verify_sizes: bool = True) -> Source:
    """A folder with COCO json annotations, splits by the names of the files.

    Raises:
        ValueError: if there is no annotation file, or one cannot be parsed.
    """
    files = annotation_files(root)
    if not files:
        raise ValueError(f"{root} has no COCO annotation file in annotations/ or in the folder itself")
    loaded = {split: load(file) for split, file in files.items()}
    folders = {
        split: image_folder(root, files[split], [str(i.file_name) for i in content.images])
        for split, content in loaded.items()
    }
    return assemble("coco", root, files, folders, loaded, verify_sizes=verify_sizes)


def assemble(
    format: str,
    root: Path,
    files: Mapping[str, Path],
    folders: Mapping[str, Path],
    loaded: Mapping[str, CocoFile],
    *,
    verify_sizes: bool,
    without: frozenset[int] = frozenset(),
) -> Source:
    """Splits with one class list between them, that of the first; category ids `without` are no class."""
    notes: list[Fault] = []
    classes: dict[int, str] = {}
    for split, content in loaded.items():
        own, faults = read_classes(files[split], content, root)
        notes += [f for f in faults if f not in notes]
        if classes:
            notes += class_differences(shown_path(files[split], root), classes, own)
        classes = {**own, **classes}
    classes = {i: name for i, name in sorted(classes.items()) if i not in without}
    splits = {
        split: read_split(
            root, files[split], folders[split], classes, content=content, verify_sizes=verify_sizes
        )
        for split, content in loaded.items()
    }
    return Source(format, root, classes, splits, (*notes, *image_overlaps(root, splits)))


def class_differences(file: str, expected: Mapping[int, str], found: Mapping[int, str]) -> Iterable[Fault]:
    """An error for each class id that two splits call differently, or that only one of them has."""
    for source_id in sorted({*expected, *found}):
        ours, theirs = expected.get(source_id), found.get(source_id)
        if ours != theirs:
            yield Fault(
                "error",
                "class_list",
                file,
                source_id,
                f"category {source_id} is {theirs!r} here and {ours!r} in the other splits; give all "
                "splits one class list",
            )
