"""Which images and objects of a faulty data set a cleaned copy keeps. Nothing is guessed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from datamodules.doctor.agreement import KEPT_RULE, agreement, chosen
from datamodules.doctor.duplicates import groups
from datamodules.doctor.ownership import shared_ids
from datamodules.index import AnnotationIndex, Fault
from datamodules.index.faults import NOT_READ
from datamodules.index.source import class_key

if TYPE_CHECKING:
    from datamodules.doctor import Examination

# an object whose place or class cannot be known: without it the image would teach that it is background
_UNKNOWN_OBJECT = frozenset({
    "invalid_box", "unknown_category", "invalid_row", "not_normalised", "unreadable_labels", "several_boxes",
    "normalised_box",
})  # fmt: skip
_BROKEN_FILE = frozenset({"corrupt_image", "damaged_image"})
_NOT_AN_OBJECT = frozenset({"zero_area", "outside", "unknown_image"})
# it is not known what is right, and neither case does much harm: kept, and logged
_KEPT = frozenset({
    "rotation_ignored", "rotation_unclear", "near_leak", "augmented_leak", "conflicting_object", "subpixel_box",
    "tiny_image", "extreme_aspect", "few_levels", "lost_levels", "animated", "no_label_file", "crowd_without_mask",
    "crowd_polygon", "more_than_100_of_a_class",
    "duplicate_category", "more_objects_than_queries", "polygon", "unlisted_image", "swapped_size",
})  # fmt: skip


@dataclass
class Verdicts:
    """Per split and image row the reason why it is left out; and the faults whose objects are left out or kept."""

    images: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    not_read: list[Fault] = field(default_factory=list)
    objects: list[Fault] = field(default_factory=list)
    kept: list[Fault] = field(default_factory=list)


def judge(found: Examination) -> Verdicts:
    """What a cleaned copy leaves out.

    Raises:
        ValueError: if the data set has no class or too few names of classes, or all boxes of a split are in doubt.
    """
    doubt = next((f for f in found.faults if f.kind in ("no_class", "xyxy_boxes", "short_class_list")), None)
    if doubt is not None:
        raise ValueError(f"this cannot be corrected without a decision of yours: {doubt}")
    verdicts = Verdicts()
    for fault in found.faults:
        if fault.kind in NOT_READ:  # the reader has left these images out already
            verdicts.not_read.append(fault)
        elif fault.kind in _NOT_AN_OBJECT:
            verdicts.objects.append(fault)
        elif fault.kind in _KEPT and (fault.severity != "error" or fault.kind == "duplicate_category"):
            verdicts.kept.append(fault)
    shared = shared_ids(found.faults)
    for split, index in found.source.splits.items():
        out = verdicts.images[split]
        out |= _named(index, found.faults)
        out |= _of_doubtful_class(index, split, found)
        for row in np.flatnonzero(np.isin(index.image_ids, list(shared))).tolist():
            other = shared[int(index.image_ids[row])]
            out[row] = f"its id is also that of {other}; which of them an annotation means cannot be known"
        if split in found.probes:
            out |= dict(_twins(index, found.probes[split].digests, set(out)))
    for first, second in found.pairs:
        verdicts.images[first] |= _leaked(
            found.probes[first].digests, found.source.splits[second], second, found.probes[second].digests,
            verdicts.images[second],
        )  # fmt: skip
    return verdicts


def _named(index: AnnotationIndex, faults: Iterable[Fault]) -> dict[int, str]:
    """Images that a fault names, by their own file or by a label file of the same stem."""
    by_file: dict[str, str] = {}
    by_stem: dict[str, str] = {}
    for fault in faults:
        if fault.kind in _BROKEN_FILE:
            by_file[fault.file] = fault.message
        elif fault.kind in _UNKNOWN_OBJECT and fault.severity == "error":
            why = f"the image has an object whose place or class is not known: {fault.message}"
            by_file[fault.file] = why
            if PurePosixPath(fault.file).suffix.lower() in (".txt", ".xml"):
                by_stem[_label_stem(fault.file)] = why
    if not by_file:
        return {}
    return {
        row: by_file.get(file) or by_stem[_label_stem(file)]
        for row, file in enumerate(index.files)
        if file in by_file or (by_stem and _label_stem(file) in by_stem)
    }


def _label_stem(file: str) -> str:
    """The part of the path that an image and its label file share: without suffix and folders such as images/."""
    kinds = {"images", "labels", "jpegimages", "annotations"}
    parts = [p for p in PurePosixPath(file).with_suffix("").parts if p.lower() not in kinds]
    return "/".join(parts)


def _of_doubtful_class(index: AnnotationIndex, split: str, found: Examination) -> Iterator[tuple[int, str]]:
    ids = {
        f.id: f.message
        for f in found.faults
        if f.kind == "class_list" and isinstance(f.id, int) and split in f.file
    }
    offsets = index.offsets
    for row in range(len(index) if ids else 0):
        own = set(index.source_ids[offsets[row] : offsets[row + 1]].tolist()) & set(ids)
        if own:
            yield row, ids[min(own)]


def _twins(index: AnnotationIndex, digests: np.ndarray, left_out: set[int]) -> Iterator[tuple[int, str]]:
    """All but one of the files with the same bytes, see `KEPT_RULE`; without those left out for another reason."""
    for every in groups(digests):
        rows = [row for row in every if row not in left_out]
        if len(rows) < 2:
            continue
        kept = chosen(index, rows)
        for row in rows:
            found = agreement(index, kept, index, row).kind
            what = {
                "same": "the same",
                "near": "nearly the same",
                "partial": "mostly the same",
                "conflict": "other",
            }
            if row != kept:
                why = f"the same image with {what[found]} objects as {index.files[kept]}"
                yield row, why if found == "same" else f"{why}; {KEPT_RULE}"


def _leaked(
    first: np.ndarray, second: AnnotationIndex, name: str, digests: np.ndarray, left_out: Mapping[int, str]
) -> dict[int, str]:
    """Images that are also in a later split, whose scores would then not be those of unseen data.

    Args:
        first: [N] digests of the earlier split.
        second: the later split.
        name: of the later split.
        digests: [M] of the later split.
        left_out: rows of the later split that are not in the copy.
    """
    files = {d: second.files[row] for row, d in enumerate(digests.tolist()) if any(d) and row not in left_out}
    return {
        row: f"the same image is in {name}: {files[d]}" for row, d in enumerate(first.tolist()) if d in files
    }


def merged_classes(classes: Mapping[int, str], counts: Mapping[int, int]) -> dict[int, int]:
    """Class id -> the id that it gets: names that differ only by case, spaces or Unicode form become one class.

    The spelling with the most objects stays, the lowest id of equals.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for source_id, name in sorted(classes.items()):
        groups[class_key(name)].append(source_id)
    return {i: max(same, key=lambda one: counts.get(one, 0)) for same in groups.values() for i in same}
