"""The score threshold above which to show detections: by best F1, or by a wanted precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from zoo.evaluation.bootstrap import ClassMatches
from zoo.evaluation.coco_ap import Evaluation
from zoo.evaluation.coco_evaluator import Floats, Integers

IOU = 0.5  # of a right detection
MOSTLY_WRONG = 0.2  # precision below which a best threshold needs a word


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and its precision and recall at IoU 0.5; crowds are ignored.

    Attributes:
        threshold: detections that score at least this are shown.
        precision: share of these that are right.
        recall: share of the objects that are found.
        f1: harmonic mean of both.
    """

    threshold: float
    precision: float
    recall: float
    f1: float

    def line(self) -> str:
        """One line for a terminal."""
        return (
            f"best F1 {self.f1:.3f} at threshold {self.threshold:.3f}: precision {self.precision:.3f}, recall "
            f"{self.recall:.3f} at IoU {IOU}"
        )

    def warning(self, objects: int, images: int) -> str | None:
        """One line where most of what is shown is wrong, with how much that is; `objects` of `images` are there."""
        if self.precision >= MOSTLY_WRONG:
            return None
        shown = self.recall * objects / max(self.precision, 1e-9) / max(images, 1)
        return (
            f"at this threshold {shown:,.0f} boxes an image are shown, and {self.precision:.0%} of them are right: no "
            "threshold is better, for the model knows too little yet; a higher --threshold shows fewer"
        )


class Verdicts(NamedTuple):
    """Every detection that counts, in no order, and the number of objects."""

    scores: Floats  # [D]
    right: Integers  # [D] 1 or 0, at IoU 0.5
    objects: int


def best_f1(evaluation: Evaluation) -> OperatingPoint | None:
    """The threshold of the highest F1 over all classes, see `point_of`; None if no object was detected."""
    return point_of(verdicts(evaluation))


def point_of(found: Verdicts, precision: float | None = None) -> OperatingPoint | None:
    """The threshold of the highest F1, or of the highest recall at which the precision is at least `precision`.

    The largest if there are several. It lies in the middle between the lowest score shown and the highest hidden
    one, rounded to a thousandth. None where nothing is right, or no threshold is that precise.
    """
    if not found.right.any():
        return None
    order = np.argsort(-found.scores, kind="stable")
    scores, right = found.scores[order], found.right[order]
    # a threshold shows all detections of one score or none
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    true = np.cumsum(right)[last]
    value = _f1(true, last + 1, found.objects)
    if precision is not None:
        value = np.where(true >= precision * (last + 1), true, 0).astype(np.float64)
    best = int(np.argmax(value))
    if not value[best]:
        return None
    shown = float(scores[last[best]])
    hidden = float(scores[last[best + 1]]) if best + 1 < len(last) else 0.0
    return measured_at(found, min(round((shown + hidden) / 2, 3), shown))


def measured_at(found: Verdicts, threshold: float) -> OperatingPoint:
    """Precision (1 where nothing is shown), recall (1 without objects) and F1 at a threshold."""
    kept = found.scores >= threshold
    true, total = int(found.right[kept].sum()), int(kept.sum())
    return OperatingPoint(
        threshold,
        true / total if total else 1.0,
        true / found.objects if found.objects else 1.0,
        float(_f1(np.array([true]), np.array([max(total, 1)]), found.objects)[0]),
    )


def verdicts(evaluation: Evaluation) -> Verdicts:
    """Of all classes; a detection of a class that none of the images has is wrong."""
    every = [*verdicts_by_class(evaluation).values()]
    return Verdicts(
        np.concatenate([v.scores for v in every]) if every else np.zeros(0),
        np.concatenate([v.right for v in every]) if every else np.zeros(0, np.int64),
        sum(v.objects for v in every),
    )


def verdicts_by_class(evaluation: Evaluation) -> Mapping[int, Verdicts]:
    """Of each class that is annotated or detected, by head index."""
    data, found = evaluation.data, {}
    for head in data.classes:
        if head in evaluation.matches:
            found[head] = _of_matches(evaluation.matches[head])
        else:
            scores = data.detections[data.detection_labels == head, 4]
            found[head] = Verdicts(scores, np.zeros(len(scores), np.int64), 0)
    return found


def _of_matches(matches: ClassMatches) -> Verdicts:
    counts = ~matches.ignored[0]  # row 0 is IoU 0.5
    return Verdicts(
        matches.scores[counts], matches.true[0, counts].astype(np.int64), int(matches.objects.sum())
    )


def _f1(right: Integers, shown: Integers, objects: int) -> Floats:
    """2 TP / (2 TP + FP + FN), which is 2 TP over what is shown and what is there."""
    values: Floats = 2.0 * right / (shown + objects)
    return values
