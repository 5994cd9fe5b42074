"""The numbers of a report as plain values: what report.json holds."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from zoo.analysis import groups
from zoo.analysis.calibration import BINS, calibration
from zoo.analysis.tide import KINDS
from zoo.evaluation.coco_ap import SCORES, small_set_note
from zoo.evaluation.coco_evaluator import protocol
from zoo.evaluation.operating_point import IOU, OperatingPoint
from zoo.evaluation.scores import or_null
from zoo.report import objects
from zoo.report.given import Given

FORMAT = 1  # of report.json
ENOUGH = 20  # objects of a class from which its own threshold is to be trusted
STEPS = np.arange(101) / 100  # thresholds of the curve


def document(given: Given) -> dict[str, Any]:
    """Everything that was measured; nan (nothing to measure) is null."""
    data, evaluation = given.evaluation.data, given.evaluation
    interval = evaluation.interval()
    tiles = None if given.contract is None else given.contract.tiles
    crowds = int(data.annotation_labels[:, 1].sum())
    return {
        "format": FORMAT,
        "model": given.model,
        "data": given.place,
        "split": given.split,
        "tiles": None if tiles is None else {"size": list(tiles.size), "overlap": tiles.overlap},
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "images": evaluation.num_images,
        "objects": len(data.annotations) - crowds,
        "crowds": crowds,
        "detections": len(data.detections),
        "protocol": protocol(evaluation.backend),
        "scores": {name: or_null(evaluation.scores[name]) for name in SCORES},
        "interval": {name: [or_null(v) for v in band] for name, band in interval.items()},
        "note": small_set_note(interval["AP"], evaluation.num_images),
        "threshold": thresholds(given),
        "classes": _classes(given),
        "sizes": [_group(g) for g in groups.by_size(evaluation)],
        "fullness": [_group(g) for g in groups.by_fullness(evaluation)],
        "errors": _errors(given),
        "curves": _curves(given),
        "confusion": _confusion(given),
        "calibration": _calibration(given),
        "objects_by_trait": _traits(given),
        "without_leaked_images": _without_leaks(given),
        "faults": [_fault(f) for f in given.faults],
        **given.masks,
    }


def thresholds(given: Given) -> dict[str, Any]:
    """The threshold over all classes, and that of each class with enough objects; of the others the former holds.

    `chosen` is None where nothing is right, or no threshold is as precise as wanted.
    """
    counts = given.object_counts
    own = {h: p for h, p in given.points.items() if p is not None and counts.get(h, 0) >= ENOUGH}
    return {
        "for": "best F1" if given.precision is None else f"precision {given.precision:g}",
        "iou": IOU,
        "chosen": _point(given.point),
        "classes": {given.name_of(head): _point(point) for head, point in own.items()},
    }


def for_manifest(chosen: Mapping[str, Any], split: str) -> dict[str, Any] | None:
    """The fields of `zoo.registry.manifest.Thresholds`; None where there is no best threshold."""
    if chosen["chosen"] is None:
        return None
    return {
        "chosen_for": chosen["for"],
        "split": split,
        "iou": chosen["iou"],
        "all": chosen["chosen"]["threshold"],
        "precision": round(chosen["chosen"]["precision"], 4),
        "recall": round(chosen["chosen"]["recall"], 4),
        "classes": {name: point["threshold"] for name, point in chosen["classes"].items()},
    }


def _point(point: OperatingPoint | None) -> dict[str, float] | None:
    return None if point is None else dataclasses.asdict(point)


def _classes(given: Given) -> list[dict[str, Any]]:
    scored, learned = groups.by_class(given.evaluation), objects.learned_objects(given)
    costs = given.errors.costs_by_class()
    place = {head: k for k, head in enumerate(given.errors.classes.tolist())}
    tallies = _tallies(given)
    rows = []
    for head in given.evaluation.data.classes:
        own = scored.get(head)
        rows.append(
            {
                "name": given.name_of(head),
                "head": head,
                "objects": 0 if own is None else own.objects,
                "images": 0 if own is None else own.images,
                "learned": None if learned is None else learned.get(head, 0),
                "AP": None if own is None else or_null(own.ap),
                "AP50": None if own is None else or_null(own.ap50),
                "interval": [None, None] if own is None else [or_null(v) for v in own.interval],
                "best": _point(given.points[head]),
                **tallies[head],
                "costs": {k: or_null(costs[k][place[head]]) if head in place else None for k in KINDS},
            }
        )
    return rows


def _tallies(given: Given) -> dict[int, dict[str, Any]]:
    """What is found, shown and right of each class at the threshold over all classes."""
    matrix = given.matrix
    right, there, shown = (c.tolist() for c in (matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)))
    return {
        head: {
            "precision": right[k] / shown[k] if shown[k] else None,
            "recall": right[k] / there[k] if there[k] else None,
        }
        for k, head in enumerate(given.evaluation.data.classes)
    }


def _group(group: groups.GroupScore) -> dict[str, Any]:
    return {
        "name": group.name,
        "images": group.images,
        "objects": group.objects,
        "AP": or_null(group.ap),
        "AP50": or_null(group.ap50),
        "interval": [or_null(v) for v in group.interval],
    }


def _errors(given: Given) -> dict[str, Any]:
    costs = given.errors.costs()
    return {
        "rules": "TIDE (tidecv 1.0.1): IoU 0.5 and 0.1, the best 100 detections of an image, AP at IoU 0.5",
        "AP50": or_null(np.nanmean(given.errors.ap)) if len(given.errors.ap) else None,
        "costs": {kind: or_null(cost) for kind, cost in costs.items()},
        "counts": given.errors.counts,
    }


def _curves(given: Given) -> dict[str, Any]:
    precision = given.evaluation.precision()
    known = ~np.isnan(precision[0]).all(axis=0)
    with_objects = precision[:, :, known]
    return {
        "recall": [round(r / 100, 2) for r in range(101)],
        "all": {
            "0.5": _rounded(_mean(with_objects[0])),
            "0.75": _rounded(_mean(with_objects[5])),
            "0.5:0.95": _rounded(_mean(with_objects.mean(axis=0))),
        },
        "classes": {
            given.name_of(head): _rounded(precision[0, :, k])
            for k, head in enumerate(given.evaluation.data.classes)
            if known[k]
        },
        "thresholds": _by_threshold(given),
    }


def _by_threshold(given: Given) -> dict[str, list[float | None]]:
    """Precision, recall and F1 over all classes at a hundred thresholds; precision null where nothing is shown."""
    order = np.argsort(given.every.scores)
    scores, right = given.every.scores[order], given.every.right[order]
    start = np.searchsorted(scores, STEPS, side="left")
    shown = len(scores) - start
    true = np.append(np.cumsum(right[::-1])[::-1], 0)[start].astype(np.float64)
    there = given.every.objects
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "threshold": _rounded(STEPS),
            "precision": _rounded(true / shown),
            "recall": _rounded(true / there),
            "f1": _rounded(2 * true / (shown + there)),
        }


def _mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=1) if values.shape[1] else np.full(len(values), np.nan)


def _rounded(values: Iterable[float]) -> list[float | None]:
    return [None if math.isnan(v) else round(float(v), 5) for v in values]


def _confusion(given: Given) -> dict[str, Any]:
    """The cells that are not zero; background and missed are null."""
    matrix = given.matrix
    names: list[str | None] = [*map(given.name_of, given.evaluation.data.classes), None]
    return {
        "rule": "at IoU 0.5; objects of the own class first, by score, as in AP; then the closest of other classes",
        "threshold": given.threshold,
        "cells": [
            {"true": names[r], "shown": names[c], "count": int(matrix[r, c])}
            for r, c in zip(*np.nonzero(matrix), strict=True)
        ],
    }


def _calibration(given: Given) -> dict[str, Any]:
    every, shown = calibration(given.every), calibration(given.every, given.threshold)
    return {
        "error": or_null(every.error),
        "error_of_shown": or_null(shown.error),
        "bins": [
            {
                "from": k / BINS,
                "to": (k + 1) / BINS,
                "detections": int(every.counts[k]),
                "score": or_null(every.scores[k]),
                "right": or_null(every.right[k]),
            }
            for k in range(BINS)
        ],
    }


def _traits(given: Given) -> list[dict[str, Any]]:
    return [
        {
            "trait": trait.key,
            "name": trait.name,
            "objects": trait.number,
            "recall": or_null(trait.recall),
            "other_objects": trait.others,
            "recall_of_others": or_null(trait.recall_of_others),
            "not_found": trait.number - trait.found,
        }
        for trait in objects.traits(given)
    ]


def _without_leaks(given: Given) -> dict[str, Any] | None:
    found = objects.without_leaks(given)
    return None if found is None else {"leaked_images": found[0], "AP": or_null(found[1])}


def _fault(fault: Any) -> Mapping[str, Any]:
    return {
        "severity": fault.severity,
        "kind": fault.kind,
        "file": str(fault.file),
        "message": fault.message,
    }
