"""Which class is taken for which, at one threshold.

The rule: detections that score at least the threshold find objects of their own class as in COCO's AP at IoU 0.5, so
that the diagonal counts what precision and recall count. Of what is left, detections that lie on a crowd of their
class are ignored, as in AP; then pairs of different classes that overlap by IoU 0.5 are joined, the closest first,
each detection and object once. What is left then is background that was detected, and objects that were missed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zoo.analysis.image_pairs import ImagePairs, image_pairs, matched
from zoo.evaluation.coco_evaluator import Collected, Flags, Integers
from zoo.evaluation.operating_point import IOU


@dataclass(frozen=True, eq=False)
class Confusion:
    """Every joined pair, missed object and detection on background; -1 stands for neither class nor row.

    Attributes:
        image: [P] row of the image.
        object: [P] row of the annotation; -1: there is none, the detection is of background.
        found: [P] row of the detection; -1: the object was missed.
        true: [P] head index of the object, -1 for background.
        shown: [P] head index of the detection, -1 for missed.
    """

    image: Integers
    object: Integers
    found: Integers
    true: Integers
    shown: Integers

    def right_objects(self, number: int) -> Flags:
        """[A] whether a detection of the right class finds each of the `number` annotations."""
        right = np.zeros(number, dtype=bool)
        right[self.object[(self.object >= 0) & (self.true == self.shown)]] = True
        return right

    def matrix(self, heads: list[int]) -> Integers:
        """[K + 1, K + 1] counts: rows are true classes and background, columns shown classes and missed.

        Args:
            heads: all that occur, ascending.
        """
        size = len(heads) + 1
        place = {head: k for k, head in enumerate(heads)} | {-1: len(heads)}
        rows = np.array([place[head] for head in self.true.tolist()], dtype=np.int64)
        columns = np.array([place[head] for head in self.shown.tolist()], dtype=np.int64)
        return np.bincount(rows * size + columns, minlength=size * size).reshape(size, size)


def confusion(data: Collected, threshold: float) -> Confusion:
    """The confusion of an evaluation by the rule of this file; boxes are compared."""
    rows: list[tuple[int, int, int]] = []
    for pairs in image_pairs(data, lowest=threshold):
        rows += [(pairs.image, *pair) for pair in _joined(pairs)]
    image, truth, found = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    # row -1 of a column with -1 at its end
    true = np.append(data.annotation_labels[:, 0], -1)[truth]
    shown = np.append(data.detection_labels, -1)[found]
    return Confusion(image, truth, found, true, shown)


def _joined(pairs: ImagePairs) -> list[tuple[int, int]]:
    """(annotation, detection) rows of one image; -1 for none."""
    partner = matched(pairs, IOU)
    on_crowd = ((pairs.on_crowd >= IOU) & pairs.same_crowd).any(axis=1) & (partner < 0)
    for detection, truth in _of_other_class(pairs, partner, on_crowd):
        partner[detection] = truth
    missed = np.setdiff1d(np.arange(len(pairs.objects)), partner)
    shown = np.flatnonzero(~on_crowd)
    objects = np.append(pairs.objects, -1)[partner[shown]]
    return [
        *zip(objects.tolist(), pairs.found[shown].tolist(), strict=True),
        *((row, -1) for row in pairs.objects[missed].tolist()),
    ]


def _of_other_class(pairs: ImagePairs, partner: Integers, on_crowd: Flags) -> list[tuple[int, int]]:
    """(detection, object) positions of the closest pairs among those that are left."""
    free = np.where(((partner < 0) & ~on_crowd)[:, None] & ~pairs.same_class, pairs.iou, 0.0)
    free[:, partner[partner >= 0]] = 0.0
    found, truth = np.nonzero(free >= IOU)
    joined: list[tuple[int, int]] = []
    for k in np.argsort(-free[found, truth], kind="stable").tolist():
        pair = int(found[k]), int(truth[k])
        if all(pair[0] != d and pair[1] != t for d, t in joined):
            joined.append(pair)
    return joined
