"""The files that the VGG Image Annotator writes: projects, plain json and csv of its three versions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.reading import kinds as sniff
from datamodules.reading.parsing import MALFORMED, load_json, read_rows

CSV_COLUMNS = ("filename", "region_shape_attributes", "region_attributes")
# the number that the third version puts before the coordinates of a shape -> its name in the second
_SHAPES = {1: "point", 2: "rect", 3: "circle", 4: "ellipse", 5: "line", 6: "polyline", 7: "polygon"}
_NUMBERS = {
    "point": ("cx", "cy"), "rect": ("x", "y", "width", "height"), "circle": ("cx", "cy", "r"),
    "ellipse": ("cx", "cy", "rx", "ry"),
}  # fmt: skip


class Region(NamedTuple):
    """A shape, and its attributes.

    Attributes:
        shape: `name` and coordinates, as the second version writes them.
        attributes: of the region.
    """

    shape: Mapping[str, Any]
    attributes: Mapping[str, Any]


class Entry(NamedTuple):
    """One image of a file."""

    source: Path
    image: str
    regions: tuple[Region, ...]


Options = dict[str, dict[str, str]]  # attribute -> value as it is stored -> what the annotator chose from


def is_table(file: Path) -> bool:
    """Whether a csv is an export of the first or second version."""
    head = [cell.lstrip("#").strip() for cell in sniff.table_head(file)[0]]
    return set(CSV_COLUMNS) <= set(head)


def entries(file: Path, unread: list[str]) -> tuple[list[Entry], Options]:
    """The images of a file and the options of its attributes; adds to `unread` where an entry cannot be understood.

    Raises:
        ValueError: naming the file, if it cannot be parsed at all.
    """
    if file.suffix.lower() == ".csv":
        return list(_of_table(file, unread)), {}
    content = load_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} is a {type(content).__name__}, not a VIA project; save it again in VIA")
    if isinstance(content.get("metadata"), dict) and isinstance(content.get("file"), dict):
        return _of_third_version(file, content, unread)
    images = content.get("_via_img_metadata", content)
    if not isinstance(images, dict):
        raise ValueError(f"{file}: _via_img_metadata is no list of images; save it again in VIA")
    found = []
    for key, image in images.items():
        try:
            listed = image["regions"] or []
            regions = listed.values() if isinstance(listed, dict) else listed
            found.append(Entry(file, str(image["filename"]), tuple(map(_region, regions))))
        except MALFORMED:
            unread.append(str(key))
    return found, _options(content)


def _region(content: Mapping[str, Any]) -> Region:
    shape, attributes = content["shape_attributes"], content.get("region_attributes") or {}
    if not isinstance(shape, dict) or not isinstance(attributes, dict):
        raise TypeError("a region without shape_attributes")
    return Region(shape, attributes)


def _options(project: Mapping[str, Any]) -> Options:
    """Of drop-downs and check boxes whose stored values are numbers, what they stand for."""
    try:
        attributes = project["_via_attributes"]["region"].items()
        return {str(name): _words(value.get("options")) for name, value in attributes}
    except MALFORMED:
        return {}


def _words(options: Any) -> dict[str, str]:
    if not isinstance(options, dict) or not all(str(k).lstrip("-").isdigit() for k in options):
        return {}
    return {str(k): v.strip() for k, v in options.items() if isinstance(v, str) and v.strip()}


def _of_table(file: Path, unread: list[str]) -> Iterator[Entry]:
    """One entry an image: rows of an image need not follow each other."""
    rows = read_rows(file, sniff.table_head(file)[2])
    head = [cell.lstrip("#").strip() for cell in next(rows, [])]
    image, shape, attributes = (head.index(column) for column in CSV_COLUMNS)
    regions: dict[str, list[Region]] = {}
    for number, row in enumerate(rows, start=2):
        try:
            own = regions.setdefault(row[image].strip(), [])
            drawn = json.loads(row[shape] or "{}")
            if drawn:
                content = {
                    "shape_attributes": drawn,
                    "region_attributes": json.loads(row[attributes] or "{}"),
                }
                own.append(_region(content))
        except (*MALFORMED, RecursionError):
            unread.append(f"row {number}")
    for name, of_image in regions.items():
        if name:
            yield Entry(file, name, tuple(of_image))


def _of_third_version(
    file: Path, content: Mapping[str, Any], unread: list[str]
) -> tuple[list[Entry], Options]:
    """A project of VIA 3: files by number, views of files, and what is drawn on a view."""
    options: Options = {}
    names: dict[str, str] = {}
    for number, attribute in _items(content.get("attribute")):
        names[number] = str(attribute.get("aname") or number)
        chosen = attribute.get("options")
        options[names[number]] = (
            {str(k): str(v) for k, v in chosen.items()} if isinstance(chosen, dict) else {}
        )
    images = {number: str(f.get("fname") or f.get("src") or "") for number, f in _items(content["file"])}
    seen = {number: view.get("fid_list") or [] for number, view in _items(content.get("view"))}
    drawn: dict[str, list[Region]] = {name: [] for name in images.values() if name}
    for key, mark in _items(content["metadata"]):
        try:
            numbers = mark.get("xy") or []
            [owner] = seen[str(mark["vid"])]
            if numbers:
                said = mark.get("av") or {}
                attributes = {names.get(str(k), str(k)): v for k, v in said.items()}
                drawn[images[str(owner)]].append(Region(_shape(numbers), attributes))
        except MALFORMED:
            unread.append(key)
    return [Entry(file, name, tuple(regions)) for name, regions in drawn.items()], options


def _items(content: Any) -> list[tuple[str, dict[str, Any]]]:
    every = content.items() if isinstance(content, dict) else ()
    return [(str(key), value) for key, value in every if isinstance(value, dict)]


def _shape(numbers: list[Any]) -> dict[str, Any]:
    name, rest = _SHAPES.get(int(numbers[0]), "shape"), numbers[1:]
    if name in _NUMBERS:
        return {"name": name, **dict(zip(_NUMBERS[name], rest, strict=True))}
    return {"name": name, "all_points_x": rest[0::2], "all_points_y": rest[1::2]}
