"""The score threshold above which to show detections: that of the best F1 on images with known objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zoo.evaluation.coco_ap import Evaluation
from zoo.evaluation.coco_evaluator import Floats, Integers

IOU = 0.5  # of a right detection


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and its precision and recall over all classes at IoU 0.5; crowds are ignored.

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


def best_f1(evaluation: Evaluation) -> OperatingPoint | None:
    """The threshold of the highest F1, the largest if there are several; None if no object was detected.

    It lies in the middle between the lowest score shown and the highest hidden one, rounded to a thousandth.
    """
    scores, right = _verdicts(evaluation)
    objects = sum(int(matches.objects.sum()) for matches in evaluation.matches)
    if not right.any():
        return None
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], right[order]
    # a threshold shows all detections of one score or none
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    f1 = _f1(np.cumsum(right)[last], last + 1, objects)
    best = int(np.argmax(f1))
    shown = float(scores[last[best]])
    hidden = float(scores[last[best + 1]]) if best + 1 < len(last) else 0.0
    threshold = min(round((shown + hidden) / 2, 3), shown)
    kept = scores >= threshold
    found, total = int(right[kept].sum()), int(kept.sum())
    return OperatingPoint(
        threshold,
        found / total,
        found / objects,
        float(_f1(np.array([found]), np.array([total]), objects)[0]),
    )


def _verdicts(evaluation: Evaluation) -> tuple[Floats, Integers]:
    """Score of every detection that counts, and 1 where it is right, else 0."""
    data = evaluation.data
    annotated = np.unique(data.annotation_labels[:, 0])
    of_no_object = ~np.isin(data.detection_labels, annotated)  # of classes that none of the images has
    scores = [data.detections[of_no_object, 4]]
    right = [np.zeros(int(of_no_object.sum()), np.int64)]
    for matches in evaluation.matches:  # row 0 is IoU 0.5
        counts = ~matches.ignored[0]
        scores.append(matches.scores[counts])
        right.append(matches.true[0, counts].astype(np.int64))
    return np.concatenate(scores), np.concatenate(right)


def _f1(right: Integers, shown: Integers, objects: int) -> Floats:
    """2 TP / (2 TP + FP + FN), which is 2 TP over what is shown and what is there."""
    values: Floats = 2.0 * right / (shown + objects)
    return values
