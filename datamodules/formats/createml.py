"""Apple's CreateML json, as Roboflow exports it: boxes by their centre, in pixels."""

from __future__ import annotations

from pathlib import Path

from datamodules.index.source import Source
from datamodules.reading import kinds as sniff
from datamodules.reading.image_tree import ImageTree
from datamodules.reading.parsing import MALFORMED, load_list
from datamodules.reading.reader import Reader, loose
from datamodules.reading.records import ImageRecord, Mark, Remarks, assemble, split_of_file


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
    remarks = Remarks(root)
    records = []
    for file in files:
        near = file.parent.relative_to(root)
        for number, entry in enumerate(load_list(file, "images"), start=1):
            try:
                name = str(entry.get("image") or entry.get("imagefilename") or "?")
                marks = [_mark(a) for a in entry.get("annotations") or []]
            except MALFORMED as error:
                message = f"entry that cannot be understood ({error!r}); left out; export it again"
                remarks.add("error", "malformed_labels", file, message, f"entry {number}")
                continue
            records.append(
                ImageRecord((near / name).as_posix(), file, split_of_file(file, root), None, marks)
            )
    return assemble(
        "createml", root, records, ImageTree(root), notes=remarks.faults(), verify_sizes=verify_sizes,
        unlisted="image that the CreateML file does not name; left out",
    )  # fmt: skip


def _mark(annotation: dict) -> Mark:
    label, at = str(annotation.get("label") or ""), annotation.get("coordinates") or {}
    try:
        cx, cy, w, h = (float(at[k]) for k in ("x", "y", "width", "height"))
    except (KeyError, TypeError, ValueError):
        return Mark(label, None)
    return Mark(label, (cx - w / 2, cy - h / 2, w, h))


FORMAT = Reader(
    name="createml",
    look=loose(annotation_files),
    read=read,
    title="CreateML",
    places="_annotations.createml.json, with the images",
)
