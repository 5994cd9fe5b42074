"""VisDrone: annotations/ with one txt for each image (DET) or sequence (VID), images/ or sequences/ beside.

Columns: left, top, width, height, score, category, truncation, occlusion; of a sequence frame and target
come first. Boxes are in pixels from the upper left corner, as the VisDrone2018 toolkit has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datamodules.reading import kinds as sniff
from datamodules.reading.annotation_folder import AnnotationFolder, named_classes
from datamodules.reading.frames import frames_of
from datamodules.reading.parsing import numbered_lines
from datamodules.reading.records import ImageRecord, Mark, Remarks, split_of_file

# category -> name as published; 0 are ignored regions, 11 others, neither is a class of the challenge
CLASSES = {1: "pedestrian", 2: "people", 3: "bicycle", 4: "car", 5: "van", 6: "truck", 7: "tricycle",
           8: "awning-tricycle", 9: "bus", 10: "motor"}  # fmt: skip
_REGION, _OTHERS = 0, 11
_IMAGE, _SEQUENCE = 8, 10  # columns
_RULE = "a line is left,top,width,height,score,category,truncation,occlusion; left out; correct it"


def annotation_files(root: Path) -> list[Path]:
    """Every txt of the folders whose first files are of VisDrone."""
    return sniff.texts_of_kind(root, _is_row)


def _is_row(line: str) -> bool:
    if (row := _numbers(line)) is None:
        return False
    score, category, truncation, occlusion = row[-4:]
    return score in (0, 1) and 0 <= category <= _OTHERS and truncation in (0, 1) and occlusion in (0, 1, 2)


def _numbers(line: str) -> list[int] | None:
    cells = [cell.strip() for cell in line.strip().rstrip(",").split(",")]
    try:
        return [int(cell) for cell in cells] if len(cells) in (_IMAGE, _SEQUENCE) else None
    except ValueError:
        return None


def _read(folder: AnnotationFolder) -> Iterator[ImageRecord]:
    """Class ids are the published categories 1 to 10.

    Category 0 is a region to ignore, a box of score 0 a crowd of its class, and category 11 (others) is left
    out, as the challenge does.
    """
    folder.ids = {name: i for i, name in CLASSES.items()}
    for file in folder.files:
        yield from _records(file, folder)


def _records(file: Path, folder: AnnotationFolder) -> Iterator[ImageRecord]:
    root = folder.root
    base = file.parent.parent.relative_to(root).as_posix() if file.parent != root else "."
    marks = list(_marks(file, folder.remarks))
    split = split_of_file(file.parent / "x", root)
    if not any(frame for frame, _ in marks):
        name = folder.tree.place(base, ("images", "sequences", ""), file.stem)
        yield ImageRecord(name, file, split, None, [mark for _, mark in marks])
        return
    frames = f"sequences/{file.stem}" if base == "." else f"{base}/sequences/{file.stem}"
    yield from frames_of(file, frames, marks, split, folder.tree, folder.remarks)


def _marks(file: Path, remarks: Remarks) -> Iterator[tuple[int, Mark]]:
    """(frame, or 0 for a single image; object)."""
    for number, line in numbered_lines(file):
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


FORMAT = named_classes(
    name="visdrone",
    find=annotation_files,
    records=_read,
    lacks="folder of txt with VisDrone's 8 columns (annotations/)",
    unlisted="image without an annotation file; left out",
    title="VisDrone",
    places="VisDrone2019-DET-train/annotations/*.txt, VisDrone2019-DET-train/images/*.jpg, ...-val/...",
)
