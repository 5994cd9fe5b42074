"""Apple's CreateML json, as Roboflow exports it: boxes by their centre, in pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datamodules.reading import kinds as sniff
from datamodules.reading.annotation_folder import AnnotationFolder, named_classes
from datamodules.reading.parsing import load_list
from datamodules.reading.records import ImageRecord, Mark, split_of_file


def annotation_files(root: Path) -> list[Path]:
    """Every CreateML json in the folder."""
    return sniff.of_kind(root, ".json", "createml")


def _read(folder: AnnotationFolder) -> Iterator[ImageRecord]:
    """Classes in alphabetical order. x and y are the middle of a box, as Apple defines."""
    message = "entry that cannot be understood ({error!r}); left out; export it again"
    for file in folder.files:
        near, split = file.parent.relative_to(folder.root), split_of_file(file, folder.root)
        for number, entry in enumerate(load_list(file, "images"), start=1):
            with folder.left_out(file, message, f"entry {number}"):
                name = str(entry.get("image") or entry.get("imagefilename") or "?")
                marks = [_mark(a) for a in entry.get("annotations") or []]
                yield ImageRecord((near / name).as_posix(), file, split, None, marks)


def _mark(annotation: dict) -> Mark:
    label, at = str(annotation.get("label") or ""), annotation.get("coordinates") or {}
    try:
        cx, cy, w, h = (float(at[k]) for k in ("x", "y", "width", "height"))
    except (KeyError, TypeError, ValueError):
        return Mark(label, None)
    return Mark(label, (cx - w / 2, cy - h / 2, w, h))


FORMAT = named_classes(
    name="createml",
    find=annotation_files,
    records=_read,
    lacks="CreateML json (image, annotations with coordinates)",
    unlisted="image that the CreateML file does not name; left out",
    title="CreateML",
    places="_annotations.createml.json, with the images",
)
