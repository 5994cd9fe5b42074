"""VisDrone: annotations/ with one txt for each image (DET) or sequence (VID), images/ or sequences/ beside.

Columns: left, top, width, height, score, category, truncation, occlusion; of a sequence frame and target
come first. Boxes are in pixels from the upper left corner, as the VisDrone2018 toolkit has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from datamodules.index.source import Source
from datamodules.reading import kinds as sniff
from datamodules.reading.frames import frames_of
from datamodules.reading.image_tree import ImageTree
from datamodules.reading.parsing import read_lines
from datamodules.reading.reader import Reader, loose
from datamodules.reading.records import ImageRecord, Mark, Remarks, assemble, split_of_file

# category -> name as published; 0 are ignored regions, 11 others, neither is a class of the challenge
CLASSES = {1: "pedestrian", 2: "people", 3: "bicycle", 4: "car", 5: "van", 6: "truck", 7: "tricycle",
           8: "awning-tricycle", 9: "bus", 10: "motor"}  # fmt: skip
_REGION, _OTHERS = 0, 11
_IMAGE, _SEQUENCE = 8, 10  # columns
_RULE = "a line is left,top,width,height,score,category,truncation,occlusion; left out; correct it"


def annotation_files(root: Path) -> list[Path]:
    """Every txt of the folders whose first files are of VisDrone."""
    return [
        file
        for folder in sniff.text_folders(root, _is_visdrone)
        for file in sorted(folder.glob("*.txt"))
        if not file.name.startswith(".")
    ]


def _is_visdrone(lines: Sequence[str]) -> bool:
    return sniff.mostly(_fits, [_numbers(line) for line in lines])


def _fits(row: Sequence[int] | None) -> bool:
    if row is None:
        return False
    score, category, truncation, occlusion = row[-4:]
    return score in (0, 1) and 0 <= category <= _OTHERS and truncation in (0, 1) and occlusion in (0, 1, 2)


def _numbers(line: str) -> list[int] | None:
    cells = [cell.strip() for cell in line.strip().rstrip(",").split(",")]
    try:
        return [int(cell) for cell in cells] if len(cells) in (_IMAGE, _SEQUENCE) else None
    except ValueError:
        return None


def read(root: Path, *, verify_sizes: bool = True) -> Source:
    """Reads all folders of annotations; class ids are the published categories 1 to 10.

    Category 0 is a region to ignore, a box of score 0 a crowd of its class, and category 11 (others) is left
    out, as the challenge does.

    Raises:
        ValueError: if there are none, or a file is no text.
    """
    files = annotation_files(root)
    if not files:
        raise ValueError(f"{root} has no folder of txt with VisDrone's 8 columns (annotations/)")
    tree, remarks = ImageTree(root), Remarks(root)
    records = [record for file in files for record in _records(file, root, tree, remarks)]
    return assemble(
        "visdrone", root, records, tree, ids={name: i for i, name in CLASSES.items()}, notes=remarks.faults(),
        verify_sizes=verify_sizes, unlisted="image without an annotation file; left out",
    )  # fmt: skip


def _records(file: Path, root: Path, tree: ImageTree, remarks: Remarks) -> Iterator[ImageRecord]:
    base = file.parent.parent.relative_to(root).as_posix() if file.parent != root else "."
    marks = list(_marks(file, remarks))
    split = split_of_file(file.parent / "x", root)
    if not any(frame for frame, _ in marks):
        name = tree.place(base, ("images", "sequences", ""), file.stem)
        yield ImageRecord(name, file, split, None, [mark for _, mark in marks])
        return
    folder = "sequences" if base == "." else f"{base}/sequences"
    yield from frames_of(file, f"{folder}/{file.stem}", marks, split, tree, remarks)


def _marks(file: Path, remarks: Remarks) -> Iterator[tuple[int, Mark]]:
    """(frame, or 0 for a single image; object)."""
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        row = _numbers(line)
        if row is None or not 0 <= row[-3] <= _OTHERS:
            remarks.add("error", "invalid_row", file.parent, _RULE, f"{file.name} line {number}")
            continue
        x, y, w, h, score, category = row[-8:-2]
        frame = row[0] if len(row) == _SEQUENCE else 0
        if category == _OTHERS:
            message = "object of category 11, others, which is no class of VisDrone; left out"
            remarks.add("note", "others", file.parent, message, file.name)
        elif category == _REGION:
            yield frame, Mark("", (x, y, w, h), region=True)
        else:
            yield frame, Mark(CLASSES[category], (x, y, w, h), crowd=score == 0)


FORMAT = Reader(
    name="visdrone",
    look=loose(annotation_files),
    read=read,
    title="VisDrone",
    places="VisDrone2019-DET-train/annotations/*.txt, VisDrone2019-DET-train/images/*.jpg, ...-val/...",
)
