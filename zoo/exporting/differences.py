"""How far two answers to the same images lie apart: raw outputs, and detections paired one to one."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from zoo.contract.batch import Detections, Predictions

Floats = npt.NDArray[np.floating[Any]]
SCORED = 0.05  # detections below are not paired: many lie on the edge of the best few hundred
OVERLAP = 0.9  # IoU of a pair


class RawDifference(NamedTuple):
    """Of the queries of one image."""

    logits: float  # largest
    boxes: float  # largest, as shares of the image
    order: bool  # whether the queries had to be paired, because near-equal ones came in another order


class DetectionDifference(NamedTuple):
    """Of the detections of one image with a score of at least `SCORED`."""

    source: int
    file: int
    alone: list[str]  # those without a partner, in words
    score: float  # largest difference of a pair
    pixels: float  # largest difference of a pair's coordinates


def raw_difference(
    logits: tuple[Floats, Floats], boxes: tuple[Floats, Floats], tolerance: float
) -> RawDifference:
    """Compares query by query; where that is above the tolerance, each query with the one most like it.

    Networks that choose their queries rank them, and near-equal ranks swap.

    Args:
        logits: [Q, C] each.
        boxes: [Q, 4] each, in [0, 1].
        tolerance: of a logit.
    """
    straight = RawDifference(_largest(*logits), _largest(*boxes), order=False)
    if straight.logits <= tolerance or not _can_pair(*logits, *boxes):
        return straight
    mine, theirs = paired_queries(logits, boxes)
    return RawDifference(
        _largest(logits[0][mine], logits[1][theirs]), _largest(boxes[0][mine], boxes[1][theirs]), order=True
    )


def paired_queries(
    logits: tuple[Floats, Floats], boxes: tuple[Floats, Floats]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows of both sides, each query with the one most like it."""
    mine, theirs = linear_sum_assignment(cdist(*logits, "chebyshev") + cdist(*boxes, "chebyshev"))
    return mine, theirs


def _can_pair(*sides: Floats) -> bool:
    shapes = sides[0].shape == sides[1].shape and sides[2].shape == sides[3].shape
    return shapes and all(bool(np.isfinite(side).all()) for side in sides)


def detection_difference(source: Detections, file: Detections) -> DetectionDifference:
    """Pairs detections of the same label and nearly the same box, so that a swap of ranks is no difference.

    One above `SCORED` may pair with one a little below.
    """
    scores, labels, boxes = zip(*(_arrays(found) for found in (source, file)), strict=True)
    counted = [score >= SCORED for score in scores]
    alone: list[str] = []
    score = pixels = 0.0
    for label in np.unique(np.concatenate([labels[side][counted[side]] for side in (0, 1)])):
        rows = [np.flatnonzero(labels[side] == label) for side in (0, 1)]
        overlap = _iou(boxes[0][rows[0]], boxes[1][rows[1]])
        apart = np.abs(scores[0][rows[0]][:, None] - scores[1][rows[1]])
        taken = [np.zeros(len(rows[side]), dtype=bool) for side in (0, 1)]
        for mine, theirs in zip(*linear_sum_assignment(apart - overlap), strict=True):
            a, b = rows[0][mine], rows[1][theirs]
            if overlap[mine, theirs] < OVERLAP:
                continue
            taken[0][mine] = taken[1][theirs] = True
            if counted[0][a] or counted[1][b]:
                score = max(score, float(apart[mine, theirs]))
                pixels = max(pixels, _largest(boxes[0][a], boxes[1][b]))
        for side, whose in enumerate(("source", "file")):
            left = rows[side][~taken[side] & counted[side][rows[side]]]
            alone += [f"head index {label} with {scores[side][row]:.3f} in the {whose} only" for row in left]
    return DetectionDifference(int(counted[0].sum()), int(counted[1].sum()), alone, score, pixels)


class Agreement:
    """How alike the detections of two sides are over many images, as the cosine of two vectors of scores.

    Each side's detections are a vector of their scores. Detections of the same label are paired by their boxes, and a
    pair counts as far as the boxes overlap. What changes all scores by one factor changes no order and so no AP, and
    here nothing either; confident detections count most, as they do in AP.
    """

    def __init__(self) -> None:
        self.shared = 0.0
        self.squares = [0.0, 0.0]

    def add(self, source: Detections, file: Detections) -> None:
        """One more image."""
        scores, labels, boxes = zip(*(_arrays(found) for found in (source, file)), strict=True)
        for side in (0, 1):
            self.squares[side] += float(np.square(scores[side], dtype=np.float64).sum())
        for label in np.intersect1d(labels[0], labels[1]):
            rows = [np.flatnonzero(labels[side] == label) for side in (0, 1)]
            gain = (
                scores[0][rows[0]][:, None] * scores[1][rows[1]] * _iou(boxes[0][rows[0]], boxes[1][rows[1]])
            )
            self.shared += float(gain[linear_sum_assignment(-gain)].sum())

    @property
    def lost(self) -> float:
        """1 minus the cosine: 0 for equal detections, 1 where none is shared."""
        length = float(np.sqrt(self.squares[0] * self.squares[1]))
        return 1 - self.shared / length if length and np.isfinite(length) else float(length != 0)


def masks_lost(source: Predictions, file: Predictions) -> float:
    """1 minus the mean overlap of each query's mask with its own in the file, weighted by the query's score.

    0 without masks. Queries come in one order: networks with masks do not select them.
    """
    if source.masks is None or file.masks is None:
        return 0.0
    weight = source.logits.float().softmax(-1)[..., :-1].amax(-1)
    mine, theirs = (one.masks_of_all() > 0 for one in (source, file))
    shared, either = (both.flatten(2).sum(-1).double() for both in (mine & theirs, mine | theirs))
    overlap = torch.where(either > 0, shared / either.clamp(min=1), 1.0)
    return float(1 - (overlap * weight).sum() / weight.sum())


def _arrays(found: Detections) -> tuple[Floats, npt.NDArray[np.int64], Floats]:
    scores, labels, boxes = (tensor.detach().cpu().numpy() for tensor in found[:3])
    return scores, labels, boxes


def _largest(a: Floats, b: Floats) -> float:
    """Largest difference; infinite where shapes differ or one side alone is not a number."""
    if a.shape != b.shape:
        return float("inf")
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(np.subtract(a, b, dtype=np.float64)))
    return float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0))


def _iou(a: Floats, b: Floats) -> Floats:
    """[N, M] of xyxy boxes [N, 4] and [M, 4]; 1 for equal boxes without an area."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    shared = (high - low).clip(min=0).prod(-1)
    areas = [(side[:, 2:] - side[:, :2]).clip(min=0).prod(-1) for side in (a, b)]
    union = areas[0][:, None] + areas[1] - shared
    equal = np.abs(a[:, None] - b).max(-1, initial=0.0) < 0.5
    return np.where(equal, 1.0, shared / np.maximum(union, 1e-12))
