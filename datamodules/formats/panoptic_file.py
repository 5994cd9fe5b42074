"""The files of COCO's panoptic layout: the json, the folder of PNG files, the images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from datamodules.images.files import ImageFolder
from datamodules.index.object_rules import Int64
from datamodules.index.source import files_by_split
from zoo.storage.opening import read_file

CATEGORIES = "panoptic_coco_categories.json"  # COCO's own list, with colours


class Category(msgspec.Struct):
    """A class."""

    id: Int64
    name: str
    isthing: int | None = None
    color: tuple[int, int, int] | None = None


class PanopticImage(msgspec.Struct):
    """An image."""

    id: Int64
    file_name: str
    width: int | None = None
    height: int | None = None


class SegmentInfo(msgspec.Struct):
    """A segment of an image; its id is the colour in the PNG."""

    id: Int64
    category_id: Int64
    iscrowd: int = 0
    area: Any = None
    bbox: Any = None


class PanopticAnnotation(msgspec.Struct):
    """All segments of an image."""

    image_id: Int64
    file_name: str
    segments_info: list[SegmentInfo]


class PanopticFile(msgspec.Struct):
    """A panoptic json."""

    images: list[PanopticImage]
    annotations: list[PanopticAnnotation]
    categories: list[Category]


def load(path: Path) -> PanopticFile:
    """Parses a panoptic json.

    Raises:
        ValueError: naming the file, if it is none.
    """
    try:
        return msgspec.json.decode(read_file(path), type=PanopticFile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is no COCO panoptic file: {error}; it needs images, annotations with segments_info, and "
            "categories with isthing"
        ) from error


def annotation_files(root: Path) -> dict[str, Path]:
    """Per split: panoptic_*.json in annotations/ or in the folder itself, beside a folder of PNG files."""
    for folder in (root / "annotations", root):
        files = [f for f in sorted(folder.glob("panoptic_*.json")) if f.with_suffix("").is_dir()]
        found = files_by_split(files)
        if not found and len(files) == 1:
            found = {"train": files[0]}
        if found:
            return found
    return {}


def image_folder(root: Path, file: Path, names: list[str]) -> Path:
    """The folder that holds most of `names`: of equals, the one named after the split."""
    own = root / file.stem.removeprefix("panoptic_").removeprefix("instances_")
    below = sorted(p for p in (*root.glob("*"), *root.glob("images/*")) if p.is_dir())
    sample = names[:: max(1, len(names) // 50)]
    candidates = [own, *(p for p in below if p != own), root]
    return max(candidates, key=lambda c: sum(ImageFolder(c).find(n)[0] is not None for n in sample))


def colors_of(
    categories: Mapping[int, Category], files: Mapping[str, Path]
) -> dict[int, tuple[int, int, int]]:
    """Colours of the classes, from the json files or from COCO's own list beside them."""
    own = {i: c.color for i, c in categories.items() if c.color is not None}
    beside = next(iter(files.values())).parent / CATEGORIES
    if own or not beside.is_file():
        return own
    listed = msgspec.json.decode(read_file(beside), type=list[Category])
    return {c.id: c.color for c in listed if c.color is not None}
