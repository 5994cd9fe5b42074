"""Which json files of a folder are COCO's, and of which split each is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from datamodules.index import Fault, shown_path
from datamodules.index.source import split_of
from datamodules.reading import kinds as sniff
from datamodules.reading.places import ANNOTATION_WORDS, one_set, split_in
from datamodules.reading.text import as_utf8
from zoo.storage.opening import open_file

# other kinds of COCO annotation: without boxes to train on, or with those of instances_*
_OTHER_KINDS = ("panoptic", "captions", "image_info", "images_info", "stuff")
_KEY_POINTS = (
    "person_keypoints"  # boxes of people, which instances_* has too; read only if there is no instances_*
)
_OF_ROBOFLOW = "_annotations.coco.json"
_LISTS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
_WORDS = ("instances", "coco", "annot", "label")
_LOOKED_AT = 20  # json files of a folder that are tried to see whether it has any of COCO
_ENDS = 1 << 16  # bytes at both ends of a file in which the lists are looked for


@dataclass(frozen=True)
class Layout:
    """The COCO files of a data set.

    Attributes:
        base: its folder: the one that was given, or the only one below.
        splits: the files of each split; several are one split in parts.
        unknown: two or more files without a split, if no file has one.
        left_out: files with boxes that are not read, each with the reason.
    """

    base: Path
    splits: dict[str, list[Path]]
    unknown: tuple[Path, ...] = ()
    left_out: tuple[Fault, ...] = ()


def find(root: Path) -> Layout | None:
    """The COCO files in a folder or, where there is only one set, in a folder of it; None if there is none."""
    with sniff.one_walk():
        every = list(_with_boxes(root))
    chosen = one_set(root, dict.fromkeys(file.parent for file in every))
    if chosen is None:
        return None
    base, folders = chosen
    own = [file for file in every if file.parent in folders]
    whole = [file for file in own if not file.name.startswith(_KEY_POINTS)]
    return _layout(root, base, whole or own, [file for file in every if file.parent not in folders])


def _with_boxes(root: Path) -> Iterable[Path]:
    for folder, group in groupby(sniff.files(root, ".json"), lambda file: file.parent):
        files = [file for file in group if not file.name.startswith(_OTHER_KINDS)]
        if folder != root:
            files = [file for file in files if file.name != _OF_ROBOFLOW]
        # thousands of json files are another tool's, and the first ones show it; COCO's are few and have known names
        telling = [file for file in files if _is_telling(file)]
        tried = dict.fromkeys([*files[:_LOOKED_AT], *telling[:_LOOKED_AT]])
        if any(holds_boxes(file) for file in tried):
            yield from (file for file in files if holds_boxes(file))


def holds_boxes(file: Path) -> bool:
    """Whether a json has COCO's lists, by its start and its end: any in a large or well named file, else two."""
    with open_file(file) as stream:
        head = stream.read(_ENDS)
        size = file.stat().st_size
        stream.seek(max(len(head), (size & ~1) - _ENDS))
        tail = stream.read()
    text = as_utf8(head + tail).lstrip(b"\xef\xbb\xbf \t\r\n")
    lists = set(_LISTS.findall(text)) if text.startswith(b"{") else set()
    return len(lists) >= (1 if size > _ENDS or _is_telling(file) else 2)


def _is_telling(file: Path) -> bool:
    return split_of(file.stem) is not None or any(word in file.stem.lower() for word in _WORDS)


def _layout(root: Path, base: Path, own: Sequence[Path], elsewhere: Sequence[Path]) -> Layout:
    best: dict[str, tuple[int, list[Path]]] = {}
    rest: list[Path] = []
    beside = []
    for rank, group in groupby(sorted(own, key=lambda f: (_rank(f, base), f)), lambda f: _rank(f, base)):
        files = list(group)
        instances = [f for f in files if f.stem.lower().startswith("instances")]
        rest += [f for f in files if instances and f not in instances]
        for file in instances or files:
            split = split_of(file.stem) or split_in(file.parent, base)
            if split is None:
                beside.append(file)
            elif best.setdefault(split, (rank, []))[0] == rank:
                best[split][1].append(file)
            else:
                rest.append(file)
    splits = {split: files for split, (_, files) in best.items()}
    if not splits and len(beside) == 1:
        return Layout(
            base, {"train": beside}, (), _unread_files(root, [*rest, *elsewhere], {"train": beside})
        )
    if not splits:
        return Layout(base, {}, tuple(beside))
    return Layout(base, splits, (), _unread_files(root, [*rest, *beside, *elsewhere], splits))


def _rank(file: Path, base: Path) -> int:
    """How usual a place is: annotations/, the folder itself, one of a split, any other."""
    parts = file.parent.relative_to(base).parts
    if len(parts) == 1 and parts[0].lower() in ANNOTATION_WORDS:
        return 0
    return 1 if not parts else 2 if split_in(file.parent, base) else 3


def _unread_files(root: Path, files: Sequence[Path], splits: dict[str, list[Path]]) -> tuple[Fault, ...]:
    taken = ", ".join(shown_path(file, root) for own in splits.values() for file in own)
    message = (
        f"a COCO file with boxes that is not read: {taken} {'are' if ', ' in taken else 'is'}; nothing to do if "
        "it repeats these, else move it to a folder of its own and give that, or name its split in its file name"
    )
    return tuple(Fault("warning", "not_read", shown_path(file, root), None, message) for file in files)
