"""MOT challenge: <sequence>/gt/gt.txt and <sequence>/img1/*.jpg, with seqinfo.ini.

Columns: frame, target, left, top, width, height, considered, class, visibility; MOT15 has no class. Frames and
pixels count from 1, as motchallenge.net/instructions says, so 1 is taken from left and top.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from datamodules.index import shown_path
from datamodules.reading import kinds as sniff
from datamodules.reading.annotation_folder import AnnotationFolder, named_classes
from datamodules.reading.frames import frames_of
from datamodules.reading.parsing import numbered_lines, read_lines
from datamodules.reading.records import ImageRecord, Mark, Remarks, split_of_file

CLASSES = {
    1: "pedestrian", 2: "person on vehicle", 3: "car", 4: "bicycle", 5: "motorbike", 6: "non motorized vehicle",
    7: "static person", 8: "distractor", 9: "occluder", 10: "occluder on the ground", 11: "occluder full",
    12: "reflection", 13: "crowd",
}  # fmt: skip
_PEDESTRIAN = 1
# may be taken for a pedestrian: the benchmark ignores a detection of it
_ALIKE = frozenset({2, 7, 8, 12, 13})
_DETECTOR = re.compile(r"(.+)-(DPM|FRCNN|SDP)$")  # MOT17 has every sequence once for each detector
_SHORTEST = 7
_RULE = "a line is frame,target,left,top,width,height,considered,class,visibility; left out; correct it"


def annotation_files(root: Path) -> list[Path]:
    """Every gt/gt.txt with rows of numbers."""
    named = [f for f in sniff.files(root, ".txt") if f.name == "gt.txt" and f.parent.name == "gt"]
    return [
        file for file in named if sniff.mostly(lambda line: bool(_numbers(line)), sniff.first_lines(file, 9))
    ]


def _numbers(line: str) -> list[float]:
    """The numbers of a line; none if it has anything else, or too few."""
    cells = [cell for cell in re.split(r"[,\s]+", line.strip()) if cell]
    try:
        return [float(cell) for cell in cells] if len(cells) >= _SHORTEST else []
    except ValueError:
        return []


def _read(folder: AnnotationFolder) -> list[ImageRecord]:
    """Every frame that has a file is an image, with the split of its folders.

    A box that is considered is an object of its class, of gt/labels.txt where there is one. One that is not is
    a crowd of its class if that is a class of the set, a crowd of pedestrians if it may be taken for one, and
    else left out. A sequence that MOT17 has for three detectors is taken once.
    """
    root, remarks = folder.root, folder.remarks
    records: list[ImageRecord] = []
    names: list[str] = []
    for file in _once(folder.files, remarks):
        own = _class_names(file)
        names += [name for number, name in own.items() if own is not CLASSES or number == _PEDESTRIAN]
        sequence = file.parent.parent
        # joined as text: seqinfo.ini may name any folder, and images are only looked for below `root`
        frames = f"{sequence.relative_to(root).as_posix()}/{_info(sequence).get('imDir', 'img1')}"
        marks = list(_marks(file, own, remarks))
        split = split_of_file(file, root)
        records += frames_of(file, frames.removeprefix("./"), marks, split, folder.tree, remarks)
    _without_truth(root, folder.files, remarks)
    used = {mark.name for record in records for mark in record.marks if not mark.crowd}
    folder.names = [name for name in names if name in used]
    return [_of_classes(record, used) for record in records]


def _once(files: Sequence[Path], remarks: Remarks) -> Iterator[Path]:
    """The files without the second and third copy of a sequence, if their annotations are the same."""
    first: dict[tuple[Path, str], bytes] = {}
    for file in files:
        sequence = file.parent.parent
        if match := _DETECTOR.fullmatch(sequence.name):
            key, content = (sequence.parent, match[1]), file.read_bytes()
            if first.get(key) == content:
                message = "sequence that is there for another detector too, with the same truth; taken once"
                remarks.add("note", "repeated_sequence", sequence.parent, message, sequence.name)
                continue
            first.setdefault(key, content)
        yield file


def _class_names(file: Path) -> Mapping[int, str]:
    """Class names: those of labels.txt, one a line from 1, as CVAT writes it beside gt.txt; else the challenge's."""
    labels = file.parent / "labels.txt"
    if not labels.is_file():
        return CLASSES
    lines = [line.strip() for line in read_lines(labels) if line.strip()]
    return dict(enumerate(lines, start=1))


def _info(sequence: Path) -> dict[str, str]:
    file = sequence / "seqinfo.ini"
    lines = read_lines(file) if file.is_file() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines) if value}


def _marks(file: Path, names: Mapping[int, str], remarks: Remarks) -> Iterator[tuple[int, Mark]]:
    """(frame, object); one that is not considered is a crowd."""
    for number, line in numbered_lines(file):
        row = _numbers(line)
        if not row or not all(value == value and abs(value) < 1e9 for value in row):
            remarks.add("error", "invalid_row", file, _RULE, f"line {number}")
            continue
        x, y, w, h = row[2:6]
        # MOT15 has -1 in the column of the class and those after it
        label = int(row[7]) if len(row) > 7 and row[7] > 0 and len(row) < 10 else _PEDESTRIAN
        yield int(row[0]), Mark(names.get(label, f"class {label}"), (x - 1, y - 1, w, h), crowd=row[6] == 0)
        if row[6] == 0 and names is CLASSES and label not in (_PEDESTRIAN, *_ALIKE):
            message = f"box of {CLASSES.get(label, f'class {label}')} that is not considered; left out"
            remarks.add("note", "not_considered", file, message, f"frame {int(row[0])}")


def _of_classes(record: ImageRecord, used: set[str]) -> ImageRecord:
    """The record with crowds of the set's classes only; what may pass for a pedestrian is a crowd of pedestrians."""
    alike = {CLASSES[number] for number in _ALIKE}
    marks = []
    for mark in record.marks:
        if mark.name in used:
            marks.append(mark)
        elif mark.crowd and mark.name in alike and CLASSES[_PEDESTRIAN] in used:
            marks.append(mark._replace(name=CLASSES[_PEDESTRIAN]))
    record.marks = marks
    return record


def _without_truth(root: Path, files: Sequence[Path], remarks: Remarks) -> None:
    known = {file.parent.parent for file in files}
    for folder in sniff.folders(root, ("img1",)):
        if folder.parent not in known:
            where = shown_path(folder.parent, root)
            message = "sequence without gt/gt.txt; left out; the test sequences of the challenge have none"
            remarks.add("note", "no_truth", root, message, where)


FORMAT = named_classes(
    name="mot",
    find=annotation_files,
    records=_read,
    lacks="gt/gt.txt of the MOT challenge",
    title="MOT challenge",
    places="train/MOT17-02-FRCNN/gt/gt.txt, train/MOT17-02-FRCNN/img1/*.jpg, seqinfo.ini",
)
