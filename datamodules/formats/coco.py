"""COCO json: the 2017 layout and its common variants."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from datamodules.formats import coco_layout
from datamodules.formats.coco_annotations import USUAL, Annotations
from datamodules.formats.coco_images import USUAL_IMAGE, CocoImage, Images
from datamodules.formats.coco_parts import join
from datamodules.images.files import ImageFolder
from datamodules.index import AnnotationIndex, Fault, IndexBuilder, shown_path
from datamodules.index.growing_columns import Scratch
from datamodules.index.object_rules import is_id
from datamodules.index.source import Source, image_overlaps, similar_names
from datamodules.progress import Meter, byte_bar
from datamodules.reading import kinds as sniff
from datamodules.reading.checked_image import add_checked_image
from datamodules.reading.image_tree import ImageTree
from datamodules.reading.json_stream import CHUNK, JsonError, JsonStream, converted
from datamodules.reading.places import ImagePlaces, beside, split_in
from datamodules.reading.reader import Evidence, Reader, Signs, claimed

_SAMPLE = 50  # names by which the folder of the images is found
_FEW = 3


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


def load(path: Path, scratch: Scratch | None = None, progress: Meter | None = None) -> CocoFile:
    """Reads a COCO json in one pass, whatever the order of its parts.

    Args:
        path: the file.
        scratch: where the columns of a large one go; None: in memory.
        progress: called with the bytes read so far; None: a bar for a large file, on a terminal.

    Raises:
        ValueError: naming the file and the byte, if it is no json or lacks images or categories.
    """
    content = CocoFile(scratch or Scratch())
    found = set()
    rule = "it needs the lists images, annotations and categories"
    with byte_bar(path, progress) as meter, JsonStream(path, CHUNK, meter) as stream:
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
            message = (
                f"category {category.id!r} named {category.name!r} is left out; it needs an integer id "
                "and a name"
            )
            faults.append(Fault("error", "invalid_category", shown, str(category.id), message))
        elif category.id in classes:
            message = (
                f"category id {category.id} is {classes[category.id]!r} and {category.name!r}; the "
                "first is taken; give each class one id"
            )
            faults.append(Fault("error", "duplicate_category", shown, category.id, message))
        else:
            classes[category.id] = category.name
    return classes, [*faults, *similar_names(shown, classes)]


def read_split(
    root: Path,
    file: Path,
    images: ImageFolder | Path,
    classes: Mapping[int, str],
    *,
    content: CocoFile | None = None,
    verify_sizes: bool = True,
    only: Collection[int] | None = None,
) -> AnnotationIndex:
    """One annotation file and its image folder as an index; images not in `only` are left out without a fault."""
    content = content or load(file)
    builder = IndexBuilder(root, classes, scratch=content.scratch)
    images = ImageFolder(images) if isinstance(images, Path) else images
    for image in content.images:
        if not is_id(image.id) or not isinstance(image.file_name, str):
            builder.fault(
                "error",
                "invalid_image",
                images.folder / image.file_name if isinstance(image.file_name, str) else file,
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
        message = (
            f"{len(unusable)} annotations have an id that is no whole number of 64 bits; they are numbered by "
            "their place in the file; number them anew"
        )
        builder.fault("warning", "invalid_annotation_id", file, str(unusable[0]), message)
    content.annotations.add_to(builder, shown)
    return builder.build()


def declared_size(image: CocoImage) -> tuple[int, int] | None:
    """(h, w) of an image entry; None if it gives no usable size."""
    known = (
        isinstance(image.height, int) and isinstance(image.width, int) and min(image.height, image.width) > 0
    )
    return (image.height, image.width) if known else None


def image_folder(
    root: Path, places: ImagePlaces, file: Path, names: Sequence[str], split: str | None
) -> ImageFolder:
    """Where the images of a file are: the folder that has most of them, or all folders if they are scattered."""
    folder, found, of = places.best(file, split, names)
    if found < of:
        tree = ImageTree(root)
        sample = names[:: max(1, len(names) // _SAMPLE)]
        there = [path for name in sample if (path := tree.find(name)[0])]
        # images of the same name in the folder of another split are other images
        if len(there) > found and {split_in(path.parent, root) for path in there} <= {None, split}:
            return tree
    return ImageFolder(folder)


def read(root: Path, *, verify_sizes: bool = True, scratch: Scratch | None = None) -> Source:
    """A folder with COCO json annotations, splits by the names of the files; working columns in `scratch`.

    Raises:
        ValueError: if there is no annotation file, one cannot be parsed, its split is not known, or two of a
            split contradict each other.
    """
    layout = coco_layout.find(root)
    if layout is None:
        raise ValueError(
            f"{root} has no COCO annotation file in annotations/, in folders of splits or in itself"
        )
    if layout.unknown:
        raise ValueError(_of_unknown_splits(root, layout.unknown))
    order: tuple[str, ...] = ("train", "val", "test")
    files = {split: layout.splits[split] for split in order if split in layout.splits}
    loaded = {file: load(file, scratch) for own in files.values() for file in own}
    with sniff.one_walk():
        places = ImagePlaces(root)
        images = {
            file: image_folder(root, places, file, [str(i.file_name) for i in loaded[file].images], split)
            for split, own in files.items()
            for file in own
        }
    source = assemble("coco", root, files, images, loaded, verify_sizes=verify_sizes)
    if not any(len(index) for index in source.splits.values()) and (message := beside(root)):
        raise ValueError(message)
    return replace(source, notes=(*layout.left_out, *source.notes))


def _of_unknown_splits(root: Path, files: Sequence[Path]) -> str:
    shown = ", ".join(shown_path(file, root) for file in files[:_FEW]) + (
        ", ..." if len(files) > _FEW else ""
    )
    return (
        f"{root} has {len(files)} COCO files whose split is not known: {shown}; put the split in each file name, "
        f"e.g. train_{files[0].name} and val_{files[-1].name}; files of one split are joined"
    )


def assemble(
    format: str,
    root: Path,
    files: Mapping[str, Sequence[Path]],
    images: Mapping[Path, ImageFolder],
    loaded: Mapping[Path, CocoFile],
    *,
    verify_sizes: bool,
    without: frozenset[int] = frozenset(),
) -> Source:
    """All splits under one class list, that of the first; category ids in `without` are no class.

    Raises:
        ValueError: if two files of a split contradict each other.
    """
    notes: list[Fault] = []
    classes: dict[int, str] = {}
    for file, content in loaded.items():
        own, faults = read_classes(file, content, root)
        notes += [f for f in faults if f not in notes]
        if classes:
            notes += class_differences(shown_path(file, root), classes, own)
        classes = {**own, **classes}
    classes = {i: name for i, name in sorted(classes.items()) if i not in without}
    splits = {}
    for split, parts in files.items():
        read_parts = {
            file: read_split(
                root, file, images[file], classes, content=loaded[file], verify_sizes=verify_sizes
            )
            for file in parts
        }
        splits[split], faults = join(root, read_parts)
        notes += faults
    return Source(format, root, classes, splits, (*notes, *image_overlaps(root, splits)))


def class_differences(file: str, expected: Mapping[int, str], found: Mapping[int, str]) -> Iterable[Fault]:
    """An error for each class id that two splits call differently, or that only one of them has."""
    for source_id in sorted({*expected, *found}):
        ours, theirs = expected.get(source_id), found.get(source_id)
        if ours != theirs:
            message = (
                f"category {source_id} is {theirs!r} here and {ours!r} in the other splits; give all "
                "splits one class list"
            )
            yield Fault("error", "class_list", file, source_id, message)


def _look(root: Path, before: Sequence[Evidence]) -> Signs:
    others = claimed(before, "objects365", "roboflow_coco")  # COCO json too, with a layout of their own
    layout = coco_layout.find(root)
    if layout is None:
        return Signs([], True)
    found = [file for own in layout.splits.values() for file in own]
    return Signs([f for f in found or layout.unknown if f not in others], bool(found))


FORMAT = Reader(
    name="coco",
    look=_look,
    read=read,
    title="COCO json",
    places="annotations/instances_{train,val}.json, train/*.jpg, val/*.jpg; or a json in each of train/ and val/",
    streamed=True,
)
