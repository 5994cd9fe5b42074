"""Panoptic quality (PQ, SQ, RQ) over all ranks, by the rules of panopticapi.

A predicted and a true segment of one class match if their IoU is above 0.5, void pixels left out of the
union. A prediction that is mostly void, or mostly on a crowd of its class, is no error; a crowd is never
missed. hotcoco applies these rules to one image at a time; true and false positives, misses and the sum of
IoUs are sums over images, so only a few numbers for each image and class are gathered over ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zoo.contract.batch import Batch
from zoo.contract.segments import PanopticSegmentation
from zoo.evaluation.coco_evaluator import own_threads
from zoo.evaluation.metric_state import Columns, FlatMetric

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

GROUPS = ("", "_th", "_st")  # all classes, things, stuff
SCORES = tuple(f"{name}{group}" for group in GROUPS for name in ("PQ", "SQ", "RQ"))
_COLUMNS: Columns = {
    "images": ((2,), torch.int64),
    "counts": ((5,), torch.int64),
    "iou_sums": ((), torch.float64),
}


class Quality(NamedTuple):
    """PQ = SQ x RQ of one class, and what they are made of."""

    pq: float  # iou / (tp + fp / 2 + fn / 2)
    sq: float  # mean IoU of the matches; 0 without any
    rq: float  # F1 of the matches
    iou: float  # sum over the matches
    tp: int
    fp: int
    fn: int
    is_thing: bool


class PanopticQuality(FlatMetric["PanopticEvaluation"]):
    """PQ, SQ and RQ of all classes, of things and of stuff, over every image since the last reset."""

    images: list[Tensor]  # [N, 2] int64: image id, rows that follow for it
    counts: list[Tensor]  # [R, 5] int64: head index, is it a thing, tp, fp, fn
    iou_sums: list[Tensor]  # [R] float64

    def __init__(self) -> None:
        super().__init__(_COLUMNS)

    def update(self, predictions: Sequence[PanopticSegmentation], batch: Batch) -> None:
        """Adds the images of one batch.

        Args:
            predictions: one for each image of `batch`, at its original size.
            batch: gives image ids and the true segmentations.

        Raises:
            ValueError: if counts or sizes differ, the batch has no true segmentations, or a map and its
                list of segments disagree.
        """
        if len(predictions) != len(batch):
            raise ValueError(
                f"segmentations of {len(predictions)} images for a batch of {len(batch)}; give one each"
            )
        if batch.panoptic is None:
            raise ValueError(
                f"the batch of images {', '.join(map(str, batch.image_ids[:4]))} has no panoptic ground truth; "
                "take it from a val or test dataloader of panoptic data"
            )
        self._evaluation = None
        for image_id, found, truth in zip(batch.image_ids, predictions, batch.panoptic, strict=True):
            rows = image_quality(found, truth, image_id)
            self.images.append(torch.tensor([[image_id, len(rows)]], dtype=torch.int64))
            values = [(label, q.is_thing, q.tp, q.fp, q.fn) for label, q in rows.items()]
            self.counts.append(torch.tensor(values, dtype=torch.int64).reshape(-1, 5))
            self.iou_sums.append(torch.tensor([q.iou for q in rows.values()], dtype=torch.float64))

    def _evaluate(self) -> PanopticEvaluation:
        return PanopticEvaluation.from_flat(*(self.flat(name) for name in _COLUMNS))

    def protocol(self) -> dict[str, Any]:
        """What was measured and by what, as plain values to store beside each number."""
        return protocol()


def protocol() -> dict[str, Any]:
    """Evaluator, version and settings of a score. Scores compare only under equal ones."""
    return {
        "evaluator": "hotcoco",
        "version": version("hotcoco"),
        "rules": "panopticapi",
        "iou_above": 0.5,
        "void": "left out of unions; a prediction mostly void is ignored",
        "crowd": "never missed; a prediction mostly on a crowd of its class is ignored",
        "size": "original",
        "repeated_images": "dropped",
    }


def image_quality(
    found: PanopticSegmentation, truth: PanopticSegmentation, image_id: int
) -> dict[int, Quality]:
    """Quality of each class that counts in one image, by ascending head index.

    Raises:
        ValueError: naming the image, if the sizes differ, or a map and its list of segments disagree.
    """
    from hotcoco.panoptic import PanopticEval

    own_threads()
    if found.size != truth.size:
        raise ValueError(
            f"image {image_id}: the prediction is {found.size}, the ground truth {truth.size} (h, w); predict "
            "at the original size, without padding"
        )
    for what, side in (("prediction", found), ("ground truth", truth)):
        faults = side.faults()
        if faults:
            raise ValueError(f"image {image_id}: in the {what}, {'; '.join(faults[:4])}; correct map or list")
    things = _things(found, truth, image_id)
    categories = [{"id": label, "name": str(label), "isthing": int(t)} for label, t in sorted(things.items())]
    if not categories:
        return {}
    evaluator = PanopticEval(_as_coco(truth, categories, True), _as_coco(found, categories, False))
    evaluator.evaluate()
    rows = evaluator.results()["per_class"]
    counted = {label: rows[label] for label in sorted(things)}
    return {
        label: _quality(row["iou"], row["tp"], row["fp"], row["fn"], things[label])
        for label, row in counted.items()
        if row["tp"] + row["fp"] + row["fn"]
    }


def _things(found: PanopticSegmentation, truth: PanopticSegmentation, image_id: int) -> dict[int, bool]:
    things: dict[int, bool] = {}
    for segment in (*truth.segments, *found.segments):
        if things.setdefault(segment.label, segment.is_thing) != segment.is_thing:
            raise ValueError(
                f"image {image_id}: label {segment.label} is a thing in one segment and stuff in another; "
                "predict and read the data with one label map"
            )
    return things


def _as_coco(side: PanopticSegmentation, categories: list[dict[str, Any]], is_truth: bool) -> dict[str, Any]:
    from hotcoco import mask

    height, width = side.size
    # one mask for each segment; pixels in none are void
    stack = np.asfortranarray(side.masks().permute(1, 2, 0).numpy())
    codes = mask.encode(stack) if side.segments else []
    rows = zip(side.segments, codes, strict=True)
    return {
        "images": [{"id": 1, "height": height, "width": width}],
        "categories": categories,
        "annotations": [
            {
                "id": number,
                "image_id": 1,
                "category_id": segment.label,
                "iscrowd": int(segment.crowd and is_truth),
                "segmentation": code,
                "area": segment.area,
            }
            for number, (segment, code) in enumerate(rows, start=1)
        ],
    }


def _quality(iou: float, tp: int, fp: int, fn: int, is_thing: bool) -> Quality:
    recognised = tp / (tp + 0.5 * fp + 0.5 * fn)
    quality = iou / (tp + 0.5 * fp + 0.5 * fn)
    return Quality(quality, iou / tp if tp else 0.0, recognised, iou, tp, fp, fn, is_thing)


@dataclass(frozen=True, eq=False)
class PanopticEvaluation:
    """One evaluation of one set of images: scores, and quality of each class and image.

    Rows are sorted by image id and class, so that sums do not depend on which rank saw what.
    """

    image_ids: Integers  # [N] ascending, each once
    image: Integers  # [R] row of `image_ids`
    counts: Integers  # [R, 5] head index, is it a thing, tp, fp, fn
    iou_sums: Floats  # [R]

    @classmethod
    def from_flat(cls, images: Integers, counts: Integers, iou_sums: Floats) -> PanopticEvaluation:
        """Sorts the states of `PanopticQuality` and drops all but the first of repeated images."""
        ids, first = np.unique(images[:, 0], return_index=True)
        starts = np.cumsum(images[:, 1]) - images[:, 1]
        own = [np.arange(starts[i], starts[i] + images[i, 1]) for i in first.tolist()]
        rows = np.concatenate([np.zeros(0, dtype=np.int64), *own])
        image = np.repeat(np.arange(len(ids)), images[first, 1])
        return cls(ids, image, counts[rows], iou_sums[rows])

    @property
    def num_images(self) -> int:
        """Images, each counted once."""
        return len(self.image_ids)

    @cached_property
    def per_class(self) -> dict[int, Quality]:
        """Quality of each class that occurs in the truth or counts as a wrong prediction, by head index."""
        return self._by_class(np.ones(len(self.counts), dtype=np.bool_))

    @cached_property
    def scores(self) -> dict[str, float]:
        """Means over the classes of each group, named as in `SCORES`; nan for a group without classes."""
        return _means(self.per_class)

    def per_image(self) -> dict[int, dict[str, float]]:
        """The scores of each image by itself, by image id."""
        return {
            int(image_id): _means(self._by_class(self.image == row))
            for row, image_id in enumerate(self.image_ids)
        }

    def _by_class(self, rows: npt.NDArray[np.bool_]) -> dict[int, Quality]:
        counts, ious = self.counts[rows], self.iou_sums[rows]
        qualities = {}
        for label in np.unique(counts[:, 0]).tolist():
            own = counts[:, 0] == label
            tp, fp, fn = counts[own, 2:].sum(axis=0).tolist()
            qualities[label] = _quality(float(ious[own].sum()), tp, fp, fn, bool(counts[own, 1].any()))
        return qualities


def _means(qualities: Mapping[int, Quality]) -> dict[str, float]:
    scores: dict[str, float] = {}
    for group, wanted in zip(GROUPS, ((True, False), (True,), (False,)), strict=True):
        rows = [q[:3] for q in qualities.values() if q.is_thing in wanted]
        means = np.mean(rows, axis=0).tolist() if rows else [float("nan")] * 3
        scores |= {f"{name}{group}": mean for name, mean in zip(("PQ", "SQ", "RQ"), means, strict=True)}
    return scores
