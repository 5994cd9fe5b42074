"""COCO json: the 2017 layout and its common relatives."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from datamodules.formats.coco_annotations import USUAL, Annotations
from datamodules.formats.coco_images import USUAL_IMAGE, CocoImage, Images
from datamodules.formats.json_stream import CHUNK, JsonError, JsonStream, converted
from datamodules.formats.reader import Evidence, Reader, Signs, claimed
from datamodules.formats.source import (
    Source,
    add_checked_image,
    class_key,
    files_by_split,
    image_overlaps,
    split_of,
)
from datamodules.images import ImageFolder
from datamodules.index import AnnotationIndex, Fault, IndexBuilder, shown_path
from datamodules.judge import is_id
from datamodules.progress import Progress, byte_bar
from datamodules.scratch import Scratch

# other kinds of COCO annotation, without boxes to train on or twice the same
_OTHER_KINDS = ("panoptic", "captions", "person_keypoints", "image_info", "images_info", "stuff")


class _Category(msgspec.Struct):
    id: Any = None
    name: Any = None
    supercategory: Any = None


_CATEGORIES = msgspec.json.Decoder(list[_Category])


class CocoFile:
    """The parts of a COCO json that detection needs.

    Attributes:
        images: in the order of the file.
        categories: in the order of the file.
        annotations: as columns, not yet judged.
        scratch: where an index of them is built.
    """

    def __init__(self, scratch: Scratch) -> None:
        self.scratch = scratch
        self.images = Images(scratch)
        self.categories: list[_Category] = []
        self.annotations = Annotations(scratch)


def load(path: Path, scratch: Scratch | None = None, progress: Progress | None = None) -> CocoFile:
    """Reads a COCO json in one pass, whatever the order of its parts.

    Args:
        path: the file.
        scratch: where the columns of a large one go; None: in memory.
        progress: told the bytes that are read; None: a bar for a large file, on a terminal.

    Raises:
        ValueError: naming the file and the byte, if it is no json or lacks images or categories.
    """
    content = CocoFile(scratch or Scratch())
    found = set()
    rule = "it needs the lists images, annotations and categories"
    with byte_bar(path, progress) as told, JsonStream(path, CHUNK, told) as stream:
        try:
            for name in stream.members():
                found.add(name)
                if name == "images":
                    content.images = Images(content.scratch)
                    for piece in stream.elements(USUAL_IMAGE):
                        content.images.add(piece)
                elif name == "categories":
                    content.categories = []
                    for piece in stream.elements(_CATEGORIES):
                        content.categories += (
                            piece.values if piece.typed else converted(piece, list[_Category])
                        )
                elif name == "annotations":
                    content.annotations = Annotations(content.scratch)
                    for piece in stream.elements(USUAL):
                        content.annotations.add(piece)
                else:
                    stream.skip()
        except JsonError as error:
            raise ValueError(f"{path} is no COCO annotation file: {error}; {rule}") from error
    absent = [name for name in ("images", "categories") if name not in found]
    if absent:
        raise ValueError(f"{path} is no COCO annotation file: it has no {' and no '.join(absent)}; {rule}")
    return content


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
    only: Collection[int] | None = None,
) -> AnnotationIndex:
    """One annotation file and its image folder as an index; `only` leaves out all other image ids silently."""
    content = content or load(file)
    builder = IndexBuilder(root, classes, scratch=content.scratch)
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
        if only is not None and image.id not in only:
            builder.exclude_image(image.id)
            continue
        add_checked_image(builder, images, image.file_name, image.id, declared_size(image), verify_sizes)
    shown = shown_path(file, root)
    unusable = content.annotations.unusable_ids
    if unusable:
        builder.fault(
            "warning",
            "invalid_annotation_id",
            file,
            str(unusable[0]),
            f"{len(unusable)} annotations have an id that is no whole number of 64 bits; they are numbered by "
            "their place in the file; number them anew",
        )
    content.annotations.add_to(builder, shown)
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
        found = files_by_split(instances or files)
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


def read(root: Path, *, verify_sizes: bool = True, scratch: Scratch | None = None) -> Source:
    """A folder with COCO json annotations, splits by the names of the files; working columns in `scratch`.

    Raises:
        ValueError: if there is no annotation file, or one cannot be parsed.
    """
    files = annotation_files(root)
    if not files:
        raise ValueError(f"{root} has no COCO annotation file in annotations/ or in the folder itself")
    loaded = {split: load(file, scratch) for split, file in files.items()}
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


def _look(root: Path, before: Sequence[Evidence]) -> Signs:
    others = claimed(before, "objects365", "roboflow_coco")  # COCO json too, with a layout of their own
    return Signs([file for file in annotation_files(root).values() if file not in others], True)


FORMAT = Reader(
    name="coco",
    look=_look,
    read=read,
    title="COCO json",
    places="annotations/instances_{train,val}.json, train/*.jpg, val/*.jpg",
    streamed=True,
)
