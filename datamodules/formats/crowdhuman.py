"""CrowdHuman: annotation_train.odgt and annotation_val.odgt, a json object a line, images by id.

Boxes are x, y, width, height in pixels: fbox of the whole person, vbox of what is seen, hbox of the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datamodules.index import Fault, shown_path
from datamodules.reading import kinds as sniff
from datamodules.reading.annotation_folder import AnnotationFolder, named_classes
from datamodules.reading.json_lines import four, objects
from datamodules.reading.parsing import MALFORMED
from datamodules.reading.records import ImageRecord, Mark

_PERSON = "person"


def annotation_files(root: Path) -> list[Path]:
    """Every odgt file in the folder."""
    return sniff.files(root, ".odgt")


def _read(folder: AnnotationFolder) -> Iterator[ImageRecord]:
    """The box of the whole person, which may pass the edge of the image.

    What is marked `ignore`, and every `mask` (a group, a poster), is a crowd: the benchmark ignores it.
    """
    message = "of the three boxes of a person that of the whole body (fbox) is taken, not vbox and hbox; nothing to do"
    folder.notes.append(Fault("note", "whole_body", shown_path(folder.files[0], folder.root), None, message))
    message = "line that cannot be understood; left out; correct it"
    for file in folder.files:
        for number, line in objects(file, folder.remarks):
            with folder.left_out(file, message, f"line {number}"):
                marks = [_mark(entry) for entry in line.get("gtboxes") or []]
                yield folder.with_split(ImageRecord(str(line["ID"]), file, marks=marks))


def _mark(entry: Mapping[str, Any]) -> Mark:
    tag = str(entry.get("tag") or "")
    try:
        box = four(entry["fbox"])
    except MALFORMED:
        box = None
    extra = entry.get("extra") or {}
    if tag == "mask" or (isinstance(extra, dict) and extra.get("ignore") == 1):
        return Mark(_PERSON, box, crowd=True)
    return Mark(tag, box)


FORMAT = named_classes(
    name="crowdhuman",
    find=annotation_files,
    records=_read,
    lacks="odgt of CrowdHuman",
    unlisted="image that no odgt names; left out",
    title="CrowdHuman",
    places="annotation_train.odgt, annotation_val.odgt, Images/*.jpg",
)
