"""The difference of two models on the same images, by paired bootstrap: both get the same samples of the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from zoo.analysis.confusion import Confusion
from zoo.evaluation.bootstrap import drawn, weighted_ap
from zoo.evaluation.coco_ap import Evaluation
from zoo.evaluation.coco_evaluator import Floats, Integers

SAMPLES = 500
CONFIDENCE = 0.95


class Difference(NamedTuple):
    """Of a score of two models, the second's less the first's."""

    first: float
    second: float
    interval: tuple[float, float]  # of the difference

    @property
    def value(self) -> float:
        """Second less first."""
        return self.second - self.first

    @property
    def is_clear(self) -> bool:
        """Whether the interval has all of it on one side of 0."""
        return self.interval[0] > 0 or self.interval[1] < 0


@dataclass(frozen=True)
class Comparison:
    """Differences over all classes and of each class that is annotated, by head index."""

    ap: Difference
    ap50: Difference
    classes: dict[int, Difference]  # of AP


def compared(first: Evaluation, second: Evaluation, samples: int = SAMPLES, seed: int = 0) -> Comparison:
    """Differences with their intervals; a function of the evaluations and the arguments alone.

    Raises:
        ValueError: they are not of the same images and annotations.
    """
    refuse_other_truth(first, second)
    number = first.num_images
    weights = np.vstack([np.ones((1, number), dtype=np.int64), drawn(number, samples, seed)])
    ours, theirs = first.resampled(weights), second.resampled(weights)
    classes = {
        head: _difference(*(weighted_ap(e.matches[head], weights).mean(axis=1) for e in (first, second)))
        for head in first.matches
    }
    ap, ap50 = (_difference(ours[name], theirs[name]) for name in ("AP", "AP50"))
    return Comparison(ap, ap50, classes)


def refuse_other_truth(first: Evaluation, second: Evaluation) -> None:
    """Raises ValueError unless both are of the same images and annotations."""
    ours, theirs = first.data, second.data
    if not np.array_equal(ours.images, theirs.images):
        raise ValueError(f"the models were scored on {first.num_images} and {second.num_images} other images")
    for name in ("annotations", "annotation_labels", "annotation_image"):
        if not np.array_equal(getattr(ours, name), getattr(theirs, name)):
            raise ValueError("the models were scored on other annotations of the same images")


def _difference(first: Floats, second: Floats) -> Difference:
    """Of the images themselves, in front, with percentiles of the samples, moved so that their mean lies on it."""
    apart = second - first
    valid = apart[1:][~np.isnan(apart[1:])]
    if np.isnan(apart[0]) or not len(valid):
        return Difference(float(first[0]), float(second[0]), (float("nan"), float("nan")))
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(valid, tails) - (valid.mean() - apart[0])
    value = float(apart[0])
    return Difference(float(first[0]), float(second[0]), (min(float(low), value), max(float(high), value)))


class Disagreement(NamedTuple):
    """What only one of two models does right on each of N images, each model at its own threshold."""

    only_first: Integers  # [N] objects that only the first finds
    only_second: Integers  # [N]
    wrong_first: Integers  # [N] wrong detections
    wrong_second: Integers  # [N]

    def most(self, number: int) -> list[int]:
        """Rows of the images on which they differ, the most different first."""
        apart = self.only_first + self.only_second
        weight = apart + 0.5 * np.abs(self.wrong_first - self.wrong_second)
        order = np.argsort(-weight, kind="stable")[:number]
        return [int(row) for row in order if weight[row] > 0]


def disagreement(first: Confusion, second: Confusion, image_of_object: Integers, images: int) -> Disagreement:
    """On each image; `image_of_object` [A] is the row of the image of every annotation."""
    found, wrong = [], []
    for pairs in (first, second):
        found.append(pairs.right_objects(len(image_of_object)))
        bad = (pairs.found >= 0) & (pairs.true != pairs.shown)
        wrong.append(np.bincount(pairs.image[bad], minlength=images))
    only = [np.bincount(image_of_object[a & ~b], minlength=images) for a, b in (found, found[::-1])]
    return Disagreement(*only, *wrong)
