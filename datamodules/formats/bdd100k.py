"""BDD100K and other Scalabel json: a list of images, each with `labels` that have a category and a box2d."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datamodules.reading import kinds as sniff
from datamodules.reading.annotation_folder import AnnotationFolder, named_classes
from datamodules.reading.parsing import MALFORMED, load_json
from datamodules.reading.records import ImageRecord, Mark

_BOX = ("x1", "y1", "x2", "y2")


def annotation_files(root: Path) -> list[Path]:
    """Every such json: of a whole split, or of one image, as the first release has them."""
    return sniff.of_kind(root, ".json", "bdd100k")


def _read(folder: AnnotationFolder) -> Iterator[ImageRecord]:
    """Classes in alphabetical order. Lanes and areas have no box and are no objects.

    The corners are pixels that belong to the box, as Scalabel's own export to COCO takes them, so a width is
    x2 - x1 + 1. A box with the attribute `crowd` is a crowd.
    """
    message = "image that cannot be understood; left out; export it again"
    for file in folder.files:
        for number, (name, labels) in enumerate(_images(file), start=1):
            with folder.left_out(file, message, f"image number {number}"):
                marks = [mark for label in labels if (mark := _mark(label)) is not None]
                yield folder.with_split(ImageRecord(name, file, marks=marks))


def _images(file: Path) -> Iterator[tuple[str, list[Any]]]:
    """(name, labels) of each image.

    Raises:
        ValueError: the file has no list of images.
    """
    content = load_json(file)
    images = content.get("frames") if isinstance(content, dict) else content
    if not isinstance(images, list):
        raise ValueError(f"{file} is no BDD100K json: it has no list of images; export it again")
    for image in images:
        named = image if isinstance(image, dict) else {}
        labels = named.get("labels") or named.get("objects") or []
        name = str(named.get("name") or "")
        # the first release has one json for each image; its only frame has no name
        yield (
            name or str(content.get("name") if isinstance(content, dict) else "") or file.stem,
            labels if isinstance(labels, list) else [labels],
        )


def _mark(label: Mapping[str, Any]) -> Mark | None:
    corners = label.get("box2d")
    if corners is None:
        return None
    try:
        x0, y0, x1, y1 = (float(corners[key]) for key in _BOX)
    except MALFORMED:
        return Mark(str(label.get("category") or ""), None)
    said = label.get("attributes")
    crowd = bool(said.get("crowd")) if isinstance(said, dict) else False
    return Mark(str(label.get("category") or ""), (x0, y0, x1 - x0 + 1, y1 - y0 + 1), crowd=crowd)


FORMAT = named_classes(
    name="bdd100k",
    find=annotation_files,
    records=_read,
    lacks="json of BDD100K (name, labels with category and box2d)",
    unlisted="image that the BDD100K json does not name; left out",
    title="BDD100K",
    places="labels/det_20/det_train.json with name and labels (category, box2d), images/100k/train/*.jpg",
)
