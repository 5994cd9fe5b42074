"""WIDER FACE: wider_face_<split>_bbx_gt.txt, images in WIDER_<split>/images/<event>/.

For each image its name, the number of faces, and a line a face: left, top, width, height in pixels, then blur,
expression, illumination, invalid, occlusion, pose. An image without a face has one line of zeros.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from datamodules.images.files import SUFFIXES
from datamodules.reading import kinds as sniff
from datamodules.reading.annotation_folder import AnnotationFolder, named_classes
from datamodules.reading.parsing import read_lines
from datamodules.reading.records import ImageRecord, Mark, Remarks, split_of_file

CLASS = "face"
_NAME = re.compile(r"wider_face_\w+_bbx_gt\.txt")
_INVALID = 7  # column of the flag of a face that the benchmark ignores
_RULE = "a face is left top width height and six flags; left out; correct it"


def annotation_files(root: Path) -> list[Path]:
    """Every txt that begins with an image, a number and a face, or has the name of a published one."""
    texts = sniff.files(root, ".txt")
    return [f for f in texts if _NAME.fullmatch(f.name) or _is_wider(sniff.first_lines(f, 3))]


def _is_wider(lines: Sequence[str]) -> bool:
    if len(lines) < 3 or not _is_image(lines[0]) or not lines[1].isdigit():
        return False
    cells = lines[2].split()
    return len(cells) == 10 and all(cell.lstrip("-").isdigit() for cell in cells)


def _is_image(line: str) -> bool:
    return Path(line).suffix.lower() in SUFFIXES


def _read(folder: AnnotationFolder) -> Iterator[ImageRecord]:
    """One class, face. An invalid face is a crowd, which the benchmark ignores."""
    folder.names = [CLASS]
    for file in folder.files:
        yield from _records(file, split_of_file(file, folder.root), folder.remarks)


def _records(file: Path, split: str, remarks: Remarks) -> Iterator[ImageRecord]:
    record: ImageRecord | None = None
    expected: int | None = None
    for number, line in enumerate((own.strip() for own in read_lines(file)), start=1):
        if _is_image(line):
            if record is not None:
                yield _whole(record, expected, remarks)
            record = ImageRecord(f"WIDER_{split}/images/{line}", file, split, other_names=(line,))
            expected = None
        elif line and record is not None and expected is None and line.isascii() and line.isdigit():
            expected = int(line[:9])
        elif line:
            mark = _face(line)
            if mark is None or record is None:
                remarks.add("error", "invalid_row", file, _RULE, f"line {number}")
            elif expected or any(cell != "0" for cell in line.split()):
                record.marks.append(mark)
    if record is not None:
        yield _whole(record, expected, remarks)


def _whole(record: ImageRecord, expected: int | None, remarks: Remarks) -> ImageRecord:
    if expected is None or expected != len(record.marks):
        message = "image whose number of faces is not that of its lines; the lines are taken; correct it"
        remarks.add("warning", "face_count", record.source, message, record.other_names[0])
    return record


def _face(line: str) -> Mark | None:
    cells = line.split()
    try:
        x, y, w, h = (float(cell) for cell in cells[:4])
    except ValueError:
        return None
    return Mark(CLASS, (x, y, w, h), crowd=len(cells) > _INVALID and cells[_INVALID] == "1")


FORMAT = named_classes(
    name="wider_face",
    find=annotation_files,
    records=_read,
    lacks="wider_face_train_bbx_gt.txt",
    unlisted="image that no list of faces names; left out",
    title="WIDER FACE",
    places="wider_face_split/wider_face_train_bbx_gt.txt, WIDER_train/images/*/*.jpg, ...",
)
