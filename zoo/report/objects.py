"""What is hard about the objects: how large the network sees them, what they overlap, how many like them it saw."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from zoo.analysis.image_pairs import overlaps
from zoo.evaluation.coco_evaluator import Flags, Floats, Integers
from zoo.report.given import Given

TINY = 16  # pixels of the shorter side at the network's input: two cells of the finest map of most families
OVERLAP = 0.3  # IoU with another object
FEW = 50  # objects of the class to learn from
EDGE = 1.0  # pixels from the edge of the image
LEAKS = ("leak", "near_leak", "augmented_leak")  # faults of images that are in another split too


class Trait(NamedTuple):
    """Objects of one kind beside all others: how many are found at the threshold."""

    key: str
    name: str
    has: Flags  # [A] of the annotations, crowds never
    found: int
    number: int
    found_of_others: int
    others: int

    @property
    def recall(self) -> float:
        """Of those that have it."""
        return self.found / self.number if self.number else float("nan")

    @property
    def recall_of_others(self) -> float:
        """Of all others."""
        return self.found_of_others / self.others if self.others else float("nan")


def traits(given: Given) -> list[Trait]:
    """The traits that some objects have, those first that most of what is not found has."""
    data = given.evaluation.data
    real = data.annotation_labels[:, 1] == 0
    found = found_objects(given)
    rows = []
    for key, name, has in _traits(given):
        has = has & real
        others = real & ~has
        numbers = int((has & found).sum()), int(has.sum()), int((others & found).sum()), int(others.sum())
        rows.append(Trait(key, name, has, *numbers))
    return sorted((t for t in rows if t.number), key=lambda t: t.found - t.number)


def found_objects(given: Given) -> Flags:
    """[A] whether a detection of the right class that scores the threshold finds it."""
    return given.confusion.right_objects(len(given.evaluation.data.annotations))


def _traits(given: Given) -> list[tuple[str, str, Flags]]:
    data = given.evaluation.data
    where = "at the network's input" if given.contract is not None else "in the image"
    rows = [
        ("tiny", f"tiny: below {TINY} pixels on the shorter side {where}", seen_sides(given) < TINY),
        (
            "crowded",
            f"crowded: another object overlaps it (IoU {OVERLAP} or more)",
            nearest(given) >= OVERLAP,
        ),
        ("cut", "cut: touches the edge of the image", _at_edge(given)),
    ]
    learned = learned_objects(given)
    if learned is not None:
        seldom = np.array(
            [learned.get(head, 0) < FEW for head in data.annotation_labels[:, 0].tolist()], bool
        )
        rows.append(("rare", f"rare: fewer than {FEW} objects of the class to learn from", seldom))
    leaked = leaked_images(given)
    rows.append(("leaked", "leaked: the image is in another split too", leaked[data.annotation_image]))
    return rows


def seen_sides(given: Given) -> Floats:
    """[A] pixels of the shorter side of each object as the network sees it."""
    data = given.evaluation.data
    boxes = data.annotations[:, 2:4]
    if given.contract is None:
        return boxes.min(axis=1) if len(boxes) else np.zeros(0)
    views = data.images[:, 1:]
    if given.contract.tiles is not None:  # as its tiles are seen
        views = np.minimum(views, given.contract.tiles.size)
    seen = np.array([given.contract.resized_size(h, w) for h, w in views.tolist()])
    scale = seen.reshape(-1, 2) / np.maximum(views, 1)
    resized = boxes * scale[data.annotation_image][:, ::-1]
    return resized.min(axis=1) if len(boxes) else np.zeros(0)


def nearest(given: Given) -> Floats:
    """[A] the IoU of each object with the one of its image that it overlaps most."""
    data = given.evaluation.data
    most = np.zeros(len(data.annotations))
    real = np.flatnonzero(data.annotation_labels[:, 1] == 0)
    order = real[np.argsort(data.annotation_image[real], kind="stable")]
    ends = np.searchsorted(data.annotation_image[order], np.arange(len(data.images) + 1))
    for start, stop in itertools.pairwise(ends.tolist()):
        own = order[start:stop]
        if len(own) > 1:
            iou = overlaps(data.annotations[own, :4], data.annotations[own, :4], False)
            np.fill_diagonal(iou, 0)
            most[own] = iou.max(axis=1)
    return most


def _at_edge(given: Given) -> Flags:
    data = given.evaluation.data
    x, y, w, h = data.annotations[:, :4].T
    height, width = data.images[data.annotation_image, 1:].T
    return (x <= EDGE) | (y <= EDGE) | (x + w >= width - EDGE) | (y + h >= height - EDGE)


def learned_objects(given: Given) -> dict[int, int] | None:
    """Objects of each class in the train split, by head index; None without one."""
    if given.train is None:
        return None
    ids, numbers = np.unique(given.train.source_ids[~given.train.crowd], return_counts=True)
    head = given.labels.head_of_source
    return {head[i]: n for i, n in zip(ids.tolist(), numbers.tolist(), strict=True) if i in head}


def leaked_images(given: Given) -> Flags:
    """[N] whether an image of the evaluation is in another split too, as far as that is known."""
    names = {fault.file for fault in given.faults if fault.kind in LEAKS}
    files = given.index.files
    return np.array([files[row] in names for row in given.rows.tolist()], dtype=bool)


def without_leaks(given: Given) -> tuple[int, float] | None:
    """(images, AP of the others) where some are leaked and some not."""
    weights: Integers = (~leaked_images(given)).astype(np.int64)
    if weights.all() or not weights.any():
        return None
    return int((1 - weights).sum()), float(given.evaluation.resampled(weights[None])["AP"][0])
