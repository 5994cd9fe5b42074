"""Scores in documents, where NaN (nothing to score) is null."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, SupportsFloat

from zoo.contract.labels import LabelMap
from zoo.evaluation.coco_ap import Evaluation


def or_null(value: SupportsFloat) -> float | None:
    """A score for a document: None for NaN."""
    number = float(value)
    return None if math.isnan(number) else number


def or_nan(value: SupportsFloat | None) -> float:
    """A score of a document, or of a metric that may be missing: NaN for None."""
    return math.nan if value is None else float(value)


def interval_in(scores: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    """The interval of a score in a document; None if it has none."""
    low, high = scores["interval"].get(name, (None, None))
    return None if low is None or high is None else (low, high)


def ap_document(
    evaluation: Evaluation,
    labels: LabelMap,
    interval: Mapping[str, tuple[float, float]],
    names: Iterable[str],
) -> dict[str, Any]:
    """The scores called `names`, their intervals and the AP of each class as plain values."""
    return {
        "images": evaluation.num_images,
        **{name: or_null(evaluation.scores[name]) for name in names},
        "interval": {name: [or_null(v) for v in band] for name, band in interval.items()},
        "per_class": {
            labels.name_of_head.get(head, f"class {head}"): or_null(ap)
            for head, ap in evaluation.per_class.items()
        },
    }
