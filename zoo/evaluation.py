"""Exact COCO average precision, its bootstrap interval, and COCO result files.

`CocoAP` collects what a validation epoch detects, gathers it over ranks by image, and evaluates once;
`Evaluation` is that evaluation, a plain object that outlives the metric's reset. Numbers equal
pycocotools': boxes, areas and scores stay float64 as given, images are sorted by id (with tied scores
the order of images moves an AP), and an image that a sampler repeats counts once.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from zoo.batch import Batch, Detections
from zoo.labels import LabelMap

Backend = Literal["hotcoco", "pycocotools"]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
MAX_DETECTIONS = (1, 10, 100)
AREAS = {"all": (0.0, 1e10), "s": (0.0, 1024.0), "m": (1024.0, 9216.0), "l": (9216.0, 1e10)}
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
# a half-width above this gets a word of warning: published differences are often smaller than it
NARROW = 0.01
# values that one chunk of the bootstrap may hold (int32), about 80 MB
CHUNK = 20_000_000
IMAGES_AT_ONCE = 500


class CocoAP(Metric):
    """COCO box AP over every image seen since the last reset, on all ranks.

    States are flat typed tensors on the CPU, gathered by concatenation. Each list holds an empty
    tensor of its own dtype and width from the start, so that a rank which saw no image still takes
    part in the gathering (torchmetrics would contribute a float32 tensor of the wrong shape).

    Args:
        backend: `hotcoco`, or `pycocotools`, the slow reference. Both give the same numbers.
    """

    full_state_update = False
    images: list[Tensor]  # [N, 5] int64: id, height, width, detections, annotations
    detections: list[Tensor]  # [D, 5] float64: x, y, w, h in pixels of the original image, score
    detection_labels: list[Tensor]  # [D] int64, head index
    annotations: list[Tensor]  # [A, 5] float64: x, y, w, h, area
    annotation_labels: list[Tensor]  # [A, 2] int64: head index, crowd

    def __init__(self, backend: Backend = "hotcoco") -> None:
        super().__init__(dist_sync_fn=_gather)
        if backend not in ("hotcoco", "pycocotools"):
            raise ValueError(f"backend {backend!r} is not one of hotcoco, pycocotools")
        self.backend = backend
        self._evaluation: Evaluation | None = None
        for name in _EMPTY:
            self.add_state(name, [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forgets every image. An `Evaluation` taken before stays valid."""
        super().reset()
        self._evaluation = None
        for name, (width, dtype) in _EMPTY.items():
            setattr(self, name, [torch.empty(0, *width, dtype=dtype)])

    def _apply(self, fn: Callable[..., Any], exclude_state: Sequence[str] = ()) -> torch.nn.Module:
        # float64 does not exist on every device, and the evaluators read the CPU anyway
        return super()._apply(fn, exclude_state=(*exclude_state, *_EMPTY))

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
                f"the batch of images {_few(batch.image_ids)} has no annotations, which evaluation needs; "
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
        self.images.append(torch.tensor(sizes, dtype=torch.int64))
        self.detections.append(values)
        self.detection_labels.append(torch.cat([d.labels for d in detections]).to("cpu", torch.int64))
        self.annotations.append(
            torch.cat([facts.boxes_xywh, facts.areas[:, None]], dim=1).to("cpu", torch.float64)
        )
        self.annotation_labels.append(torch.stack([facts.labels, facts.crowd], dim=1).to("cpu", torch.int64))

    def compute(self) -> dict[str, float]:
        """The twelve COCO numbers in [0, 1], named as in `SCORES`.

        nan where COCO writes -1: no object of that size, or none at all, so there is nothing to score.
        Gathers over ranks: call it on all of them.
        """
        columns = (_flat(getattr(self, name)) for name in _EMPTY)
        self._evaluation = Evaluation(Collected.from_flat(*columns), self.backend)
        return self._evaluation.scores

    def evaluation(self) -> Evaluation:
        """The evaluation behind `compute`; it stays valid after a reset.

        Gathers over ranks if `compute` has not been called since the last update: then call it on
        all of them.
        """
        if self._evaluation is None:
            self.compute()
        assert self._evaluation is not None
        return self._evaluation

    def per_class(self) -> dict[int, float]:
        """AP of each class that occurs, by head index; see `Evaluation.per_class`."""
        return self.evaluation().per_class

    def interval(
        self, samples: int = 200, seed: int = 0, confidence: float = 0.95
    ) -> dict[str, tuple[float, float]]:
        """Bootstrap interval of AP and AP50; see `Evaluation.interval`."""
        return self.evaluation().interval(samples, seed, confidence)

    def protocol(self) -> dict[str, Any]:
        """What was measured and by what, as plain values to store beside each number."""
        return protocol(self.backend)

    def coco_results(self, label_map: LabelMap | None = None) -> list[dict[str, Any]]:
        """The detections as COCO results; see `Evaluation.coco_results`."""
        return self.evaluation().coco_results(label_map)

    def ground_truth(self, label_map: LabelMap | None = None) -> dict[str, Any]:
        """The annotations as a COCO data set; see `Evaluation.ground_truth`."""
        return self.evaluation().ground_truth(label_map)

    def write_coco_results(self, path: str | os.PathLike[str], label_map: LabelMap | None = None) -> None:
        """Writes `coco_results` as JSON; pycocotools gets the same AP from the file."""
        Path(path).write_text(json.dumps(self.coco_results(label_map)), encoding="utf-8")


# width and dtype of each state, in the order of `Collected.from_flat`
_EMPTY: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
    "images": ((5,), torch.int64),
    "detections": ((5,), torch.float64),
    "detection_labels": ((), torch.int64),
    "annotations": ((5,), torch.float64),
    "annotation_labels": ((2,), torch.int64),
}


def protocol(backend: Backend = "hotcoco") -> dict[str, Any]:
    """Evaluator, version and settings of a score, as plain values. Scores compare only under equal ones."""
    return {
        "evaluator": backend,
        "version": version(backend),
        "iou_type": "bbox",
        "iou_thresholds": [round(float(t), 2) for t in IOUS],
        "recall_thresholds": len(RECALLS),
        "max_detections": list(MAX_DETECTIONS),
        "areas": {name: list(limits) for name, limits in AREAS.items()},
        "crowd": "ignored",
        "repeated_images": "dropped",
    }


def _gather(state: Tensor, group: Any = None) -> list[Tensor]:
    """The state of every rank; on the GPU for the moment that NCCL needs it there."""
    on_gpu = torch.distributed.get_backend(group) == "nccl"
    return [t.cpu() for t in gather_all_tensors(state.cuda() if on_gpu else state, group)]


def _flat(state: Tensor | list[Tensor]) -> npt.NDArray[Any]:
    """A state as numpy: a list before the gathering, a tensor after it."""
    flat: npt.NDArray[Any] = (torch.cat(state) if isinstance(state, list) else state).cpu().numpy()
    return flat


def _few(values: Sequence[int]) -> str:
    return ", ".join(str(v) for v in values[:4]) + (", ..." if len(values) > 4 else "")


def _refuse_not_finite(values: Tensor, counts: Sequence[int], image_ids: Sequence[int]) -> None:
    bad = (~values.isfinite()).any(dim=1)
    if bool(bad.any()):
        owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        image = image_ids[int(owner[bad][0])]
        raise ValueError(
            f"{int(bad.sum())} detections hold nan or inf, the first on image {image}; the weights have "
            "diverged: lower the learning rate or go back to an earlier checkpoint"
        )


class Collected(NamedTuple):
    """All images of an evaluation, sorted by id, each once; flat columns with the row of their image."""

    images: Integers  # [N, 3] id, height, width
    detections: Floats  # [D, 5] x, y, w, h, score
    detection_labels: Integers  # [D]
    detection_image: Integers  # [D] row of `images`
    annotations: Floats  # [A, 5] x, y, w, h, area
    annotation_labels: Integers  # [A, 2] head index, crowd
    annotation_image: Integers  # [A] row of `images`

    @classmethod
    def from_flat(
        cls,
        images: Integers,
        detections: Floats,
        detection_labels: Integers,
        annotations: Floats,
        annotation_labels: Integers,
    ) -> Collected:
        """Sorts the states of `CocoAP` by image id and drops all but the first of repeated ids."""
        _, first = np.unique(images[:, 0], return_index=True)
        found, found_image = _rows_of(first, images[:, 3])
        objects, object_image = _rows_of(first, images[:, 4])
        return cls(
            images[first, :3],
            detections[found],
            detection_labels[found],
            found_image,
            annotations[objects],
            annotation_labels[objects],
            object_image,
        )

    @property
    def classes(self) -> list[int]:
        """Head indices that occur in annotations or detections, ascending."""
        return [int(c) for c in np.union1d(self.annotation_labels[:, 0], self.detection_labels)]


def _rows_of(images: Integers, counts: Integers) -> tuple[Integers, Integers]:
    """Flat rows of the chosen images in their order, and which of them owns each row."""
    starts, kept = (np.cumsum(counts) - counts)[images], counts[images]
    shift = np.repeat(starts - (np.cumsum(kept) - kept), kept)
    return np.arange(len(shift)) + shift, np.repeat(np.arange(len(images)), kept)


class Evaluation:
    """One evaluation of one set of images: scores, per-class AP, bootstrap interval, COCO files."""

    def __init__(self, data: Collected, backend: Backend = "hotcoco") -> None:
        self.data = data
        self.backend = backend

    @property
    def num_images(self) -> int:
        """Images, each counted once."""
        return len(self.data.images)

    @cached_property
    def _curves(self) -> tuple[Floats, Floats]:
        """COCO's precision [T, R, K, A, M] and recall [T, K, A, M]; -1 without objects."""
        evaluator = _run(self.data, self.backend, AREAS, MAX_DETECTIONS)
        return np.asarray(evaluator.eval["precision"]), np.asarray(evaluator.eval["recall"])

    @cached_property
    def scores(self) -> dict[str, float]:
        """The twelve COCO numbers in [0, 1]; nan where COCO writes -1 (no such object)."""
        if not self.data.classes:
            return dict.fromkeys(SCORES, float("nan"))
        precision, recall = self._curves
        at_100, at_iou = (
            precision[..., -1],
            {"50": precision[:1, ..., 0, -1], "75": precision[5:6, ..., 0, -1]},
        )
        scores = {"AP": _mean(at_100[..., 0])}
        scores |= {f"AP{name}": _mean(values) for name, values in at_iou.items()}
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

    @cached_property
    def matches(self) -> list[ClassMatches]:
        """What AP needs of each image, per class: matched once, accumulated as often as wanted."""
        return _class_matches(self.data, self.backend)

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
        for matches in self.matches:
            ap = _weighted_ap(matches, weights)
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

        A function of the images and the arguments alone. Percentiles, moved so that the samples' mean
        lies on the score: copies of an image favour rare classes, which lifts every sample (measured
        +0.014 on 206 COCO images, nearly one standard deviation). (nan, nan) without objects.

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
        drawn = np.random.default_rng(seed).multinomial(
            self.num_images, np.full(self.num_images, 1 / self.num_images), size=samples
        )
        tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        intervals = {}
        for name, values in self.resampled(drawn).items():
            score = self.scores[name]
            valid = values[~np.isnan(values)]
            ends = np.quantile(valid, tails) - (valid.mean() - score) if len(valid) else [score, score]
            # few images make few distinct samples, whose percentiles need not enclose their mean
            intervals[name] = (max(0.0, min(float(ends[0]), score)), min(1.0, max(float(ends[1]), score)))
        return intervals

    def coco_results(self, label_map: LabelMap | None = None) -> list[dict[str, Any]]:
        """Detections in COCO's results format, sorted by image id, values unrounded.

        Args:
            label_map: turns head indices into source category ids; None keeps head indices.

        Raises:
            ValueError: if a label has no class in the map.
        """
        d = self.data
        ids = self._categories(label_map)
        rows = zip(
            d.images[d.detection_image, 0].tolist(),
            d.detection_labels.tolist(),
            d.detections.tolist(),
            strict=True,
        )
        return [
            {"image_id": image, "category_id": ids[label], "bbox": values[:4], "score": values[4]}
            for image, label, values in rows
        ]

    def ground_truth(self, label_map: LabelMap | None = None) -> dict[str, Any]:
        """Annotations as a COCO data set (`images`, `categories`, `annotations`), without masks.

        Annotation ids are 1, 2, ... in order of image id: pycocotools takes 0 for "not matched".
        """
        d = self.data
        ids = self._categories(label_map)
        rows = zip(
            d.images[d.annotation_image, 0].tolist(),
            d.annotation_labels.tolist(),
            d.annotations.tolist(),
            strict=True,
        )
        heads = list(label_map.head_indices) if label_map else d.classes
        names = label_map.name_of_head if label_map else {}
        return {
            "images": [{"id": i, "height": h, "width": w} for i, h, w in d.images.tolist()],
            "categories": [{"id": ids[head], "name": names.get(head, str(head))} for head in heads],
            "annotations": [
                {
                    "id": number,
                    "image_id": image,
                    "category_id": ids[label],
                    "bbox": values[:4],
                    "area": values[4],
                    "iscrowd": crowd,
                }
                for number, (image, (label, crowd), values) in enumerate(rows, start=1)
            ],
        }

    def _categories(self, label_map: LabelMap | None) -> Mapping[int, int]:
        if label_map is None:
            return {head: head for head in self.data.classes}
        unknown = sorted(set(self.data.classes) - set(label_map.source_of_head))
        if unknown:
            raise ValueError(
                f"labels {_few(unknown)} are no classes of the label map with head indices "
                f"{_few(label_map.head_indices)}; evaluate with the map that the data were read with"
            )
        return label_map.source_of_head


def _mean(values: Floats) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else float("nan")


def _run(
    data: Collected, backend: Backend, areas: Mapping[str, tuple[float, float]], limits: Sequence[int]
) -> Any:
    """A COCOeval of either library after `evaluate` and `accumulate`; categories are head indices."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools narrates
        evaluator = _hotcoco(data) if backend == "hotcoco" else _pycocotools(data)
        evaluator.params.areaRng = [list(area) for area in areas.values()]
        evaluator.params.areaRngLbl = list(areas)
        evaluator.params.maxDets = list(limits)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def _hotcoco(data: Collected) -> Any:
    import hotcoco

    truth = hotcoco.COCO.from_arrays(
        [{"id": i, "height": h, "width": w} for i, h, w in data.images.tolist()],
        [{"id": c, "name": str(c)} for c in data.classes],
        data.images[data.annotation_image, 0],
        data.annotation_labels[:, 0],
        data.annotations[:, :4],
        ids=np.arange(1, len(data.annotations) + 1),
        area=data.annotations[:, 4],
        iscrowd=data.annotation_labels[:, 1].astype(bool),
    )
    columns = (data.images[data.detection_image, 0], data.detections, data.detection_labels)
    return hotcoco.COCOeval(truth, truth.load_res(np.column_stack(columns).astype(np.float64)), "bbox")


def _pycocotools(data: Collected) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    whole = Evaluation(data)
    truth, found = COCO(), COCO()
    truth.dataset = whole.ground_truth()
    # not loadRes: it fails on an empty list
    found.dataset = {key: truth.dataset[key] for key in ("images", "categories")}
    found.dataset["annotations"] = [
        result | {"id": number, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
        for number, result in enumerate(whole.coco_results(), start=1)
    ]
    truth.createIndex()
    found.createIndex()
    return COCOeval(truth, found, "bbox")


@dataclass(frozen=True)
class ClassMatches:
    """Detections of one class over all images, best score first, as the evaluator matched them."""

    image: Integers  # [D] row of the image
    true: Flags  # [T, D] matched to an object that counts
    ignored: Flags  # [T, D] matched to a crowd: neither right nor wrong
    objects: Integers  # [N] objects that count, per image


def _class_matches(data: Collected, backend: Backend) -> list[ClassMatches]:
    """Detections of every class that has objects, with the evaluator's verdicts on each."""
    ranked = _ranked(data)
    owner = ranked.detection_labels * len(data.images) + ranked.detection_image
    true = np.zeros((len(IOUS), len(owner)), dtype=bool)
    area = ranked.detections[:, 2] * ranked.detections[:, 3]
    # only where an object of the class is in the image is there anything to match
    outside = (area < AREAS["all"][0]) | (area > AREAS["all"][1])
    ignored = np.repeat(outside[None], len(IOUS), axis=0)
    objects = {
        int(head): np.zeros(len(data.images), dtype=np.int64)
        for head in np.unique(data.annotation_labels[:, 0])
    }
    row_of = {int(image): row for row, image in enumerate(data.images[:, 0])}
    for record in _records(ranked, backend):
        head, row = int(record["category_id"]), row_of[int(record["image_id"])]
        objects[head][row] = np.count_nonzero(np.asarray(record["gtIgnore"]) == 0)
        first = int(np.searchsorted(owner, head * len(data.images) + row))
        found = slice(first, first + len(record["dtScores"]))
        if found.start < found.stop:
            ignored[:, found] = np.asarray(record["dtIgnore"]).astype(bool)
            true[:, found] = np.asarray(record["dtMatches"]).astype(bool) & ~ignored[:, found]
    classes = []
    for head, counts in objects.items():
        start, stop = np.searchsorted(ranked.detection_labels, [head, head + 1])
        best = start + np.argsort(-ranked.detections[start:stop, 4], kind="stable")
        classes.append(ClassMatches(ranked.detection_image[best], true[:, best], ignored[:, best], counts))
    return classes


def _ranked(data: Collected) -> Collected:
    """Detections by class, image, falling score, cut to the protocol's number per class and image."""
    order = np.lexsort((-data.detections[:, 4], data.detection_image, data.detection_labels))
    owner = data.detection_labels[order] * len(data.images) + data.detection_image[order]
    rank = np.arange(len(owner)) - np.searchsorted(owner, owner)
    return _with_detections(data, order[rank < MAX_DETECTIONS[-1]])


def _with_detections(data: Collected, rows: npt.NDArray[Any]) -> Collected:
    return data._replace(
        detections=data.detections[rows],
        detection_labels=data.detection_labels[rows],
        detection_image=data.detection_image[rows],
    )


def _records(data: Collected, backend: Backend) -> Iterator[Any]:
    """The evaluator's record of every image and class with annotations, a few images at a time.

    Records are nested Python lists: those of a whole COCO val set take gigabytes.
    """
    annotated = data.annotation_labels[:, 0] * len(data.images) + data.annotation_image
    owner = data.detection_labels * len(data.images) + data.detection_image
    matchable = np.isin(owner, annotated)
    for start in range(0, len(data.images), IMAGES_AT_ONCE):
        rows = np.arange(start, min(start + IMAGES_AT_ONCE, len(data.images)))
        truth = np.flatnonzero(np.isin(data.annotation_image, rows))
        if not len(truth):
            continue
        part = _with_detections(
            data, np.flatnonzero(matchable & np.isin(data.detection_image, rows))
        )._replace(
            annotations=data.annotations[truth],
            annotation_labels=data.annotation_labels[truth],
            annotation_image=data.annotation_image[truth],
        )
        evaluator = _run(part, backend, {"all": AREAS["all"]}, MAX_DETECTIONS[-1:])
        yield from (record for record in evaluator.evalImgs if record is not None)


def _weighted_ap(matches: ClassMatches, weights: Integers) -> Floats:
    """[S, T] AP of one class for each sample and IoU; nan without objects."""
    rows = max(1, CHUNK // max(1, len(matches.image)))
    return np.concatenate(
        [_ap_of_chunk(matches, weights[s : s + rows]) for s in range(0, len(weights), rows)]
    )


def _ap_of_chunk(matches: ClassMatches, weights: Integers) -> Floats:
    """COCO's interpolated precision, read off at true detections only.

    Recall grows at true detections alone, and the precision envelope is a maximum over them, so all
    other detections are needed only as a running total. Of the copies of an image the last has the
    highest precision, so a block of copies is one point.
    """
    objects = (weights @ matches.objects).astype(np.float64)
    objects[objects == 0] = np.nan
    copies = weights[:, matches.image].astype(np.int32)
    seen_at = np.cumsum(copies, axis=1, dtype=np.int32)
    ap = np.zeros((len(weights), len(IOUS)))
    for t in range(len(IOUS)):
        true, ignored = np.flatnonzero(matches.true[t]), np.flatnonzero(matches.ignored[t])
        if not len(true):
            continue
        right = np.cumsum(copies[:, true], axis=1, dtype=np.float64)
        seen = seen_at[:, true].astype(np.float64)
        if len(ignored):
            skipped = np.cumsum(np.pad(copies[:, ignored], ((0, 0), (1, 0))), axis=1)
            seen -= skipped[:, np.searchsorted(ignored, true)]
        precision = right / (seen + np.spacing(1))
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        reached = np.searchsorted(RECALLS, right / objects[:, None], side="right")
        ap[:, t] = (np.diff(reached, axis=1, prepend=0) * envelope).sum(axis=1) / len(RECALLS)
    ap[np.isnan(objects)] = np.nan
    return ap


def format_score(value: float, interval: tuple[float, float] | None = None) -> str:
    """`0.52 [0.47, 0.57]`; without an interval `0.520`; `-` for nan."""
    if np.isnan(value):
        return "-"
    if interval is None:
        return f"{value:.3f}"
    return f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def small_set_note(interval: tuple[float, float], num_images: int) -> str | None:
    """A word when a set is too small for small differences to mean anything; None when it is not."""
    half = (interval[1] - interval[0]) / 2
    if np.isnan(half) or (half <= NARROW and num_images > 1):
        return None
    if num_images < 2:
        return f"{num_images} image tells nothing about other images: this AP is no measurement"
    return (
        f"{num_images} images fix this AP to about ±{half:.2f} only: between two models, a difference "
        f"below {max(half, 0.01):.2f} means nothing here"
    )


def score_table(
    evaluation: Evaluation,
    label_map: LabelMap | None = None,
    interval: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """Overall scores, AP per class with its objects, and the small-set note, for a terminal."""
    scores, bands = evaluation.scores, interval or {}
    lines = [f"{name:<8}{format_score(scores[name], bands.get(name))}" for name in SCORES]
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
    note = small_set_note(bands["AP"], evaluation.num_images) if "AP" in bands else None
    return "\n".join([*lines, "", note] if note else lines)
