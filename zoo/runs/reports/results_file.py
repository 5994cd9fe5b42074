"""Detections in a COCO results file, on the annotations of a data set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.index import AnnotationIndex
from zoo.contract.labels import LabelMap
from zoo.evaluation.coco_evaluator import Collected, Flags

MOST_RESULTS = 2 << 30  # bytes of a results file


def read_results(file: Path) -> list[dict[str, Any]]:
    """The rows of a COCO results file.

    Raises:
        ValueError: it is none; names the first row at fault.
        OSError: it cannot be read.
    """
    if file.stat().st_size > MOST_RESULTS:
        raise ValueError(f"{file} has more than {MOST_RESULTS >> 30} GB; split the data set")
    try:
        rows = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} is no JSON ({str(error)[:80]}); give COCO results, a list of detections"
        ) from error
    if not isinstance(rows, list):
        raise ValueError(f"{file} holds no list; COCO results are a list of detections")
    for number, row in enumerate(rows):
        if not _is_result(row):
            raise ValueError(
                f"{file}: detection {number} is {str(row)[:80]}; each needs image_id and category_id, whole numbers, "
                "bbox [x, y, width, height], and score, all finite"
            )
    return rows


def _is_result(row: Any) -> bool:
    if not isinstance(row, dict):
        return False
    box, score = row.get("bbox"), row.get("score")
    whole = all(type(row.get(key)) is int for key in ("image_id", "category_id"))
    numbers = [*box, score] if isinstance(box, list) and len(box) == 4 else []
    return whole and bool(numbers) and all(type(v) in (int, float) and abs(v) < 1e9 for v in numbers)


def collected(
    rows: Sequence[Mapping[str, Any]], index: AnnotationIndex, labels: LabelMap, file: Path
) -> Collected:
    """Results on the annotations of a split.

    Raises:
        ValueError: an image or a category that the data do not have.
    """
    order = np.argsort(index.image_ids, kind="stable")
    ids, place = index.image_ids[order], np.empty(len(index), dtype=np.int64)
    place[order] = np.arange(len(index))
    found = np.array([row["image_id"] for row in rows], dtype=np.int64)
    at = np.searchsorted(ids, found)
    _refuse(np.append(ids, -1)[at] != found, found, f"{file}: image_id {{}} is no image of the split", ids)
    categories = np.array([row["category_id"] for row in rows], dtype=np.int64)
    head = labels.head_of_source
    known = np.isin(categories, [*head])
    _refuse(~known, categories, f"{file}: category_id {{}} is no class of the data", np.array([*head]))
    by_image = np.argsort(at, kind="stable")
    owner = np.repeat(place, np.diff(index.offsets))
    truth = np.argsort(owner, kind="stable")
    classes = np.array([head[i] for i in index.source_ids.tolist()], dtype=np.int64)
    boxes = np.array([(*row["bbox"], row["score"]) for row in rows], dtype=np.float64).reshape(-1, 5)
    return Collected(
        np.column_stack([ids, index.sizes[order]]),
        boxes[by_image],
        np.array([head[c] for c in categories[by_image].tolist()], dtype=np.int64),
        at[by_image],
        np.column_stack([index.boxes_xywh, index.areas])[truth],
        np.column_stack([classes, index.crowd])[truth],
        owner[truth],
    )  # fmt: skip


def _refuse(wrong: Flags, values: Any, message: str, there: Any) -> None:
    if wrong.any():
        number, known = int(np.unique(values[wrong]).size), ", ".join(map(str, there[:4].tolist()))
        more = f" (and {number - 1} more)" if number > 1 else ""
        raise ValueError(
            f"{message.format(int(values[wrong][0]))}{more}; it has {known}{', ...' if len(there) > 4 else ''}; give "
            "results with the ids of the annotation file"
        )
