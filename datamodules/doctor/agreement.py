"""Whether two copies of one image are annotated alike, and which of several copies is worth keeping."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.index import AnnotationIndex

NEAR = 0.7  # IoU of two drawings of one object
_PIXELS = 2.0  # by which the edges of a small box may differ, whatever its IoU
_CLASH = 0.5  # IoU from which two boxes are taken to be of one object
_COMPARED = 64  # different annotations of one image that are compared with each other
# the rule by which one of several copies is kept, in words for the user
KEPT_RULE = (
    "kept is the copy that most copies agree with, of equals the one with most objects, then the first"
)


class Agreement(NamedTuple):
    """How two annotations of one image relate.

    Attributes:
        kind: `same`; `near`: each object matches one of its class at nearly the same place; `partial`: at least half
            of the objects do, and no other object is contradicted; `conflict`: anything else.
        matched: objects that match one.
        overlap: the lowest IoU of the matches, 1 if there is none.
    """

    kind: Literal["same", "near", "partial", "conflict"]
    matched: int
    overlap: float


class _Objects(NamedTuple):
    boxes: NDArray[np.float64]  # [n, 4] xyxy
    kinds: NDArray[np.int64]  # [n] class id, with other numbers for crowds


def agreement(first: AnnotationIndex, a: int, second: AnnotationIndex, b: int) -> Agreement:
    """Compares the objects of image `a` of one split with those of image `b` of another, or of the same."""
    if _listed(first, a) == _listed(second, b):
        return Agreement("same", len(first.objects(a).areas), 1.0)
    ours, theirs = _objects(first, a), _objects(second, b)
    if not len(ours.kinds) or not len(theirs.kinds):
        return Agreement("conflict", 0, 1.0)
    iou = _iou(ours.boxes, theirs.boxes)
    from scipy.optimize import linear_sum_assignment  # takes 30 MB, so it is loaded only when it is needed

    alike = ours.kinds[:, None] == theirs.kinds[None]
    edges = np.abs(ours.boxes[:, None] - theirs.boxes[None]).max(axis=2)
    near = alike & ((iou >= NEAR) | (edges <= _PIXELS))
    rows, columns = linear_sum_assignment(np.where(near, -1 - iou, 0.0))
    kept = near[rows, columns]
    rows, columns = rows[kept], columns[kept]
    overlap = float(iou[rows, columns].min(initial=1.0))
    most = max(iou.shape)
    if len(rows) == most == min(iou.shape):
        return Agreement("near", len(rows), overlap)
    alone, other = np.ones(len(ours.kinds), bool), np.ones(len(theirs.kinds), bool)
    alone[rows], other[columns] = False, False
    # an object without a match is missing in the other copy, unless another class stands in its place there
    clash = (iou >= _CLASH) & (
        (alone[:, None] & ~alike) | (other[None] & ~alike) | (alone[:, None] & other[None])
    )
    kind: Literal["partial", "conflict"] = "conflict" if clash.any() or 2 * len(rows) < most else "partial"
    return Agreement(kind, len(rows), overlap)


def chosen(index: AnnotationIndex, rows: Sequence[int]) -> int:
    """Which of several copies of one image to keep, see `KEPT_RULE`; one without objects only if all are."""
    versions: dict[tuple[tuple[float, ...], ...], list[int]] = defaultdict(list)
    for row in rows:
        versions[_listed(index, row)].append(row)
    full = [own for listed, own in versions.items() if listed] or list(versions.values())
    if len(full) == 1:
        return min(full[0])

    def agreeing(own: list[int]) -> int:
        others = full if len(full) <= _COMPARED else [own]
        return sum(
            len(other)
            for other in others
            if other is own or agreement(index, own[0], index, other[0]).kind != "conflict"
        )

    best = max(full, key=lambda own: (agreeing(own), len(index.objects(own[0]).areas), -min(own)))
    return min(best)


def _listed(index: AnnotationIndex, row: int) -> tuple[tuple[float, ...], ...]:
    """Boxes, classes and crowds in one order, to a hundredth of a pixel."""
    objects = index.objects(row)
    return tuple(
        sorted(
            (*box, label, crowd)
            for box, label, crowd in zip(
                np.round(objects.boxes_xywh, 2).tolist(),
                objects.source_ids.tolist(),
                objects.crowd.tolist(),
                strict=True,
            )
        )
    )


def _objects(index: AnnotationIndex, row: int) -> _Objects:
    objects = index.objects(row)
    boxes = np.array(objects.boxes_xywh, dtype=np.float64)
    boxes[:, 2:] += boxes[:, :2]
    return _Objects(boxes, objects.source_ids * 2 + objects.crowd)


def _iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, m] of xyxy boxes [n, 4] and [m, 4]."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    iou: NDArray[np.float64] = shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)
    return iou
