"""What every format reader returns, and the steps they share."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.images.files import ImageFolder, frame_size
from datamodules.index import AnnotationIndex, Fault, IndexBuilder, by_severity, shown_path
from zoo.contract.labels import LabelMap

_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
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


def split_of(name: str) -> str | None:
    """`train`, `val` or `test` for train2017, instances_val, valid, ...; None for any other word."""
    words = "".join(c if c.isalpha() else " " for c in name.lower()).split()
    if words[-2:] == ["test", "dev"]:
        return "test"  # not a set to develop on, but a part of the test
    return next((_SPLIT_WORDS[w] for w in reversed(words) if w in _SPLIT_WORDS), None)


def files_by_split(files: Iterable[Path]) -> dict[str, Path]:
    """The first file of each split that a name tells."""
    found: dict[str, Path] = {}
    for file in files:
        split = split_of(file.stem)
        if split:
            found.setdefault(split, file)
    return found


def add_checked_image(
    builder: IndexBuilder,
    folder: ImageFolder,
    name: str,
    image_id: int,
    declared: tuple[int, int] | None,
    verify_size: bool,
) -> tuple[int, int] | None:
    """Finds the image, reconciles its size and adds it, or excludes it with a fault.

    Returns the (h, w) of the frame of its boxes, None for an image that was excluded.

    Args:
        builder: the split's index under construction.
        folder: where the images are.
        name: file name as the annotations give it.
        image_id: its id.
        declared: (h, w) in the annotations, None if they have none.
        verify_size: read the file's header even if a size is declared.
    """
    if declared is not None and not verify_size and folder.holds(name):
        # as text: a Path would cost more than all else that an image needs
        builder.add_image(f"{folder.folder}/{name}", image_id, declared)
        return declared
    path, remark = folder.find(name)
    if path is None:
        builder.exclude_image(image_id)
        builder.fault(
            "error",
            "missing_image",
            folder.folder / name,
            image_id,
            f"there is no such file in {folder.folder}; the image and its objects are left out; put the "
            "file there or remove it from the annotations",
        )
        return None
    if remark:
        builder.fault(
            "warning",
            "file_name",
            folder.folder / name,
            image_id,
            f"{remark}; correct the name in the annotations",
        )
    if verify_size or declared is None:
        frame = frame_size(path, declared)
        if frame.size is None:
            builder.exclude_image(image_id)
            builder.fault("error", frame.kind, path, image_id, frame.message)
            return None
        if frame.kind:
            builder.fault("warning", frame.kind, path, image_id, frame.message)
        declared = frame.size
    assert declared is not None
    builder.add_image(path, image_id, declared)
    return declared


def image_overlaps(root: Path, splits: Mapping[str, AnnotationIndex]) -> Iterable[Fault]:
    """A warning for every image that is listed in two splits: its score is not that of unseen data."""
    suspects = _repeated(splits.values())
    seen: dict[str, str] = {}
    for name, index in splits.items():
        for row in np.flatnonzero(np.isin(name_hashes(index), suspects)).tolist():
            file = index.files[row]
            if file in seen and seen[file] != name:
                yield Fault(
                    "warning",
                    "leak",
                    shown_path(index.path(row), root),
                    index.image_id(row),
                    f"the image is in {seen[file]} and in {name}; keep it in one of them",
                )
            seen.setdefault(file, name)


def _repeated(indices: Iterable[AnnotationIndex]) -> NDArray[np.int64]:
    """Hashes of file names that occur twice: names themselves would take memory by the million."""
    every = np.sort(np.concatenate([np.zeros(0, np.int64), *(name_hashes(index) for index in indices)]))
    return np.unique(every[1:][every[1:] == every[:-1]])


def name_hashes(index: AnnotationIndex) -> NDArray[np.int64]:
    """[N] hash of each file name, of this process only."""
    return np.fromiter(map(hash, index.files), np.int64, len(index))
