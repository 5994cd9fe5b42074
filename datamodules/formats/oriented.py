"""Turned boxes with four corners in pixels: DOTA's rows, Roboflow's `yolo_obb` export (labelTxt/)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datamodules.reading import kinds as sniff
from datamodules.reading.annotation_folder import AnnotationFolder, named_classes
from datamodules.reading.outlines import flat
from datamodules.reading.parsing import numbered_lines
from datamodules.reading.records import ImageRecord, Mark, Remarks, enclosing, split_of_file

FOLDERS = ("labeltxt", "labeltxt-v1.0", "labeltxt-v1.5")
_ROW = "a row is x1 y1 x2 y2 x3 y3 x4 y4 class [difficult] in pixels; left out; correct it"


def annotation_files(root: Path) -> list[Path]:
    """Every txt in a folder called labelTxt."""
    return [f for folder in sniff.folders(root, FOLDERS) for f in sorted(folder.glob("*.txt"))]


def _read(folder: AnnotationFolder) -> Iterator[ImageRecord]:
    """Of each turned box the upright box around it, with a remark. Classes by alphabet."""
    for file in folder.files:
        name = (file.parent.parent.relative_to(folder.root) / "images" / file.stem).as_posix()
        split = split_of_file(file, folder.root)
        yield ImageRecord(name, file, split, None, list(_marks(file, folder.remarks)))


def _marks(file: Path, remarks: Remarks) -> Iterator[Mark]:
    for number, line in numbered_lines(file):
        cells = line.split()
        if line.startswith(("imagesource:", "gsd:")):
            continue
        try:
            values = [float(cell) for cell in cells[:8]]
            corners = list(zip(values[0::2], values[1::2], strict=True))
            label = cells[8]
        except (ValueError, IndexError):
            remarks.add("error", "invalid_row", file, _ROW, f"line {number}")
            continue
        message = "turned box; the upright box around it is taken"
        remarks.add("warning", "turned_box", file.parent, message, f"{file.name} line {number}")
        yield Mark(label, enclosing(corners), [flat(corners)])


FORMAT = named_classes(
    name="oriented",
    find=annotation_files,
    records=_read,
    lacks="folder labelTxt with txt files",
    unlisted="image without a file in labelTxt; left out; write an empty one if it has no object",
    layout=True,
    title="DOTA",
    places="labelTxt/*.txt with rows of four corners, images/",
)
