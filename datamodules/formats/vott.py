"""VoTT json: the project's export, with all assets in one file. Its csv is read by `csv_table`."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote

from datamodules.formats import sniff
from datamodules.formats.image_tree import ImageTree
from datamodules.formats.outlines import flat, polygon_box
from datamodules.formats.records import Mark, Picture, Remarks, assemble, split_of_file
from datamodules.formats.source import Source


def annotation_files(root: Path) -> list[Path]:
    """Every VoTT json in the folder."""
    return sniff.of_kind(root, ".json", "vott_json")


def read(root: Path, *, verify_sizes: bool = True) -> Source:
    """Reads the exports; classes in the order of the project's tags. A region of two tags is two objects.

    Raises:
        ValueError: if there is no VoTT json, or one cannot be parsed.
    """
    files = annotation_files(root)
    if not files:
        raise ValueError(f"{root} has no VoTT json (assets with regions)")
    tree, remarks = ImageTree(root), Remarks(root)
    pictures: list[Picture] = []
    names: list[str] = []
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{file} is no json: {error}; export it again") from error
        names += [str(tag.get("name")) for tag in content.get("tags") or []]
        for entry in content["assets"].values():
            asset = entry.get("asset") or {}
            shape = asset.get("size") or {}
            size = (shape["height"], shape["width"]) if {"height", "width"} <= shape.keys() else None
            name = str(asset.get("name") or "")
            path = unquote(str(asset.get("path") or name)).removeprefix("file:")
            marks = [mark for region in entry.get("regions") or [] for mark in _marks(region)]
            split = split_of_file(file, root)
            pictures.append(Picture(path, file, split, size, marks, (unquote(name),)))
    return assemble(
        "vott_json", root, pictures, tree, names=names, notes=remarks.faults(), verify_sizes=verify_sizes,
        unlisted="image that the VoTT export does not name; left out",
    )  # fmt: skip


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
