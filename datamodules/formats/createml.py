"""Apple's CreateML json, as Roboflow exports it: boxes by their centre, in pixels."""

from __future__ import annotations

import json
from pathlib import Path

from datamodules.formats import sniff
from datamodules.formats.image_tree import ImageTree
from datamodules.formats.records import Mark, Picture, assemble, split_of_file
from datamodules.formats.source import Source


def annotation_files(root: Path) -> list[Path]:
    """Every CreateML json in the folder."""
    return sniff.of_kind(root, ".json", "createml")


def read(root: Path, *, verify_sizes: bool = True) -> Source:
    """Reads the files; classes in alphabetical order. x and y are the middle of a box, as Apple defines.

    Raises:
        ValueError: if there is no CreateML json, or one cannot be parsed.
    """
    files = annotation_files(root)
    if not files:
        raise ValueError(f"{root} has no CreateML json (image, annotations with coordinates)")
    pictures = []
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{file} is no json: {error}; export it again") from error
        near = file.parent.relative_to(root)
        for entry in content:
            name = str(entry.get("image") or entry.get("imagefilename") or "?")
            marks = [_mark(a) for a in entry.get("annotations") or []]
            split = split_of_file(file, root)
            pictures.append(Picture((near / name).as_posix(), file, split, None, marks))
    return assemble(
        "createml", root, pictures, ImageTree(root), verify_sizes=verify_sizes,
        unlisted="image that the CreateML file does not name; left out",
    )  # fmt: skip


def _mark(annotation: dict) -> Mark:
    label, at = str(annotation.get("label") or ""), annotation.get("coordinates") or {}
    try:
        cx, cy, w, h = (float(at[k]) for k in ("x", "y", "width", "height"))
    except (KeyError, TypeError, ValueError):
        return Mark(label, None)
    return Mark(label, (cx - w / 2, cy - h / 2, w, h))
