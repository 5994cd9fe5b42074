"""What every format reader returns, and what the readers share."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.index import AnnotationIndex, Fault, by_severity, shown_path
from zoo.contract.labels import LabelMap

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class Source:
    """A data set as read from its folder.

    Attributes:
        format: one of `datamodules.formats.detect.FORMATS`.
        root: the folder that was read, or the address.
        classes: source id -> name, in head order.
        splits: `train`, `val`, `test`, those that exist (COCO: also as named in the recipe).
        notes: faults of the folder as a whole; those of a split are in its index.
    """

    format: str
    root: Path | str
    classes: Mapping[int, str]
    splits: Mapping[str, AnnotationIndex]
    notes: tuple[Fault, ...] = ()

    @property
    def faults(self) -> list[Fault]:
        """All faults, errors first, otherwise in the order they were found."""
        every = [*self.notes, *(f for index in self.splits.values() for f in index.faults)]
        return sorted(every, key=by_severity)

    def label_map(self, labels: Literal["contiguous", "category_id"] = "contiguous") -> LabelMap:
        """The label map of the data set.

        Raises:
            ValueError: if the data set has no class.
        """
        if not self.classes:
            raise ValueError(
                f"{self.root}: the {self.format} data set has no class; annotate at least one object"
            )
        make = LabelMap.contiguous if labels == "contiguous" else LabelMap.category_id
        return make(list(self.classes.values()), list(self.classes))


def class_key(name: str) -> str:
    """What class names have in common that differ by case, spaces around, or the form of Unicode only."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


def similar_names(file: str, classes: Mapping[int, str]) -> Iterable[Fault]:
    """A warning for each class whose name differs from an earlier one by its spelling only."""
    first: dict[str, int] = {}
    for source_id, name in classes.items():
        key = class_key(name)
        if key in first:
            message = (
                f"classes {first[key]} {classes[first[key]]!r} and {source_id} {name!r} differ by case, "
                "spaces or Unicode form only; they are kept apart; merge them if they mean the same"
            )
            yield Fault("warning", "similar_classes", file, source_id, message)
        first.setdefault(key, source_id)


def split_of(name: str) -> str | None:
    """`train`, `val` or `test` for train2017, instances_val, valid, ...; None for any other word."""
    words = "".join(c if c.isalpha() else " " for c in name.lower()).split()
    if words[-2:] == ["test", "dev"]:
        return "test"  # COCO's test-dev is a part of its test images
    return next((_SPLIT_WORDS[w] for w in reversed(words) if w in _SPLIT_WORDS), None)


def files_by_split(files: Iterable[Path]) -> dict[str, Path]:
    """The first file of each split, by the names of the files."""
    found: dict[str, Path] = {}
    for file in files:
        split = split_of(file.stem)
        if split:
            found.setdefault(split, file)
    return found


def image_overlaps(root: Path, splits: Mapping[str, AnnotationIndex]) -> Iterable[Fault]:
    """A warning for every image that is listed in two splits: its score is not that of unseen data."""
    suspects = _repeated(splits.values())
    seen: dict[str, str] = {}
    for name, index in splits.items():
        for row in np.flatnonzero(np.isin(name_hashes(index), suspects)).tolist():
            file = index.files[row]
            if file in seen and seen[file] != name:
                message = f"the image is in {seen[file]} and in {name}; keep it in one of them"
                yield Fault(
                    "warning", "leak", shown_path(index.path(row), root), index.image_id(row), message
                )
            seen.setdefault(file, name)


def _repeated(indices: Iterable[AnnotationIndex]) -> NDArray[np.int64]:
    """Hashes of the file names that occur twice; millions of names would take too much memory."""
    every = np.sort(np.concatenate([np.zeros(0, np.int64), *(name_hashes(index) for index in indices)]))
    return np.unique(every[1:][every[1:] == every[:-1]])


def name_hashes(index: AnnotationIndex) -> NDArray[np.int64]:
    """[N] hash of each file name; another process gives others."""
    return np.fromiter(map(hash, index.files), np.int64, len(index))
