"""Lists with one line for each image: keras-yolo3's `path x1,y1,x2,y2,c x1,y1,x2,y2,c ...`, as Roboflow exports it too.

Also a txt with one line `path,x1,y1,x2,y2,class` for each object. Corners are edges: a width is x2 - x1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from datamodules.images.files import SUFFIXES
from datamodules.reading import kinds as sniff
from datamodules.reading.annotation_folder import AnnotationFolder, named_classes
from datamodules.reading.parsing import numbered_lines, read_lines
from datamodules.reading.records import Box, ImageRecord, Mark, Remarks

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?")
_NAMES = re.compile(r"(.*_)?classes\.txt|.*\.names", re.IGNORECASE)
_LOOKED_AT = 20  # lines by which a txt is recognised
_RULE = "a line is `path x1,y1,x2,y2,class ...` in pixels; left out; correct it"


def annotation_files(root: Path) -> list[Path]:
    """Every txt whose first lines name images, and the boxes of at least one."""
    return [file for file in sniff.files(root, ".txt") if _is_list(sniff.first_lines(file, _LOOKED_AT))]


def _is_list(lines: Sequence[str]) -> bool:
    parts = [_parts(line) for line in lines]
    named = sniff.mostly(lambda part: _is_image(part[0]), parts)
    return named and any(boxes and all(map(_is_box, boxes)) for _, boxes in parts)


def _parts(line: str) -> tuple[str, list[str]]:
    """The image, which may have spaces in its name, and its boxes."""
    first, *cells = (cell.strip() for cell in line.rsplit(",", 5))
    if len(cells) == 5 and _is_image(first):
        return first, [",".join(cells)] if any(cells) else []
    words = line.split()
    count = len(words)
    while count > 1 and words[count - 1].count(",") >= 3:
        count -= 1
    return " ".join(words[:count]), words[count:]


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _is_box(text: str) -> bool:
    numbers = text.split(",")
    return len(numbers) == 5 and all(_NUMBER.fullmatch(number) for number in numbers[:4])


def _read(folder: AnnotationFolder) -> Iterable[ImageRecord]:
    """Classes are in the order of the file of names beside the list, at the top or in model_data/.

    A class that is no number is its own name.
    """
    root, remarks = folder.root, folder.remarks
    records: dict[tuple[Path, str], ImageRecord] = {}
    names: list[str] = []
    for file in folder.files:
        own = _names(root, file)
        names += own
        near = file.parent.relative_to(root)
        for number, line in numbered_lines(file):
            image, boxes = _parts(line)
            if not _is_image(image):
                remarks.add("error", "invalid_row", file, _RULE, f"line {number}")
                continue
            if (file, image) not in records:
                placed = (near / image.replace("\\", "/")).as_posix()
                records[file, image] = folder.with_split(ImageRecord(placed, file, other_names=(image,)))
            for box in boxes:
                if (mark := _mark(box, own, file, remarks)) is None:
                    remarks.add("error", "invalid_row", file, _RULE, f"line {number}")
                else:
                    records[file, image].marks.append(mark)
    folder.names = names
    return records.values()


def _mark(text: str, names: Sequence[str], file: Path, remarks: Remarks) -> Mark | None:
    *numbers, label = text.split(",")
    try:
        x0, y0, x1, y1 = map(float, numbers)
    except ValueError:
        return None
    box: Box = (x0, y0, x1 - x0, y1 - y0)
    if not (label.isascii() and label.isdigit() and len(label) < 10):
        return Mark(label.strip(), box)
    if int(label) < len(names):
        return Mark(names[int(label)], box)
    message = (
        "class number without a name; it is called by its number; put the names, a line each, into classes.txt "
        "beside the list"
    )
    remarks.add("warning", "no_class_names", file, message, label)
    return Mark(str(int(label)), box)


def _names(root: Path, file: Path) -> list[str]:
    """Class names, a line each, of the first file of names found; none if there is none."""
    for folder in dict.fromkeys((file.parent, root, root / "model_data")):
        found = sorted(f for f in folder.iterdir() if _NAMES.fullmatch(f.name)) if folder.is_dir() else []
        for names in found:
            if names.is_file():
                return [line.strip() for line in read_lines(names) if line.strip()]
    return []


def _is_layout(files: Sequence[Path]) -> bool:
    # Roboflow's own name in each split; its test/ may have labels of another export
    return any(file.name == "_annotations.txt" for file in files)


FORMAT = named_classes(
    name="box_list",
    find=annotation_files,
    records=_read,
    lacks="txt of lines `path x1,y1,x2,y2,class ...`",
    unlisted="image that no list names; left out; list it without a box if it has no object",
    layout=_is_layout,
    title="Lists of boxes",
    places="train.txt or train/_annotations.txt with lines `path x1,y1,x2,y2,class ...`, _classes.txt",
)
