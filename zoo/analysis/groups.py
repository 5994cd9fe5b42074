"""AP with its interval of classes, of sizes, and of images by how full they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from zoo.evaluation.bootstrap import ClassMatches, class_matches, drawn, interval_around, weighted_ap
from zoo.evaluation.coco_ap import Evaluation
from zoo.evaluation.coco_evaluator import AREAS, Flags, Floats, Integers

SIZES = {"s": "small, below 32 x 32 pixels", "m": "medium", "l": "large, above 96 x 96 pixels"}
FULLNESS = ((1, 4), (5, 9), (10, 19), (20, None))  # objects of an image, crowds aside
SAMPLES = 200  # as of `Evaluation.interval`


@dataclass(frozen=True)
class GroupScore:
    """AP of one group of objects or images."""

    name: str
    images: int  # with objects of the group
    objects: int
    ap: float
    ap50: float
    interval: tuple[float, float]  # of AP


class _Samples(NamedTuple):
    """AP of every class that is annotated, of all images (the first row) and of each sample of the bootstrap."""

    heads: list[int]
    ap: Floats  # [K, 1 + S]
    ap50: Floats  # [K, 1 + S]

    def score(self, name: str, images: int, objects: int) -> GroupScore:
        """The mean over classes and its interval."""
        ap, ap50 = _over_classes(self.ap), _over_classes(self.ap50)
        return GroupScore(name, images, objects, float(ap[0]), float(ap50[0]), _interval(ap))


def by_class(evaluation: Evaluation) -> dict[int, GroupScore]:
    """Of each class that is annotated, by head index; the names are empty."""
    samples = _samples(evaluation.matches, _weights(evaluation.num_images))
    found = {}
    for k, head in enumerate(samples.heads):
        objects = evaluation.matches[head].objects
        ap, ap50 = float(samples.ap[k, 0]), float(samples.ap50[k, 0])
        images, number = int((objects > 0).sum()), int(objects.sum())
        found[head] = GroupScore("", images, number, ap, ap50, _interval(samples.ap[k]))
    return found


def by_size(evaluation: Evaluation) -> list[GroupScore]:
    """Of COCO's small, medium and large objects, where there are any."""
    return [
        _of(class_matches(evaluation.data, evaluation.backend, area), evaluation.num_images, SIZES[area])
        for area in AREAS
        if area != "all" and _any_of(evaluation, area)
    ]


def by_fullness(evaluation: Evaluation) -> list[GroupScore]:
    """Of images with so many objects, where there are any."""
    counts = sum(matches.objects for matches in evaluation.matches.values())
    found = []
    for low, high in FULLNESS:
        chosen = np.asarray((counts >= low) & (counts <= (high or counts)), dtype=bool)
        if chosen.any():
            name = f"{low} or more objects" if high is None else f"{low} to {high} objects"
            parts = {head: _of_images(matches, chosen) for head, matches in evaluation.matches.items()}
            found.append(_of(parts, int(chosen.sum()), name))
    return found


def _any_of(evaluation: Evaluation, area: str) -> bool:
    low, high = AREAS[area]
    sizes = evaluation.data.annotations[evaluation.data.annotation_labels[:, 1] == 0, 4]
    return bool(((sizes >= low) & (sizes <= high)).any())


def _of(matches: dict[int, ClassMatches], images: int, name: str) -> GroupScore:
    objects = sum(own.objects for own in matches.values())
    return _samples(matches, _weights(images)).score(
        name, int(np.count_nonzero(objects)), int(np.sum(objects))
    )


def _of_images(matches: ClassMatches, chosen: Flags) -> ClassMatches:
    """With the chosen images alone, as rows 0, 1, ..."""
    kept = chosen[matches.image]
    return replace(
        matches,
        image=(np.cumsum(chosen) - 1)[matches.image[kept]],
        scores=matches.scores[kept],
        true=matches.true[:, kept],
        ignored=matches.ignored[:, kept],
        objects=matches.objects[chosen],
    )


def _weights(images: int) -> Integers:
    """[1 + S, N] every image once, then the samples."""
    return np.vstack([np.ones((1, images), dtype=np.int64), drawn(images, SAMPLES, seed=0)])


def _samples(matches: dict[int, ClassMatches], weights: Integers) -> _Samples:
    ap = [weighted_ap(own, weights) for own in matches.values()]
    shape = (0, len(weights))
    return _Samples(
        list(matches),
        np.array([values.mean(axis=1) for values in ap]).reshape(-1, shape[1]),
        np.array([values[:, 0] for values in ap]).reshape(-1, shape[1]),
    )


def _over_classes(values: Floats) -> Floats:
    """Mean over the classes with objects, nan where there is none."""
    present = ~np.isnan(values)
    number = np.where(present.any(axis=0), present.sum(axis=0), np.nan)
    mean: Floats = np.where(present, values, 0.0).sum(axis=0) / number
    return mean


def _interval(values: Floats) -> tuple[float, float]:
    if np.isnan(values[0]):
        return float("nan"), float("nan")
    return interval_around(float(values[0]), values[1:])
