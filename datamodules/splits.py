"""Divides images into training, validation and test: at random, by class, and without tearing groups apart.

Augmented copies of one photograph, frames of one video or tiles of one scene are nearly the same image. In
two splits they make the score better than on unseen data, so a group goes into one split as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.index import AnnotationIndex

Rows = NDArray[np.int64]

_AUGMENTED = ".rf."  # Roboflow names the copies of photo.jpg photo_jpg.rf.<hash>.jpg


def group_keys(files: Sequence[str], group_by: str = "stem") -> list[str]:
    """The group of each file.

    Args:
        files: paths below the data set's folder.
        group_by: `stem`: file names that are equal before `.rf.`; `none`: each by itself; else a regular
            expression that is searched in the path: its first group, or all it matches. A file that does
            not match is by itself.

    Raises:
        ValueError: if the expression is none, or matches no file.
    """
    if group_by == "none":
        return list(files)
    if group_by == "stem":
        names = [file.rsplit("/", 1)[-1] for file in files]
        return [
            name.split(_AUGMENTED)[0] + _AUGMENTED if _AUGMENTED in name else file
            for name, file in zip(names, files, strict=True)
        ]
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise ValueError(f"group_by {group_by!r} is no regular expression: {error}") from error
    found = [pattern.search(file) for file in files]
    if not any(found):
        shown = ", ".join(list(files)[:3])
        raise ValueError(f"group_by {group_by!r} matches none of {len(files)} files ({shown}, ...)")
    return [
        file if m is None else f"{group_by}\0{m[1] if pattern.groups else m[0]}"
        for m, file in zip(found, files, strict=True)
    ]


def grouped(keys: Sequence[str]) -> list[Rows]:
    """The rows of each group, in the order of their first rows."""
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return [np.asarray(own, dtype=np.int64) for own in rows.values()]


def joined(groups: Sequence[Rows], copies: Sequence[Rows]) -> list[Rows]:
    """The groups, those that share a byte-identical file made one, in the order of their first rows."""
    group_of = {int(row): number for number, rows in enumerate(groups) for row in rows}
    parent = list(range(len(groups)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for rows in copies:
        first, *others = sorted({root(group_of[int(row)]) for row in rows})
        for other in others:
            parent[other] = first
    whole: dict[int, list[Rows]] = {}
    for number, own in enumerate(groups):
        whole.setdefault(root(number), []).append(own)
    return [np.sort(np.concatenate(own)) for own in whole.values()]


def divide(
    index: AnnotationIndex,
    fractions: Mapping[str, float],
    seed: int,
    *,
    stratify: bool = False,
    group_by: str = "stem",
    copies: Sequence[Rows] = (),
) -> dict[str, Rows]:
    """Rows of `train` and of each split in `fractions`, in ascending order; equal for equal arguments.

    Args:
        index: the images.
        fractions: share of the images of each split besides `train`, which gets the rest.
        seed: of the random order.
        stratify: give each split its share of the images of every class, rare classes first.
        group_by: see `group_keys`.
        copies: rows of byte-identical files, see `datamodules.images.identical`; they stay together too.

    Raises:
        ValueError: if a fraction or their sum is not in (0, 1), or there are fewer groups than splits.
    """
    total = sum(fractions.values())
    if not fractions or min(fractions.values()) <= 0 or total >= 1:
        raise ValueError(
            f"the shares of the splits are {dict(fractions)}; each must be above 0, their sum below 1"
        )
    groups = joined(grouped(group_keys(index.files.tolist(), group_by)), copies)
    if len(groups) < len(fractions) + 1:
        raise ValueError(
            f"{len(index)} images in {len(groups)} groups cannot be divided into {len(fractions) + 1} splits; "
            "add images or group them less"
        )
    wanted = {split: max(1, round(len(index) * share)) for split, share in fractions.items()}
    wanted = {"train": max(1, len(index) - sum(wanted.values())), **wanted}
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled = [groups[i] for i in order]
    chosen = _by_class(index, shuffled, wanted) if stratify else _at_random(shuffled, wanted)
    _give_each_one(chosen)
    return {split: np.sort(np.concatenate(own)) for split, own in chosen.items()}


def _at_random(groups: list[Rows], wanted: Mapping[str, int]) -> dict[str, list[Rows]]:
    """Each small split takes groups in their order as long as they fit; train gets the rest."""
    chosen: dict[str, list[Rows]] = {split: [] for split in wanted}
    left = {split: number for split, number in wanted.items() if split != "train"}
    for group in groups:
        split = next((s for s, number in left.items() if number >= len(group)), "train")
        chosen[split].append(group)
        if split != "train":
            left[split] -= len(group)
    return chosen


def _by_class(index: AnnotationIndex, groups: list[Rows], wanted: Mapping[str, int]) -> dict[str, list[Rows]]:
    """Iterative stratification (Sechidis et al. 2011), of groups: the class with fewest left goes first."""
    splits = list(wanted)
    holds = _images_by_class(index, groups)  # [G, C]
    sizes = np.asarray([len(group) for group in groups], dtype=np.float64)
    share = np.asarray([wanted[s] for s in splits], dtype=np.float64) / sum(wanted.values())
    wish = share[:, None] * holds.sum(axis=0)[None]  # [S, C] images of each class that a split still wants
    room = share * sizes.sum()  # [S]
    chosen: dict[str, list[Rows]] = {split: [] for split in splits}
    free = np.ones(len(groups), dtype=bool)

    def put(group: int, scores: NDArray[np.float64]) -> None:
        best = int(np.lexsort((room, scores))[-1])
        chosen[splits[best]].append(groups[group])
        wish[best] -= holds[group]
        room[best] -= sizes[group]
        free[group] = False

    while (left := (holds[free] > 0).sum(axis=0)).any():
        rarest = int(np.where(left > 0, left, np.iinfo(np.int64).max).argmin())
        for group in np.flatnonzero(free & (holds[:, rarest] > 0)).tolist():
            put(group, wish[:, rarest])
    for group in np.flatnonzero(free).tolist():  # images without any object
        put(group, room)
    return chosen


def _images_by_class(index: AnnotationIndex, groups: list[Rows]) -> NDArray[np.float64]:
    """[G, C] images of each group that have an object of each class."""
    classes, position = np.unique(index.source_ids, return_inverse=True)
    image = index.image_rows
    group_of = np.empty(len(index), dtype=np.int64)
    for number, rows in enumerate(groups):
        group_of[rows] = number
    pairs = np.unique(np.stack([image, position.reshape(-1)]), axis=1)
    holds = np.zeros((len(groups), len(classes)), dtype=np.float64)
    np.add.at(holds, (group_of[pairs[0]], pairs[1]), 1)
    return holds


def _give_each_one(chosen: dict[str, list[Rows]]) -> None:
    """Gives an empty split, for which every group was too large, the smallest group of the largest split."""
    for own in chosen.values():
        if not own:
            rich = max((c for c in chosen.values() if len(c) > 1), key=lambda c: sum(map(len, c)))
            smallest = min(range(len(rich)), key=lambda i: len(rich[i]))
            own.append(rich.pop(smallest))


def held_out(index: AnnotationIndex, fraction: float, seed: int) -> tuple[AnnotationIndex, AnnotationIndex]:
    """(kept, held out): a seeded random share of the images, in their order, at least one in each part.

    Augmented copies of one photograph (equal names before `.rf.`) stay together.

    Raises:
        ValueError: if there are fewer than two images or groups, or the fraction is not in (0, 1).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"val_fraction is {fraction}; it must be above 0 and below 1")
    if len(index) < 2:
        raise ValueError(
            f"{len(index)} image cannot be divided into training and validation; add images or a val split"
        )
    if len(set(group_keys(index.files.tolist()))) < len(index):
        parts = divide(index, {"val": fraction}, seed)
        kept, out = parts["train"], parts["val"]
    else:  # the same draws as before there were groups, so that old runs keep their splits
        number = min(max(1, round(len(index) * fraction)), len(index) - 1)
        order = torch.randperm(len(index), generator=torch.Generator().manual_seed(seed)).numpy()
        kept, out = np.sort(order[number:]), np.sort(order[:number])
    return replace(index.take(kept), faults=()), replace(index.take(out), faults=())
