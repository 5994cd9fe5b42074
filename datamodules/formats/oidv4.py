"""Open Images as the OIDv4 toolkit downloads it: <split>/<class>/*.jpg, and Label/*.txt in each of these folders.

A line is `class left top right bottom` in pixels; a class may be of several words.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datamodules.index.source import Source
from datamodules.reading import kinds as sniff
from datamodules.reading.image_tree import ImageTree
from datamodules.reading.parsing import read_lines
from datamodules.reading.reader import Reader, loose
from datamodules.reading.records import ImageRecord, Mark, Remarks, assemble, split_of_file

_RULE = "a line is `class left top right bottom` in pixels; left out; correct it"


def annotation_files(root: Path) -> list[Path]:
    """Every txt of the folders called Label whose first files have such lines."""
    named = sniff.folders(root, ("label",))
    of_kind = sniff.text_folders(
        root, lambda lines: sniff.mostly(lambda line: _mark(line) is not None, lines)
    )
    return [file for folder in of_kind if folder in named for file in sorted(folder.glob("*.txt"))]


def _mark(line: str) -> Mark | None:
    *words, left, top, right, bottom = ["", "", "", "", *line.split()]
    name = " ".join(word for word in words if word)
    try:
        x0, y0, x1, y1 = map(float, (left, top, right, bottom))
    except ValueError:
        return None
    return Mark(name, (x0, y0, x1 - x0, y1 - y0)) if name else None


def read(root: Path, *, verify_sizes: bool = True) -> Source:
    """Reads them; classes in alphabetical order, splits by the folders.

    An image that was downloaded for two classes lies in both of their folders, with the objects of one class in
    each: these are read as two images, with a remark.

    Raises:
        ValueError: if there is none, or one is no text.
    """
    files = annotation_files(root)
    if not files:
        raise ValueError(f"{root} has no folder Label with txt of lines `class left top right bottom`")
    tree, remarks = ImageTree(root), Remarks(root)
    records = []
    seen: dict[tuple[str, str], Path] = {}
    for file in files:
        base = file.parent.parent.relative_to(root).as_posix()
        name = tree.place(base, ("",), file.stem)
        split = split_of_file(file, root)
        if seen.setdefault((split, file.stem), file) != file:
            message = (
                "image that another class has too: each copy has the objects of its own class only, so a model "
                "learns that the others are none; download with --multiclasses 1"
            )
            remarks.add("warning", "copy_for_each_class", root, message, name)
        records.append(ImageRecord(name, file, split, None, list(_marks(file, remarks))))
    return assemble(
        "oidv4", root, records, tree, notes=remarks.faults(), verify_sizes=verify_sizes,
        unlisted="image without a file in Label/; left out",
    )  # fmt: skip


def _marks(file: Path, remarks: Remarks) -> Iterator[Mark]:
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        mark = _mark(line)
        if mark is None:
            remarks.add("error", "invalid_row", file.parent, _RULE, f"{file.name} line {number}")
        else:
            yield mark


FORMAT = Reader(
    name="oidv4",
    look=loose(annotation_files),
    read=read,
    title="OIDv4 toolkit",
    places="train/Apple/*.jpg, train/Apple/Label/*.txt with lines `class left top right bottom`",
)
