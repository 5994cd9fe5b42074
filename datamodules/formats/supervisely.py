"""Supervisely: meta.json, and in each data set img/ with images and ann/ with a json for each."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datamodules.reading import kinds as sniff
from datamodules.reading.annotation_folder import AnnotationFolder, named_classes
from datamodules.reading.json_lines import whole_size
from datamodules.reading.outlines import Points, flat, polygon_box
from datamodules.reading.parsing import MALFORMED, load_json
from datamodules.reading.records import Box, ImageRecord, Mark, Remarks

_HEAD_OF_PNG = 24  # bytes, up to width and height


def annotation_files(root: Path) -> list[Path]:
    """Every json of an image, in folders called ann."""
    return [f for f in sniff.of_kind(root, ".json", "supervisely") if f.parent.name.lower() == "ann"]


def _read(folder: AnnotationFolder) -> Iterator[ImageRecord]:
    """Classes in the order of meta.json. Rectangles end at their second corner.

    Polygons keep their outline; of a bitmap only the box is taken. Points, lines and graphs have no box. The split is
    that of the data set's folder, else of an image's tag `train`, `val` or `test`.
    """
    message = "cannot be understood; the image is left out; export it again"
    for file in folder.files:
        with folder.left_out(file.parent, message, file.name):
            yield folder.with_split(_record(file, folder.root, folder.remarks))
    folder.names = _names(folder.root, folder.remarks)


def _names(root: Path, remarks: Remarks) -> list[str]:
    """Class names of meta.json, without those of shapes that have no box."""
    names = []
    for file in sniff.files(root, ".json"):
        if file.name == "meta.json":
            try:
                classes = load_json(file)["classes"]
                names += [str(c["title"]) for c in classes if c.get("shape") in (None, "any", *_BOXED)]
            except MALFORMED:
                message = "cannot be understood; classes are in the order of the alphabet; export it again"
                remarks.add("warning", "malformed_labels", file, message, file.name)
    return names


def _record(file: Path, root: Path, remarks: Remarks) -> ImageRecord:
    content = load_json(file)
    shape = content.get("size") or {}
    base = file.parent.parent.relative_to(root)
    name = file.stem  # p.jpg.json, of older exports p.json
    marks = [m for entry in content["objects"] for m in _marks(entry, file, remarks)]
    size = whole_size(shape.get("height"), shape.get("width"))
    return ImageRecord((base / "img" / name).as_posix(), file, "train", size, marks, (name,))


_BOXED = ("rectangle", "polygon", "bitmap")


def _marks(entry: Mapping[str, Any], file: Path, remarks: Remarks) -> Iterator[Mark]:
    label, kind = str(entry.get("classTitle") or ""), str(entry.get("geometryType") or "rectangle")
    if kind not in _BOXED:
        message = f"{kind}: has no box; left out; draw rectangles or polygons"
        remarks.add("warning", "no_box", file.parent, message, file.name)
        return
    try:
        yield Mark(label, *_drawn(entry, kind))
    except (*MALFORMED, zlib.error, struct.error):
        yield Mark(label, None)  # the index reports a box without four numbers


def _drawn(entry: Mapping[str, Any], kind: str) -> tuple[Box | None, object]:
    if kind == "bitmap":
        return _around_bitmap(entry["bitmap"]), None
    points: Points = [(float(x), float(y)) for x, y in entry["points"]["exterior"]]
    return polygon_box(points), [flat(points)] if kind == "polygon" and len(points) > 2 else None


def _around_bitmap(bitmap: Mapping[str, Any]) -> Box:
    """The box of a mask that is cropped to its object: its origin, and the size in the head of its PNG."""
    packed = base64.b64decode(bitmap["data"])
    head = zlib.decompressobj().decompress(packed, _HEAD_OF_PNG)
    width, height = struct.unpack(">II", head[16:24])
    x, y = (float(value) for value in bitmap["origin"])
    return x, y, float(width), float(height)


FORMAT = named_classes(
    name="supervisely",
    find=annotation_files,
    records=_read,
    lacks="ann/*.json of Supervisely (size, objects with classTitle)",
    unlisted="image without a json in ann/; left out",
    layout=True,
    title="Supervisely",
    places="meta.json, train/img/*.jpg, train/ann/*.jpg.json, ...",
)
