"""KITTI's object labels: one txt for each image, 15 columns a line, in label_2/ beside image_2/.

Columns: type, truncated, occluded, alpha, left, top, right, bottom, then seven of the box in space. Pixels
count from 0 and corners are edges, so a width is right - left, as in the benchmark's own evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from datamodules.index.source import split_of
from datamodules.reading import kinds as sniff
from datamodules.reading.annotation_folder import AnnotationFolder, named_classes
from datamodules.reading.image_tree import ImageTree
from datamodules.reading.parsing import is_number, numbered_lines, read_lines
from datamodules.reading.records import ImageRecord, Mark, Remarks, split_of_file

CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")
_IGNORED = "dontcare"
_IMAGES = ("image_2", "images", "image", "image_02", "JPEGImages", "")
_COLUMNS = (15, 16)  # the last of 16 is a score, as results have
_RULE = (
    "a line is type truncated occluded alpha left top right bottom and seven numbers; left out; correct it"
)


def annotation_files(root: Path) -> list[Path]:
    """Every txt of the folders whose first files are of KITTI."""
    return sniff.texts_of_kind(root, _is_row)


def _is_row(line: str) -> bool:
    first, *rest = line.split()
    if len(rest) + 1 not in _COLUMNS or is_number(first):
        return False
    return all(map(is_number, rest))


def _read(folder: AnnotationFolder) -> list[ImageRecord]:
    """Classes in KITTI's order, others by alphabet. DontCare is a region to ignore.

    Splits by ImageSets/train.txt and its like, else by the folders.
    """
    root = folder.root
    bases = {labels: _base(labels) for labels in {file.parent for file in folder.files}}
    folder.tree = ImageTree(root, within=list(bases.values()))
    listed = {base: _lists(root, base) for base in bases.values()}
    records = []
    for file in folder.files:
        base = bases[file.parent]
        members = listed[base]
        if members and file.stem not in members:
            message = "label file that no list of ImageSets names; left out; add it to one of them"
            folder.remarks.add("warning", "unlisted_image", file.parent, message, file.name)
            continue
        split = members.get(file.stem) or split_of_file(file, root)
        name = folder.tree.place(base.relative_to(root).as_posix(), _IMAGES, file.stem)
        records.append(ImageRecord(name, file, split, None, list(_marks(file, folder.remarks))))
    used = {mark.name for record in records for mark in record.marks}
    folder.names = [name for name in CLASSES if name in used]
    return records


def _base(labels: Path) -> Path:
    """The folder that has both labels and images: above the labels, or theirs if images lie beside them."""
    beside = any((labels.parent / folder).is_dir() for folder in _IMAGES if folder)
    return labels.parent if beside else labels


def _lists(root: Path, base: Path) -> Mapping[str, str]:
    """Stem -> split, by ImageSets/*.txt beside, above or in the folder of labels; empty if there is none."""
    found: dict[str, str] = {}
    for folder in dict.fromkeys((base / "ImageSets", base.parent / "ImageSets", root / "ImageSets")):
        files = sorted(folder.glob("*.txt")) if folder.is_dir() and folder.is_relative_to(root) else []
        exact = [f for f in files if f.stem.lower() != "trainval"]
        for file in exact if any(split_of(f.stem) == "train" for f in exact) else files:
            for line in read_lines(file):
                if line.strip() and (split := split_of(file.stem)):
                    found.setdefault(line.split()[0], split)
    return found


def _marks(file: Path, remarks: Remarks) -> Iterator[Mark]:
    for number, line in numbered_lines(file):
        cells = line.split()
        try:
            x0, y0, x1, y1 = _corners(cells)
        except ValueError:
            remarks.add("error", "invalid_row", file.parent, _RULE, f"{file.name} line {number}")
            continue
        box = (x0, y0, x1 - x0, y1 - y0)
        ignored = cells[0].lower() == _IGNORED
        yield Mark("" if ignored else cells[0], box, region=ignored)


def _corners(cells: Sequence[str]) -> tuple[float, ...]:
    if len(cells) not in _COLUMNS:
        raise ValueError("a line of another number of columns")
    return tuple(float(cell) for cell in cells[4:8])


FORMAT = named_classes(
    name="kitti",
    find=annotation_files,
    records=_read,
    lacks="folder of txt with KITTI's 15 columns (label_2/)",
    unlisted="image without a label file; left out; write an empty one if it has no object",
    title="KITTI",
    places="training/label_2/*.txt with 15 columns, training/image_2/*.png",
)
