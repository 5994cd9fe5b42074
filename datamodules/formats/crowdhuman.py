"""CrowdHuman: annotation_train.odgt and annotation_val.odgt, a json object a line, images by id.

Boxes are x, y, width, height in pixels: fbox of the whole person, vbox of what is seen, hbox of the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.index import Fault, shown_path
from datamodules.index.source import Source
from datamodules.reading import kinds as sniff
from datamodules.reading.image_tree import ImageTree
from datamodules.reading.json_lines import four, objects
from datamodules.reading.parsing import MALFORMED
from datamodules.reading.reader import Reader, loose
from datamodules.reading.records import ImageRecord, Mark, Remarks, assemble, split_of_image

_PERSON = "person"


def annotation_files(root: Path) -> list[Path]:
    """Every odgt."""
    return sniff.files(root, ".odgt")


def read(root: Path, *, verify_sizes: bool = True) -> Source:
    """Reads them: the box of the whole person, which may pass the edge of the image.

    What is marked `ignore`, and every `mask` (a group, a poster), is a crowd: the benchmark ignores it.

    Raises:
        ValueError: if there is no odgt, or one is no text.
    """
    files = annotation_files(root)
    if not files:
        raise ValueError(f"{root} has no odgt of CrowdHuman")
    tree, remarks = ImageTree(root), Remarks(root)
    records = []
    for file in files:
        for number, line in objects(file, remarks):
            try:
                marks = [_mark(entry) for entry in line.get("gtboxes") or []]
                record = ImageRecord(str(line["ID"]), file, marks=marks)
                record.split = split_of_image(record, root, tree)
            except MALFORMED:
                message = "line that cannot be understood; left out; correct it"
                remarks.add("error", "malformed_labels", file, message, f"line {number}")
                continue
            records.append(record)
    message = "of the three boxes of a person that of the whole body (fbox) is taken, not vbox and hbox; nothing to do"
    note = Fault("note", "whole_body", shown_path(files[0], root), None, message)
    return assemble(
        "crowdhuman", root, records, tree, notes=[note, *remarks.faults()], verify_sizes=verify_sizes,
        unlisted="image that no odgt names; left out",
    )  # fmt: skip


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


FORMAT = Reader(
    name="crowdhuman",
    look=loose(annotation_files),
    read=read,
    title="CrowdHuman",
    places="annotation_train.odgt, annotation_val.odgt, Images/*.jpg",
)
