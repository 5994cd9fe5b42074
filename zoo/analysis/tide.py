"""Errors of six kinds and the AP that each costs.

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", 2020. Kinds, their order, limits
(IoU 0.5 and 0.1), at most 100 detections of an image, and the AP (at IoU 0.5, over all classes that are annotated or
detected) are those of its `tidecv`, so that the numbers equal it. The cost of a kind is the AP that would be gained if
its errors alone were corrected; costs do not add up to what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from zoo.analysis.image_pairs import ImagePairs, image_pairs, matched
from zoo.evaluation.coco_evaluator import Collected, Flags, Floats, Integers

FOREGROUND = 0.5  # IoU from which a detection finds an object
BACKGROUND = 0.1  # IoU up to which it lies on none
MAX_DETECTIONS = 100  # of an image, over all classes
RIGHT, CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, ON_BACKGROUND = range(6)  # of a detection
KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
_RECALLS = (
    np.arange(101) / 100
)  # not linspace, which differs in the last bit and so at a recall of exactly 0.35


@dataclass(frozen=True, eq=False)
class TideErrors:
    """What every detection and object of an evaluation is.

    Detections are sorted by image and score; `object` is the row of the annotation that a detection finds, takes for
    another class or misplaces, -1 for none. One that lies on a crowd of its class is `ignored`, and has a kind too.
    """

    data: Collected
    found: Integers  # [D] rows of the detections
    kind: Integers  # [D] RIGHT to ON_BACKGROUND
    ignored: Flags  # [D]
    object: Integers  # [D]
    corrected: Flags  # [D] would find `object` if its error were corrected: the best of those that could
    missed: Integers  # rows of the annotations that no detection finds, even corrected
    unfound: Integers  # rows of the annotations that no detection finds as it is

    @cached_property
    def classes(self) -> Integers:
        """Head indices that are annotated, crowds aside, or detected, ascending."""
        counted = self.data.annotation_labels[:, 1] == 0
        of_objects = self.data.annotation_labels[counted, 0]
        shown = self._labels[~self.ignored | self.corrected]
        return np.union1d(of_objects, shown).astype(np.int64)

    @property
    def _labels(self) -> Integers:
        return self.data.detection_labels[self.found]

    @property
    def counts(self) -> dict[str, int]:
        """Errors of each kind."""
        return {
            **{name: int((self.kind == k).sum()) for k, name in enumerate(KINDS[:-1], start=1)},
            "missed": len(self.missed),
        }

    @cached_property
    def ap(self) -> Floats:
        """[K] AP at IoU 0.5 of each of `classes`, nan for one that is neither annotated nor detected."""
        return self._ap(np.flatnonzero(~self.ignored), self._labels, self.kind == RIGHT, self._objects())

    @cached_property
    def corrected_ap(self) -> dict[str, Floats]:
        """[K] AP of each class if the errors of one kind were corrected, by kind."""
        return {kind: self._corrected_ap(kind) for kind in KINDS}

    def _corrected_ap(self, kind: str) -> Floats:
        if kind == "missed":
            points, objects = np.flatnonzero(~self.ignored), self._objects(self.missed)
            return self._ap(self._right_last(points), self._labels, self.kind == RIGHT, objects)
        number = KINDS.index(kind) + 1
        points = np.flatnonzero(np.where(self.kind == number, self.corrected, ~self.ignored))
        labels, right = self._labels.copy(), (self.kind == RIGHT) | (self.kind == number)
        if number == CLASSIFICATION:
            moved = points[self.kind[points] == number]
            labels[moved] = self.data.annotation_labels[self.object[moved], 0]
        return self._ap(self._right_last(points), labels, right, self._objects())

    def costs(self) -> dict[str, float]:
        """AP that each kind costs, the mean over classes and never negative; also of all false ones of each side.

        `false_positives`: gained if every wrong detection scored 0; `false_negatives`: if every object that is not
        found were not counted.
        """
        base = _mean(self.ap)
        found = {name: max(_mean(ap) - base, 0.0) for name, ap in self.corrected_ap.items()}
        return {
            **found,
            "false_positives": _mean(self._without_false_positives()) - base,
            "false_negatives": _mean(self._without_false_negatives()) - base,
        }

    def costs_by_class(self) -> dict[str, Floats]:
        """[K] the AP of each class that each kind costs."""
        before = np.nan_to_num(self.ap)
        return {name: np.maximum(np.nan_to_num(ap) - before, 0.0) for name, ap in self.corrected_ap.items()}

    def _without_false_positives(self) -> Floats:
        points = self._right_last(np.flatnonzero(~self.ignored))
        right = self.kind == RIGHT
        return self._ap(points, self._labels, right, self._objects(), scores=right.astype(np.float64))

    def _without_false_negatives(self) -> Floats:
        points = self._right_last(np.flatnonzero(~self.ignored))
        return self._ap(points, self._labels, self.kind == RIGHT, self._objects(self.unfound))

    def _right_last(self, points: Integers) -> Integers:
        """With tied scores tidecv puts the errors first where it corrects some, and all by image where it does not."""
        return np.concatenate([points[self.kind[points] != RIGHT], points[self.kind[points] == RIGHT]])

    def _objects(self, without: Integers | None = None) -> Integers:
        """[K] objects of each class, those of some rows not counted."""
        counted = self.data.annotation_labels[:, 1] == 0
        if without is not None:
            counted[without] = False
        return self._counts_of(self.data.annotation_labels[counted, 0])

    def _counts_of(self, labels: Integers) -> Integers:
        return np.bincount(np.searchsorted(self.classes, labels), minlength=len(self.classes))

    def _ap(
        self, points: Integers, labels: Integers, right: Flags, objects: Integers, scores: Floats | None = None
    ) -> Floats:  # fmt: skip
        if scores is None:
            scores = self.data.detections[self.found, 4]
        place = np.searchsorted(self.classes, labels[points])
        order = points[np.lexsort((-scores[points], place))]  # stable: ties stay in the order of `points`
        ends = np.cumsum(self._counts_of(labels[points]))
        values = np.full(len(self.classes), np.nan)
        for k, (stop, number) in enumerate(zip(ends.tolist(), objects.tolist(), strict=True)):
            own = order[int(ends[k - 1]) if k else 0 : stop]
            if len(own) or number:
                values[k] = average_precision(right[own], number)
        return values


def average_precision(right: Flags, objects: int) -> float:
    """COCO's interpolated AP at 101 recalls of detections from best to worst; 0 without objects."""
    if not objects or not right.any():
        return 0.0
    true = np.cumsum(right)
    precision = true / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(true / objects, _RECALLS, side="left")
    reached = places[places < len(envelope)]
    return float(envelope[reached].sum() / len(_RECALLS))


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def tide_errors(data: Collected) -> TideErrors:
    """Sorts every detection and object of an evaluation into the kinds of TIDE; boxes are compared."""
    parts = [_of_image(pairs, data) for pairs in image_pairs(data, most=MAX_DETECTIONS)]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.zeros(0)] * 7
    found, kind, objects, missed, unfound = (column.astype(np.int64) for column in columns[:5])
    return TideErrors(
        data, found, kind, columns[5].astype(bool), objects, columns[6].astype(bool), missed, unfound
    )


def _of_image(pairs: ImagePairs, data: Collected) -> tuple[Integers | Flags, ...]:
    """(detections, kinds, objects, missed, unfound, ignored, corrected) of one image."""
    count = len(pairs.found)
    partner = matched(pairs, FOREGROUND)
    taken = np.zeros(len(pairs.objects), dtype=bool)
    taken[partner[partner >= 0]] = True
    ignored = (partner < 0) & ((pairs.on_crowd > FOREGROUND) & pairs.same_crowd).any(axis=1)
    kind, target = np.full(count, ON_BACKGROUND), np.full(count, -1)
    if len(pairs.objects) and count:
        kind, target = _kinds(pairs, taken)
    kind[partner >= 0], target[partner >= 0] = RIGHT, partner[partner >= 0]
    # of all that would find an object if corrected, the best does: the first, for they are sorted by score
    could = (
        np.isin(kind, (CLASSIFICATION, LOCALISATION)) & ~taken[target]
        if len(taken)
        else np.zeros(count, bool)
    )
    usable = np.zeros(len(pairs.objects), dtype=bool)
    usable[target[could]] = True
    corrected = np.zeros(count, dtype=bool)
    rows = np.flatnonzero(could)
    corrected[rows[np.unique(target[rows], return_index=True)[1]]] = True
    return (
        pairs.found, kind, np.where(target >= 0, np.append(pairs.objects, -1)[target], -1),
        pairs.objects[~taken & ~usable], pairs.objects[~taken], ignored, corrected,
    )  # fmt: skip


def _kinds(pairs: ImagePairs, taken: Flags) -> tuple[Integers, Integers]:
    """Kind and object of each detection as if none were right; there are objects."""
    own = np.where(pairs.same_class, pairs.iou, 0.0)
    other = np.where(pairs.same_class, 0.0, pairs.iou)
    nearest, nearest_other = own.argmax(axis=1), other.argmax(axis=1)
    rows = np.arange(len(own))
    best = own[rows, nearest]
    tests = [
        (best >= BACKGROUND) & (best <= FOREGROUND),
        other[rows, nearest_other] >= FOREGROUND,
        np.where(taken[None], own, 0.0).max(axis=1) >= FOREGROUND,
        pairs.iou.max(axis=1) <= BACKGROUND,
    ]
    kinds = [LOCALISATION, CLASSIFICATION, DUPLICATE, ON_BACKGROUND]
    kind = np.select(tests, kinds, default=BOTH)
    target = np.select(tests[:2], [nearest, nearest_other], default=-1)
    return kind.astype(np.int64), target.astype(np.int64)
