"""Whether a score of 0.7 is right seven times in ten."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from zoo.evaluation.coco_evaluator import Floats, Integers
from zoo.evaluation.operating_point import Verdicts

BINS = 10


class Calibration(NamedTuple):
    """Detections in bins of equal width by their score; right at IoU 0.5.

    Attributes:
        counts: [BINS] detections.
        scores: [BINS] their mean score, nan without any.
        right: [BINS] the share of them that is right, nan without any.
        error: expected calibration error: the mean distance of score and share, by detections; nan without any.
    """

    counts: Integers
    scores: Floats
    right: Floats
    error: float


def calibration(found: Verdicts, lowest: float = 0.0) -> Calibration:
    """Of the detections that score at least `lowest`: of a DETR most score next to nothing, and are right to."""
    kept = found.scores >= lowest
    scores, right = found.scores[kept], found.right[kept]
    place = np.clip((scores * BINS).astype(np.int64), 0, BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    filled = np.where(counts > 0, counts, np.nan)
    mean = np.bincount(place, weights=scores, minlength=BINS) / filled
    share = np.bincount(place, weights=right, minlength=BINS) / filled
    total = counts.sum()
    error = float(np.nansum(counts * np.abs(mean - share)) / total) if total else float("nan")
    return Calibration(counts, mean, share, error)
