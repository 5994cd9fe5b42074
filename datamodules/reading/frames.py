"""Frames of a sequence: images in a folder, found by the number at the end of their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from datamodules.reading.image_tree import ImageTree
from datamodules.reading.records import ImageRecord, Mark, Remarks

_NUMBER = re.compile(r"(\d{1,12})$")


def frames_of(
    file: Path, folder: str, marks: Iterable[tuple[int, Mark]], split: str, tree: ImageTree, remarks: Remarks
) -> Iterator[ImageRecord]:
    """Every frame that lies in the folder, also one without an object. Objects of missing frames become a remark.

    Args:
        file: the annotations.
        folder: of the frames, as the tree names it.
        marks: (number of the frame, object).
        split: of the sequence.
        tree: the images.
        remarks: for what is wrong.
    """
    of_frame: dict[int, list[Mark]] = {}
    for number, mark in marks:
        of_frame.setdefault(number, []).append(mark)
    for name in tree.inside(folder):
        found = _NUMBER.search(PurePosixPath(name).stem)
        if found:
            yield ImageRecord(name, file, split, None, of_frame.pop(int(found[1]), []))
    for number in of_frame:
        message = f"frame without an image in {folder}; its objects are left out; put it there"
        remarks.add("error", "missing_frame", file, message, f"frame {number}")
