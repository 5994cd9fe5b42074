"""Exact COCO average precision over all ranks, its bootstrap interval, and a table for the terminal.

`CocoAP` collects what a validation epoch detects, gathers it over ranks by image, and evaluates once;
`Evaluation` is that evaluation, a plain object that outlives the metric's reset. Numbers equal
pycocotools': boxes, areas and scores stay float64 as given, images are sorted by id (with tied scores
the order of images moves an AP), and an image that a sampler repeats counts once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from zoo.contract.batch import Batch, Detections
from zoo.contract.coco_limit import ceiling
from zoo.contract.labels import LabelMap
from zoo.evaluation.bootstrap import ClassMatches, class_matches, drawn, interval_around, weighted_ap
from zoo.evaluation.coco_evaluator import (
    AREAS,
    IOUS,
    MAX_DETECTIONS,
    RECALLS,
    Collected,
    Evaluator,
    Floats,
    Integers,
    IouType,
    MaskCodes,
    few,
    protocol,
    run_evaluator,
)
from zoo.evaluation.metric_state import Columns, FlatMetric, pack_masks, unpack_masks

SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
# an interval of a larger half-width gets a warning: published differences are often smaller
NARROW = 0.01
FEW = 30  # images, of which an interval by resampling them says little


class CocoAP(FlatMetric["Evaluation"]):
    """The twelve COCO numbers of `SCORES` over every image seen since the last reset, on all ranks.

    Args:
        backend: `hotcoco`, or `pycocotools`, the slow reference. Both give the same numbers.
        iou_type: `bbox` compares boxes, `segm` masks, which detections and annotations must then have.
    """

    images: list[Tensor]  # [N, 5] int64: id, height, width, detections, annotations
    detections: list[Tensor]  # [D, 5] float64: x, y, w, h in pixels of the original image, score
    detection_labels: list[Tensor]  # [D] int64, head index
    annotations: list[Tensor]  # [A, 5] float64: x, y, w, h, area
    annotation_labels: list[Tensor]  # [A, 2] int64: head index, crowd
    # with masks only: the length of each code, and the codes one after the other
    detection_mask_lengths: list[Tensor]  # [D] int64
    detection_mask_bytes: list[Tensor]  # uint8
    annotation_mask_lengths: list[Tensor]  # [A] int64
    annotation_mask_bytes: list[Tensor]  # uint8

    def __init__(self, backend: Evaluator = "hotcoco", iou_type: IouType = "bbox") -> None:
        for what, value, known in (
            ("backend", backend, get_args(Evaluator)),
            ("iou_type", iou_type, get_args(IouType)),
        ):
            if value not in known:
                raise ValueError(f"{what} {value!r} is not one of {', '.join(known)}")
        super().__init__(_BOX_COLUMNS if iou_type == "bbox" else {**_BOX_COLUMNS, **_MASK_COLUMNS})
        self.backend = backend
        self.iou_type = iou_type

    def update(self, detections: Sequence[Detections], batch: Batch) -> None:
        """Adds the images of one batch.

        Args:
            detections: one per image of `batch`; labels are head indices, boxes pixels of the
                original image. More than 100 per class and image are cut by the protocol, not here.
            batch: gives image ids, original sizes and annotations.

        Raises:
            ValueError: if counts differ, the batch has no annotations, or a detection is not finite.
        """
        if len(detections) != len(batch):
            raise ValueError(
                f"detections of {len(detections)} images for a batch of {len(batch)}; give one each"
            )
        if batch.annotations is None:
            raise ValueError(
                f"the batch of images {few(batch.image_ids)} has no annotations, which evaluation needs; "
                "take it from a val or test dataloader"
            )
        if not detections:
            return
        self._evaluation = None
        counts = [len(d.scores) for d in detections]
        boxes = torch.cat([d.boxes_xyxy for d in detections]).detach().to("cpu", torch.float64)
        scores = torch.cat([d.scores for d in detections]).detach().to("cpu", torch.float64)
        values = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2], scores[:, None]], dim=1)
        _refuse_not_finite(values, counts, batch.image_ids)
        sizes = [
            (image, height, width, found, objects)
            for image, (height, width), found, objects in zip(
                batch.image_ids, batch.original_sizes, counts, batch.annotations.counts, strict=True
            )
        ]
        facts = batch.annotations
        if self.iou_type == "segm":
            self._add_masks(detections, batch)
        self.images.append(torch.tensor(sizes, dtype=torch.int64))
        self.detections.append(values)
        self.detection_labels.append(torch.cat([d.labels for d in detections]).to("cpu", torch.int64))
        self.annotations.append(
            torch.cat([facts.boxes_xywh, facts.areas[:, None]], dim=1).to("cpu", torch.float64)
        )
        self.annotation_labels.append(torch.stack([facts.labels, facts.crowd], dim=1).to("cpu", torch.int64))

    def _add_masks(self, detections: Sequence[Detections], batch: Batch) -> None:
        assert batch.annotations is not None
        start = 0
        for found, image, size, objects in zip(
            detections, batch.image_ids, batch.original_sizes, batch.annotations.counts, strict=True
        ):
            truth = batch.annotations.segmentations
            if found.masks is None or truth is None or len(found.masks) != len(found.scores):
                raise ValueError(
                    f"image {image} has {'no masks of annotations' if truth is None else 'detections'} "
                    f"{'' if truth is None else 'without a mask each'}; AP of masks needs both: read the data "
                    "with masks and predict with a mask head"
                )
            self._append("detection", pack_masks(found.masks, size, image))
            self._append("annotation", pack_masks(truth[start : start + objects], size, image))
            start += objects

    def _append(self, side: str, packed: tuple[Tensor, Tensor]) -> None:
        for name, column in zip(("lengths", "bytes"), packed, strict=True):
            getattr(self, f"{side}_mask_{name}").append(column)

    def _evaluate(self) -> Evaluation:
        masks = None
        if self.iou_type == "segm":
            masks = MaskCodes(
                unpack_masks(self.flat("detection_mask_lengths"), self.flat("detection_mask_bytes")),
                unpack_masks(self.flat("annotation_mask_lengths"), self.flat("annotation_mask_bytes")),
            )
        columns = [self.flat(name) for name in _BOX_COLUMNS]
        data = Collected.from_flat(columns[0], columns[1], columns[2], columns[3], columns[4], masks)
        return Evaluation(data, self.backend)

    def protocol(self) -> dict[str, Any]:
        """What was measured and by what, as plain values to store beside each number."""
        return protocol(self.backend, self.iou_type)


# width and dtype of each state, in the order of `Collected.from_flat`
_BOX_COLUMNS: Columns = {
    "images": ((5,), torch.int64),
    "detections": ((5,), torch.float64),
    "detection_labels": ((), torch.int64),
    "annotations": ((5,), torch.float64),
    "annotation_labels": ((2,), torch.int64),
}
_MASK_COLUMNS: Columns = {
    "detection_mask_lengths": ((), torch.int64),
    "detection_mask_bytes": ((), torch.uint8),
    "annotation_mask_lengths": ((), torch.int64),
    "annotation_mask_bytes": ((), torch.uint8),
}


def _refuse_not_finite(values: Tensor, counts: Sequence[int], image_ids: Sequence[int]) -> None:
    bad = (~values.isfinite()).any(dim=1)
    if bool(bad.any()):
        owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        image = image_ids[int(owner[bad][0])]
        raise ValueError(
            f"{int(bad.sum())} detections hold nan or inf, the first on image {image}; the weights have "
            "diverged: lower the learning rate or go back to an earlier checkpoint"
        )


class Evaluation:
    """One evaluation of one set of images, by boxes or masks: scores, AP per class, interval, COCO files."""

    def __init__(self, data: Collected, backend: Evaluator = "hotcoco") -> None:
        self.data = data
        self.backend = backend

    @property
    def num_images(self) -> int:
        """Images, each counted once."""
        return len(self.data.images)

    @cached_property
    def _curves(self) -> tuple[Floats, Floats]:
        """COCO's precision [T, R, K, A, M] and recall [T, K, A, M]; -1 without objects."""
        evaluator = run_evaluator(self.data, self.backend, AREAS, MAX_DETECTIONS)
        return np.asarray(evaluator.eval["precision"]), np.asarray(evaluator.eval["recall"])

    @cached_property
    def scores(self) -> dict[str, float]:
        """The twelve COCO numbers in [0, 1], named as in `SCORES`; nan where COCO writes -1: no object of that size."""
        if not self.data.classes:
            return dict.fromkeys(SCORES, float("nan"))
        precision, recall = self._curves
        at_100 = precision[..., -1]
        scores = {
            "AP": _mean(at_100[..., 0]),
            "AP50": _mean(at_100[0, ..., 0]),
            "AP75": _mean(at_100[5, ..., 0]),
        }
        scores |= {f"AP{size}": _mean(at_100[..., a]) for a, size in enumerate(AREAS) if a}
        scores |= {f"AR{limit}": _mean(recall[:, :, 0, m]) for m, limit in enumerate(MAX_DETECTIONS)}
        scores |= {f"AR{size}": _mean(recall[:, :, a, -1]) for a, size in enumerate(AREAS) if a}
        return scores

    @cached_property
    def per_class(self) -> dict[int, float]:
        """AP of each class that occurs, by head index; nan for a class that is only detected."""
        if not self.data.classes:
            return {}
        precision = self._curves[0][..., 0, -1]
        return {head: _mean(precision[:, :, k]) for k, head in enumerate(self.data.classes)}

    def precision(self) -> Floats:
        """[T, R, K] COCO's interpolated precision for each IoU, recall and class of `data.classes`.

        Nan without objects. Over objects of all sizes and at most 100 detections of an image and class.
        """
        if not self.data.classes:
            return np.zeros((len(IOUS), len(RECALLS), 0))
        precision = self._curves[0][..., 0, -1]
        return np.where(precision < 0, np.nan, precision)

    @cached_property
    def matches(self) -> dict[int, ClassMatches]:
        """The matches of each class with objects, from which AP can be computed for any weights of the images."""
        return class_matches(self.data, self.backend)

    def resampled(self, weights: Integers) -> dict[str, Floats]:
        """AP and AP50 when image i counts `weights[s, i]` times, for each sample s.

        Exactly the evaluator's AP of that multiset of images, copies next to each other; detections
        of one image that tie in score stay grouped.

        Args:
            weights: [S, N] non-negative counts, columns in ascending image id.

        Returns:
            AP and AP50, each [S]; nan where a sample has no object.
        """
        total, total50, classes = (np.zeros(len(weights)) for _ in range(3))
        for matches in self.matches.values():
            ap = weighted_ap(matches, weights)
            present = ~np.isnan(ap[:, 0])
            total[present] += ap[present].mean(axis=1)
            total50[present] += ap[present, 0]
            classes[present] += 1
        classes[classes == 0] = np.nan
        return {"AP": total / classes, "AP50": total50 / classes}

    def interval(
        self, samples: int = 200, seed: int = 0, confidence: float = 0.95
    ) -> dict[str, tuple[float, float]]:
        """Bootstrap over images: how far AP and AP50 would move on other images like these.

        A function of the images and the arguments alone, see `interval_around`; (nan, nan) without objects.

        Raises:
            ValueError: if samples < 1 or confidence is not within (0, 1).
        """
        if samples < 1 or not 0 < confidence < 1:
            raise ValueError(
                f"interval of {samples} samples at confidence {confidence}; needs at least 1 sample, "
                "and a confidence between 0 and 1"
            )
        if np.isnan(self.scores["AP"]):
            return {name: (float("nan"), float("nan")) for name in ("AP", "AP50")}
        resampled = self.resampled(drawn(self.num_images, samples, seed))
        return {
            name: interval_around(self.scores[name], values, confidence) for name, values in resampled.items()
        }

    def coco_results(self, label_map: LabelMap | None = None) -> list[dict[str, Any]]:
        """The detections in COCO's results format, see `Collected.coco_results`."""
        return self.data.coco_results(label_map)

    def ground_truth(self, label_map: LabelMap | None = None) -> dict[str, Any]:
        """The annotations as a COCO data set, see `Collected.ground_truth`."""
        return self.data.ground_truth(label_map)

    def write_coco_results(self, path: str | os.PathLike[str], label_map: LabelMap | None = None) -> None:
        """Writes `coco_results` as JSON; pycocotools gets the same AP from the file."""
        Path(path).write_text(json.dumps(self.coco_results(label_map)), encoding="utf-8")


def _mean(values: Floats) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else float("nan")


def format_score(value: float, interval: tuple[float, float] | None = None) -> str:
    """`0.523 [0.470, 0.570]`; without an interval `0.520`; `-` for nan."""
    if np.isnan(value):
        return "-"
    if interval is None:
        return f"{value:.3f}"
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def small_set_note(interval: tuple[float, float], num_images: int) -> str | None:
    """A warning if a set is too small for small differences to mean anything; else None."""
    half = (interval[1] - interval[0]) / 2
    if np.isnan(half) or (half <= NARROW and num_images >= FEW):
        return None
    if num_images < 2:
        return f"{num_images} image tells nothing about other images: this AP is no measurement"
    if half <= NARROW:
        return f"{num_images} images all score alike, which makes this interval narrow; so few say little of others"
    return (
        f"{num_images} images fix this AP to about ±{half:.2f} only: between two models, a difference "
        f"below {max(half, 0.01):.2f} means nothing here"
    )


def _why_none(name: str, scores: Mapping[str, float]) -> str:
    """Behind the dash of a score that no object counts for."""
    size = {"s": "small", "m": "medium", "l": "large"}.get(name[2:])
    return "" if size is None or not np.isnan(scores[name]) else f"  no {size} objects"


def score_table(
    evaluation: Evaluation,
    label_map: LabelMap | None = None,
    interval: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """Scores, AP and number of objects per class, and notes on how far they can be trusted, for a terminal."""
    scores, bands = evaluation.scores, interval or {}
    lines = [
        f"{name:<8}{format_score(scores[name], bands.get(name)) + _why_none(name, scores)}" for name in SCORES
    ]
    labels, crowd = evaluation.data.annotation_labels.T
    names = label_map.name_of_head if label_map else {}
    rows = [
        (names.get(head, f"class {head}"), format_score(ap), int(np.sum((labels == head) & (crowd == 0))))
        for head, ap in evaluation.per_class.items()
    ]
    width = max((len(name) for name, _, _ in rows), default=5)
    if rows:
        lines += ["", f"{'class':<{width}}  {'AP':>5}  objects"]
        lines += [f"{name:<{width}}  {ap:>5}  {objects:>7}" for name, ap, objects in rows]
    data = evaluation.data
    limit = ceiling(data.annotation_image[crowd == 0], labels[crowd == 0])
    notes = [limit.words()] if limit is not None else []
    note = small_set_note(bands["AP"], evaluation.num_images) if "AP" in bands else None
    notes += [note] if note else []
    return "\n".join([*lines, "", *notes] if notes else lines)
