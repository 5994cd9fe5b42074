"""A split of COCO in several files: joined if no image is in two of them, else read once or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from datamodules.index import AnnotationIndex, Fault, concatenate, shown_path

_FEW = 3


def join(root: Path, parts: Mapping[Path, AnnotationIndex]) -> tuple[AnnotationIndex, list[Fault]]:
    """One index of the files of a split, in their order, and what was done.

    A file that repeats images of the others with the same objects is left out. Ids that two files give to
    different images or objects are replaced by numbers.

    Raises:
        ValueError: if two files have an image in common and different objects on it.
    """
    if len(parts) == 1:
        return next(iter(parts.values())), []
    notes = []
    kept: list[Path] = []
    for file in sorted(
        parts, key=lambda f: -len(parts[f])
    ):  # the largest first, so that a part repeats the whole and not the reverse
        repeated = _repeats(root, file, kept, parts)
        if repeated:
            notes.append(repeated)
        else:
            kept.append(file)
    indices = [parts[file] for file in parts if file in kept]
    if len(indices) == 1:
        return indices[0], notes
    whole = concatenate(indices)
    clashing = len(np.unique(whole.columns.annotation_ids)) < len(whole.columns.annotation_ids)
    if clashing:
        numbers = np.arange(1, len(whole.columns.annotation_ids) + 1, dtype=np.int64)
        whole = replace(whole, columns=replace(whole.columns, annotation_ids=numbers))
    renumbered = clashing or len(set().union(*(i.image_ids.tolist() for i in indices))) < len(whole)
    names = ", ".join(
        f"{shown_path(file, root)} ({len(parts[file])} images)" for file in parts if file in kept
    )
    message = f"the split is in {len(indices)} files, which are joined: {names}"
    message += "; they use the same ids, so images or objects are numbered anew" if renumbered else ""
    notes.append(Fault("note", "joined_files", shown_path(kept[0], root), None, message))
    return whole, notes


def _repeats(
    root: Path, file: Path, others: Sequence[Path], parts: Mapping[Path, AnnotationIndex]
) -> Fault | None:
    """The note on a file whose images other files have too; None if it has images of its own."""
    own = parts[file]
    known = {f: None for other in others for f in parts[other].files.tolist()}
    common = [row for row, name in enumerate(own.files.tolist()) if name in known]
    if not common:
        return None
    at = {name: (other, row) for other in others for row, name in enumerate(parts[other].files.tolist())}
    same = all(
        _objects(own, row) == _objects(parts[at[n][0]], at[n][1]) for row in common for n in [own.files[row]]
    )
    shown = shown_path(file, root)
    where = ", ".join(dict.fromkeys(shown_path(at[own.files[row]][0], root) for row in common))
    if not same or len(common) < len(own):
        raise ValueError(
            f"{root}: {shown} and {where} are of one split and have {len(common)} images in common"
            f"{'' if same else ' with different objects'}; which of them is meant is not known: move one out of "
            "the folder, or give each its split by its name (train, val, test)"
        )
    message = f"its {len(own)} images and their objects are in {where} too; read once, from there"
    return Fault("note", "repeated_annotations", shown, None, message)


def _objects(index: AnnotationIndex, row: int) -> list[tuple[float, ...]]:
    objects = index.objects(row)
    boxes = np.round(objects.boxes_xywh, 2).tolist()
    return sorted((float(c), *box) for c, box in zip(objects.source_ids.tolist(), boxes, strict=True))
