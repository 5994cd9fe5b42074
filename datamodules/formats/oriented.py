"""Turned boxes with four corners in pixels: DOTA's rows, Roboflow's `yolo_obb` export (labelTxt/)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datamodules.index.source import Source
from datamodules.reading import kinds as sniff
from datamodules.reading.image_tree import ImageTree
from datamodules.reading.outlines import flat
from datamodules.reading.parsing import read_lines
from datamodules.reading.reader import Reader, laid_out
from datamodules.reading.records import ImageRecord, Mark, Remarks, assemble, enclosing, split_of_file

FOLDERS = ("labeltxt", "labeltxt-v1.0", "labeltxt-v1.5")
_ROW = "a row is x1 y1 x2 y2 x3 y3 x4 y4 class [difficult] in pixels; left out; correct it"


def annotation_files(root: Path) -> list[Path]:
    """Every txt in a folder called labelTxt."""
    return [f for folder in sniff.folders(root, FOLDERS) for f in sorted(folder.glob("*.txt"))]


def read(root: Path, *, verify_sizes: bool = True) -> Source:
    """Reads them: of each turned box the upright box around it, with a remark. Classes by alphabet.

    Raises:
        ValueError: if there is none.
    """
    files = annotation_files(root)
    if not files:
        raise ValueError(f"{root} has no folder labelTxt with txt files")
    remarks = Remarks(root)
    records = []
    for file in files:
        name = (file.parent.parent.relative_to(root) / "images" / file.stem).as_posix()
        records.append(
            ImageRecord(name, file, split_of_file(file, root), None, list(_marks(file, root, remarks)))
        )
    return assemble(
        "oriented", root, records, ImageTree(root), notes=remarks.faults(), verify_sizes=verify_sizes,
        unlisted="image without a file in labelTxt; left out; write an empty one if it has no object",
    )  # fmt: skip


def _marks(file: Path, root: Path, remarks: Remarks) -> Iterator[Mark]:
    for number, line in enumerate(read_lines(file), start=1):
        cells = line.split()
        if not cells or line.startswith(("imagesource:", "gsd:")):
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


FORMAT = Reader(
    name="oriented",
    look=laid_out(annotation_files),
    read=read,
    title="DOTA",
    places="labelTxt/*.txt with rows of four corners, images/",
)
