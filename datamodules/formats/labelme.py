"""LabelMe: one json for each image, or the xml of the older web tool."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from datamodules.reading import kinds as sniff
from datamodules.reading.annotation_folder import AnnotationFolder, named_classes
from datamodules.reading.outlines import Points, flat, polygon_box
from datamodules.reading.parsing import load_json, load_xml
from datamodules.reading.records import Box, ImageRecord, Mark, Remarks, enclosing, split_of_file

# LabelMe's reserved labels: they stand at the top of its labels.txt and its exporters leave them out
_IGNORED = frozenset({"__ignore__", "_ignore_"})
_BACKGROUND = frozenset({"__background__", "_background_"})


def annotation_files(root: Path) -> list[Path]:
    """Every LabelMe json and xml in the folder."""
    return sniff.of_kind(root, ".json", "labelme") + sniff.of_kind(root, ".xml", "labelme")


def _read(folder: AnnotationFolder) -> Iterator[ImageRecord]:
    """Classes in alphabetical order.

    Rectangles, polygons and circles give boxes; polygons of one label and one group number are one object.
    A deleted object of the older tool is left out, and `__ignore__` is a region to ignore.
    """
    message = "cannot be understood: {error}; the image is left out; save it again in LabelMe"
    for file in folder.files:
        with folder.left_out(file, message, file.stem):
            record = _json_record if file.suffix.lower() == ".json" else _xml_record
            yield record(file, folder.root, folder.remarks)


def _json_record(file: Path, root: Path, remarks: Remarks) -> ImageRecord:
    content = load_json(file)
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    beside = file.parent.relative_to(root)
    named = str(content.get("imagePath") or file.stem).replace("\\", "/")
    own = (beside / file.stem).as_posix()
    marks = list(_shapes(content["shapes"], file, remarks))
    way_out = ""
    if isinstance(content.get("imageData"), str):
        way_out = (
            f"the image is only inside {file.name} (imageData), there is no file of its own; it and its objects are "
            f"left out; write it out: `labelme_export_json {shlex.quote(file.name)}` makes a folder with img.png in "
            f"it; put that beside the json as {shlex.quote(f'{file.stem}.png')}"
        )
    # the file itself was often renamed after labelling, together with its json
    return ImageRecord(
        (beside / named).as_posix(), file, split_of_file(file, root), size, marks, (named, own), way_out
    )


def _shapes(shapes: list[Mapping[str, Any]], file: Path, remarks: Remarks) -> Iterator[Mark]:
    groups: dict[tuple[str, Any], list[Points]] = {}
    for shape in shapes:
        label, kind = str(shape.get("label") or ""), shape.get("shape_type") or "polygon"
        points = [(float(x), float(y)) for x, y in shape.get("points") or []]
        if label in _BACKGROUND:
            remarks.add(
                "note", "background", file.parent, "shape called background; no object, left out", label
            )
            continue
        if kind == "polygon" and shape.get("group_id") is not None:
            groups.setdefault((label, shape["group_id"]), []).append(points)
        elif kind == "polygon":
            yield _mark(label, polygon_box(points), [flat(points)])
        elif kind in ("rectangle", "mask", "oriented_rectangle"):
            if kind == "oriented_rectangle":
                message = "turned box; the upright box around it is taken"
                remarks.add("warning", "turned_box", file, message, label)
            yield _mark(label, polygon_box(points))
        elif kind == "circle" and len(points) == 2:
            (cx, cy), edge = points
            radius = math.dist((cx, cy), edge)
            yield _mark(label, (cx - radius, cy - radius, 2 * radius, 2 * radius))
        else:
            message = f"{kind}: has no box; left out; draw rectangles or polygons"
            remarks.add("warning", "no_box", file, message, label)
    for (label, _), parts in groups.items():
        every = [point for part in parts for point in part]
        yield _mark(label, polygon_box(every), [flat(part) for part in parts])


def _mark(label: str, box: Box | None, outline: object = None) -> Mark:
    if label in _IGNORED:
        return Mark("", box, region=True)
    return Mark(label, box, outline)


def _xml_record(file: Path, root: Path, remarks: Remarks) -> ImageRecord:
    tree = load_xml(file)
    folder, name = (tree.findtext("folder") or "").strip(), (tree.findtext("filename") or file.stem).strip()
    rows, columns = tree.findtext("imagesize/nrows"), tree.findtext("imagesize/ncols")
    size = (int(rows), int(columns)) if rows and columns else None
    marks = []
    for element in tree.iter("object"):
        if (element.findtext("deleted") or "0").strip() == "1":
            continue
        label = (element.findtext("name") or "").strip()
        points = [
            (float(p.findtext("x") or ""), float(p.findtext("y") or ""))
            for p in element.iterfind("polygon/pt")
        ]
        outlined = points and (element.findtext("type") or "") != "bounding_box"
        points = points or _corners(element)
        if points:
            marks.append(_mark(label, enclosing(points), [flat(points)] if outlined else None))
        else:
            message = "object without polygon or box; left out; draw it again"
            remarks.add("error", "no_box", file, message, label)
    named = f"{folder}/{name}" if folder else name
    return ImageRecord(named, file, split_of_file(file, root), size, marks, (file.stem,))


def _corners(element: ElementTree.Element) -> Points:
    """The two corners of the box of a painted mask."""
    values = [element.findtext(f"segm/box/{k}") for k in ("xmin", "ymin", "xmax", "ymax")]
    if any(not v for v in values):
        return []
    x0, y0, x1, y1 = (float(v or "") for v in values)
    return [(x0, y0), (x1, y1)]


FORMAT = named_classes(
    name="labelme",
    find=annotation_files,
    records=_read,
    lacks="LabelMe json (shapes, imagePath) or xml (object/polygon)",
    title="LabelMe",
    places="one json beside each image, or the xml of the older tool",
)
