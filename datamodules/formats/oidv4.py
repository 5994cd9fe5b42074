"""Open Images as the OIDv4 toolkit downloads it: <split>/<class>/*.jpg, and Label/*.txt in each of these folders.

A line is `class left top right bottom` in pixels; a class may be of several words.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datamodules.reading import kinds as sniff
from datamodules.reading.annotation_folder import AnnotationFolder, named_classes
from datamodules.reading.parsing import numbered_lines
from datamodules.reading.records import ImageRecord, Mark, Remarks, split_of_file

_RULE = "a line is `class left top right bottom` in pixels; left out; correct it"


def annotation_files(root: Path) -> list[Path]:
    """Every txt of the folders called Label whose first files have such lines."""
    files = sniff.texts_of_kind(root, lambda line: _mark(line) is not None)
    return [file for file in files if file.parent.name.lower() == "label"]


def _mark(line: str) -> Mark | None:
    *words, left, top, right, bottom = ["", "", "", "", *line.split()]
    name = " ".join(word for word in words if word)
    try:
        x0, y0, x1, y1 = map(float, (left, top, right, bottom))
    except ValueError:
        return None
    return Mark(name, (x0, y0, x1 - x0, y1 - y0)) if name else None


def _read(folder: AnnotationFolder) -> Iterator[ImageRecord]:
    """Classes in alphabetical order, splits by the folders.

    An image that was downloaded for two classes lies in both of their folders, with the objects of one class in
    each: these are read as two images, with a remark.
    """
    message = (
        "image that another class has too: each copy has the objects of its own class only, so a model "
        "learns that the others are none; download with --multiclasses 1"
    )
    seen: dict[tuple[str, str], Path] = {}
    for file in folder.files:
        base = file.parent.parent.relative_to(folder.root).as_posix()
        name, split = folder.tree.place(base, ("",), file.stem), split_of_file(file, folder.root)
        if seen.setdefault((split, file.stem), file) != file:
            folder.remarks.add("warning", "copy_for_each_class", folder.root, message, name)
        yield ImageRecord(name, file, split, None, list(_marks(file, folder.remarks)))


def _marks(file: Path, remarks: Remarks) -> Iterator[Mark]:
    for number, line in numbered_lines(file):
        if (mark := _mark(line)) is None:
            remarks.add("error", "invalid_row", file.parent, _RULE, f"{file.name} line {number}")
        else:
            yield mark


FORMAT = named_classes(
    name="oidv4",
    find=annotation_files,
    records=_read,
    lacks="folder Label with txt of lines `class left top right bottom`",
    unlisted="image without a file in Label/; left out",
    title="OIDv4 toolkit",
    places="train/Apple/*.jpg, train/Apple/Label/*.txt with lines `class left top right bottom`",
)
