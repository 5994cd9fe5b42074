"""BDD100K and other Scalabel json: a list of images, each with `labels` that have a category and a box2d."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datamodules.index.source import Source
from datamodules.reading import kinds as sniff
from datamodules.reading.image_tree import ImageTree
from datamodules.reading.parsing import MALFORMED, load_json
from datamodules.reading.reader import Reader, loose
from datamodules.reading.records import ImageRecord, Mark, Remarks, assemble, split_of_image

_BOX = ("x1", "y1", "x2", "y2")


def annotation_files(root: Path) -> list[Path]:
    """Every such json: of a whole split, or of one image, as the first release has them."""
    return sniff.of_kind(root, ".json", "bdd100k")


def read(root: Path, *, verify_sizes: bool = True) -> Source:
    """Reads them; classes in alphabetical order. Lanes and areas have no box and are no objects.

    The corners are pixels that belong to the box, as Scalabel's own export to COCO takes them, so a width is
    x2 - x1 + 1. A box with the attribute `crowd` is a crowd.

    Raises:
        ValueError: if there is none, or one cannot be parsed.
    """
    files = annotation_files(root)
    if not files:
        raise ValueError(f"{root} has no json of BDD100K (name, labels with category and box2d)")
    tree, remarks = ImageTree(root), Remarks(root)
    records = []
    for file in files:
        for number, (name, labels) in enumerate(_images(file), start=1):
            try:
                marks = [mark for label in labels if (mark := _mark(label)) is not None]
            except MALFORMED:
                message = "image that cannot be understood; left out; export it again"
                remarks.add("error", "malformed_labels", file, message, f"image number {number}")
                continue
            record = ImageRecord(name, file, marks=marks)
            record.split = split_of_image(record, root, tree)
            records.append(record)
    return assemble(
        "bdd100k", root, records, tree, notes=remarks.faults(), verify_sizes=verify_sizes,
        unlisted="image that the BDD100K json does not name; left out",
    )  # fmt: skip


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


FORMAT = Reader(
    name="bdd100k",
    look=loose(annotation_files),
    read=read,
    title="BDD100K",
    places="labels/det_20/det_train.json with name and labels (category, box2d), images/100k/train/*.jpg",
)
