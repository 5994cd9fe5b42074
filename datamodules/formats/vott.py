"""VoTT json: the project's export, with all assets in one file. Its csv is read by `csv_table`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from datamodules.reading import kinds as sniff
from datamodules.reading.annotation_folder import AnnotationFolder, named_classes
from datamodules.reading.outlines import flat, polygon_box
from datamodules.reading.parsing import MALFORMED, load_json
from datamodules.reading.records import ImageRecord, Mark, split_of_file


def annotation_files(root: Path) -> list[Path]:
    """Every VoTT json in the folder."""
    return sniff.of_kind(root, ".json", "vott_json")


def _read(folder: AnnotationFolder) -> Iterator[ImageRecord]:
    """Classes in the order of the project's tags. A region of two tags is two objects."""
    names: list[str] = []
    folder.names = names
    message = "asset that cannot be understood ({error!r}); left out; export it again"
    for file in folder.files:
        content, split = load_json(file), split_of_file(file, folder.root)
        try:
            names += [str(tag["name"]) for tag in content.get("tags") or []]
            entries = list(content["assets"].items())
        except MALFORMED as error:
            raise ValueError(f"{file} is no VoTT project: {error!r}; export it again") from error
        for key, entry in entries:
            with folder.left_out(file, message, key):
                yield _record(entry, file, split)


def _record(entry: dict, file: Path, split: str) -> ImageRecord:
    asset = entry.get("asset") or {}
    shape = asset.get("size") or {}
    size = (int(shape["height"]), int(shape["width"])) if {"height", "width"} <= shape.keys() else None
    name = str(asset.get("name") or "")
    path = unquote(str(asset.get("path") or name)).removeprefix("file:")
    marks = [mark for region in entry.get("regions") or [] for mark in _marks(region)]
    return ImageRecord(path, file, split, size, marks, (unquote(name),))


def _marks(region: dict) -> list[Mark]:
    tags = [str(tag) for tag in region.get("tags") or [""]]
    points = [(float(p["x"]), float(p["y"])) for p in region.get("points") or []]
    outline = [flat(points)] if region.get("type") == "POLYGON" and points else None
    box = region.get("boundingBox") or {}
    try:
        frame = (float(box["left"]), float(box["top"]), float(box["width"]), float(box["height"]))
    except (KeyError, TypeError, ValueError):
        return [Mark(tag, polygon_box(points), outline) for tag in tags]
    return [Mark(tag, frame, outline) for tag in tags]


FORMAT = named_classes(
    name="vott_json",
    find=annotation_files,
    records=_read,
    lacks="VoTT json (assets with regions)",
    unlisted="image that the VoTT export does not name; left out",
    title="VoTT",
    places="json export, with the images",
)
