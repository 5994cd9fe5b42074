"""VGG Image Annotator (VIA): its projects, json and csv, at the top, per split or beside the images."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.formats.via_files import Entry, Options, Region, entries, is_table
from datamodules.index import Fault, shown_path
from datamodules.reading import kinds as sniff
from datamodules.reading.annotation_folder import AnnotationFolder, named_classes
from datamodules.reading.outlines import Points, around_ellipse, flat, polygon_box
from datamodules.reading.parsing import MALFORMED
from datamodules.reading.records import ImageRecord, Mark, Remarks

_ONLY_CLASS = "object"  # if no region has an attribute
# attributes that hold the class, the likelier first; any other is taken where there is none of these
_CLASS = ("class", "class_name", "classname", "label", "labels", "category", "object", "object_name", "objects", "name",
          "names", "type", "species")  # fmt: skip


def annotation_files(root: Path) -> list[Path]:
    """Every VIA json and csv in the folder."""
    tables = [file for file in sniff.files(root, ".csv") if is_table(file)]
    return sniff.of_kind(root, ".json", "via") + tables


def _read(folder: AnnotationFolder) -> Iterator[ImageRecord]:
    """Classes in alphabetical order.

    The class is in the region attribute that most regions have, of several the one with a usual name, else
    the one with the fewest values. Without any attribute there is one class. A region with several ticked
    boxes is several objects. Coordinates are pixels from the upper left corner, a rectangle has width and
    height. The same image with the same regions in two files (a project and its export) is taken once.
    """
    every: list[Entry] = []
    options: Options = {}
    for file in folder.files:
        unread: list[str] = []
        found, own = entries(file, unread)
        every += found
        options |= own
        for where in unread:
            message = "entry that cannot be understood; left out; draw it again in VIA"
            folder.remarks.add("error", "malformed_labels", file, message, where)
    attribute, folder.notes = _class_attribute(every, folder.root)
    yield from _records(every, attribute, options.get(attribute, {}), folder)


def _records(
    every: Sequence[Entry], attribute: str, options: Mapping[str, str], folder: AnnotationFolder
) -> Iterator[ImageRecord]:
    seen: set[tuple[str, str, str]] = set()
    for entry in every:
        near = (entry.source.parent.relative_to(folder.root) / entry.image.replace("\\", "/")).as_posix()
        record = folder.with_split(ImageRecord(near, entry.source, other_names=(entry.image,)))
        record.marks = [
            m for r in entry.regions for m in _marks(r, attribute, options, entry, folder.remarks)
        ]
        key = (record.split, entry.image, repr(record.marks))
        if key in seen:
            message = "image that another VIA file has with the same regions; taken once"
            folder.remarks.add("note", "listed_twice", entry.source, message, entry.image)
            continue
        seen.add(key)
        yield record


def _class_attribute(every: Sequence[Entry], root: Path) -> tuple[str, list[Fault]]:
    """The region attribute with the class, empty if no region has any; and a note about the choice."""
    values: dict[str, set[str]] = defaultdict(set)
    counts: dict[str, int] = defaultdict(int)
    number = 0
    for entry in every:
        for region in entry.regions:
            number += 1
            for name, value in region.attributes.items():
                words = _words(value)
                counts[str(name)] += bool(words)
                values[str(name)].update(words)
    if not every or not number:
        return "", []
    most = max(counts.values(), default=0)
    where = shown_path(every[0].source, root)
    if not most:
        message = (
            f"no region has an attribute, so all {number} are of one class, called {_ONLY_CLASS!r}; to have others, "
            "give regions an attribute `class` in VIA"
        )
        return "", [Fault("note", "class_attribute", where, None, message)]

    def rank(name: str) -> tuple[int, int, str]:
        plain = name.strip().lower().replace(" ", "_").replace("-", "_")
        return (_CLASS.index(plain) if plain in _CLASS else len(_CLASS), len(values[name]), name)

    chosen = min((name for name, count in counts.items() if 2 * count >= most), key=rank)
    others = sorted(name for name, count in counts.items() if count and name != chosen)
    if not others:
        return chosen, []
    message = (
        f"the class is taken from the region attribute {chosen!r}, not from {', '.join(map(repr, others[:5]))}; to "
        "have another, call it `class` in VIA"
    )
    return chosen, [Fault("note", "class_attribute", where, None, message)]


def _words(value: Any) -> list[str]:
    """The values of an attribute: a text, a number, or the ticked ones of several check boxes."""
    if isinstance(value, dict):
        return [str(key).strip() for key, ticked in value.items() if ticked and str(key).strip()]
    if isinstance(value, bool) or not isinstance(value, str | int):
        return []
    return [str(value).strip()] if str(value).strip() else []


def _marks(
    region: Region, attribute: str, options: Mapping[str, str], entry: Entry, remarks: Remarks
) -> Iterator[Mark]:
    kind = str(region.shape.get("name") or "")
    try:
        box, outline = _drawn(region.shape, kind)
    except MALFORMED:
        box, outline = None, None  # the index reports a box without four numbers
    if kind not in _BOXED or (kind == "polyline" and outline is None):
        message = f"{kind or 'shape'}: has no box; left out; draw rectangles or polygons"
        remarks.add("warning", "no_box", entry.source, message, entry.image)
        return
    if kind == "polyline":
        message = "polyline: the box around it is taken; draw a polygon if it is the outline of an object"
        remarks.add("warning", "polyline", entry.source, message, entry.image)
        outline = None
    names = (
        [options.get(w, w) for w in _words(region.attributes.get(attribute))] if attribute else [_ONLY_CLASS]
    )
    for name in names or [""]:
        yield Mark(name, box, outline)


_BOXED = frozenset({"rect", "polygon", "circle", "ellipse", "polyline"})


def _drawn(shape: Mapping[str, Any], kind: str) -> tuple[tuple[float, float, float, float] | None, Any]:
    """Box and outline of a shape."""
    if kind == "rect":
        x, y, w, h = (float(shape[k]) for k in ("x", "y", "width", "height"))
        return (x, y, w, h), None
    if kind == "circle":
        cx, cy, r = (float(shape[k]) for k in ("cx", "cy", "r"))
        return (cx - r, cy - r, 2 * r, 2 * r), None
    if kind == "ellipse":
        cx, cy, rx, ry = (float(shape[k]) for k in ("cx", "cy", "rx", "ry"))
        turned = float(shape.get("theta") or 0)  # radians, of the second version
        return around_ellipse((cx, cy), (rx, ry), math.degrees(turned)), None
    if kind in ("polygon", "polyline"):
        xs, ys = shape["all_points_x"], shape["all_points_y"]
        points: Points = [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
        return polygon_box(points), [flat(points)] if len(points) > 2 else None
    return None, None


FORMAT = named_classes(
    name="via",
    find=annotation_files,
    records=_read,
    lacks="VIA json (filename, regions with shape_attributes) and no VIA csv",
    unlisted="image that the VIA files do not name; left out",
    title="VIA",
    places="via_project.json, via_region_data.json or its csv: at the top, in train/ and val/, or beside the images",
)
