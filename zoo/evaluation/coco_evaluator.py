"""COCO evaluation of boxes or masks by a library, from flat columns: the protocol's constants, the data, the run."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from zoo.contract.labels import LabelMap

Evaluator = Literal["hotcoco", "pycocotools"]
IouType = Literal["bbox", "segm"]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

MAX_DETECTIONS = (1, 10, 100)
AREAS = {"all": (0.0, 1e10), "s": (0.0, 1024.0), "m": (1024.0, 9216.0), "l": (9216.0, 1e10)}
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)


class MaskCodes(NamedTuple):
    """COCO's compressed run-length code of every mask; its size is that of the image."""

    detections: Sequence[bytes]
    annotations: Sequence[bytes]


class Collected(NamedTuple):
    """All images of an evaluation, sorted by id, each once; flat columns with the row of their image."""

    images: Integers  # [N, 3] id, height, width
    detections: Floats  # [D, 5] x, y, w, h, score
    detection_labels: Integers  # [D]
    detection_image: Integers  # [D] row of `images`
    annotations: Floats  # [A, 5] x, y, w, h, area
    annotation_labels: Integers  # [A, 2] head index, crowd
    annotation_image: Integers  # [A] row of `images`
    masks: MaskCodes | None = None  # of D detections and A annotations; without them boxes are compared

    @classmethod
    def from_flat(
        cls,
        images: Integers,
        detections: Floats,
        detection_labels: Integers,
        annotations: Floats,
        annotation_labels: Integers,
        masks: MaskCodes | None = None,
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
            None if masks is None else taken(masks, found, objects),
        )

    @property
    def iou_type(self) -> IouType:
        """`segm` if there are masks, else `bbox`."""
        return "bbox" if self.masks is None else "segm"

    def detection_masks(self) -> list[dict[str, Any]] | None:
        """Masks of the detections in COCO's form; None without."""
        return None if self.masks is None else self._rles(self.masks.detections, self.detection_image)

    def annotation_masks(self) -> list[dict[str, Any]] | None:
        """Masks of the annotations in COCO's form; None without."""
        return None if self.masks is None else self._rles(self.masks.annotations, self.annotation_image)

    def _rles(self, codes: Sequence[bytes], rows: Integers) -> list[dict[str, Any]]:
        sizes = self.images[rows, 1:].tolist()
        # text, not bytes: it goes into json files, and both evaluators read it
        return [
            {"size": size, "counts": code.decode("ascii")} for size, code in zip(sizes, codes, strict=True)
        ]

    @property
    def classes(self) -> list[int]:
        """Head indices that occur in annotations or detections, ascending."""
        return [int(c) for c in np.union1d(self.annotation_labels[:, 0], self.detection_labels)]

    def coco_results(self, label_map: LabelMap | None = None) -> list[dict[str, Any]]:
        """Detections in COCO's results format, sorted by image id, values unrounded.

        Where masks are compared they stand in place of the boxes: with both, evaluators would take the
        boxes' areas for small, medium and large.

        Args:
            label_map: turns head indices into source category ids; None keeps head indices.

        Raises:
            ValueError: if a label has no class in the map.
        """
        ids = self._categories(label_map)
        name, shapes = "segmentation", self.detection_masks()
        if shapes is None:
            name, shapes = "bbox", self.detections[:, :4].tolist()
        images = self.images[self.detection_image, 0].tolist()
        rows = zip(
            images, self.detection_labels.tolist(), shapes, self.detections[:, 4].tolist(), strict=True
        )
        return [
            {"image_id": image, "category_id": ids[label], name: shape, "score": score}
            for image, label, shape, score in rows
        ]

    def ground_truth(self, label_map: LabelMap | None = None) -> dict[str, Any]:
        """Annotations as a COCO data set (`images`, `categories`, `annotations`), with masks where there are any.

        Annotation ids are 1, 2, ... in order of image id: pycocotools takes 0 for "not matched".
        """
        ids = self._categories(label_map)
        images = self.images[self.annotation_image, 0].tolist()
        rows = zip(images, self.annotation_labels.tolist(), self.annotations.tolist(), strict=True)
        annotations = [
            {
                "id": number,
                "image_id": image,
                "category_id": ids[label],
                "bbox": values[:4],
                "area": values[4],
                "iscrowd": crowd,
            }
            for number, (image, (label, crowd), values) in enumerate(rows, start=1)
        ]
        for row, mask in zip(annotations, self.annotation_masks() or (), strict=False):
            row["segmentation"] = mask
        heads = list(label_map.head_indices) if label_map else self.classes
        names = label_map.name_of_head if label_map else {}
        return {
            "images": self.image_rows(),
            "categories": [{"id": ids[head], "name": names.get(head, str(head))} for head in heads],
            "annotations": annotations,
        }

    def image_rows(self) -> list[dict[str, int]]:
        """The images as COCO lists them."""
        return [{"id": i, "height": h, "width": w} for i, h, w in self.images.tolist()]

    def _categories(self, label_map: LabelMap | None) -> Mapping[int, int]:
        if label_map is None:
            return {head: head for head in self.classes}
        unknown = sorted(set(self.classes) - set(label_map.source_of_head))
        if unknown:
            raise ValueError(
                f"labels {few(unknown)} are no classes of the label map with head indices "
                f"{few(label_map.head_indices)}; evaluate with the map that the data were read with"
            )
        return label_map.source_of_head


def taken(masks: MaskCodes, detections: Integers, annotations: Integers) -> MaskCodes:
    """The codes of some detections and annotations."""
    return MaskCodes(
        [masks.detections[row] for row in detections.tolist()],
        [masks.annotations[row] for row in annotations.tolist()],
    )


def _rows_of(images: Integers, counts: Integers) -> tuple[Integers, Integers]:
    """Flat rows of the chosen images in their order, and which of them owns each row."""
    starts, kept = (np.cumsum(counts) - counts)[images], counts[images]
    shift = np.repeat(starts - (np.cumsum(kept) - kept), kept)
    return np.arange(len(shift)) + shift, np.repeat(np.arange(len(images)), kept)


def few(values: Sequence[int]) -> str:
    """The first values, for a message."""
    return ", ".join(str(v) for v in values[:4]) + (", ..." if len(values) > 4 else "")


def protocol(backend: Evaluator = "hotcoco", iou_type: IouType = "bbox") -> dict[str, Any]:
    """Evaluator, version and settings of a score, as plain values. Scores compare only under equal ones."""
    return {
        "evaluator": backend,
        "version": version(backend),
        "iou_type": iou_type,
        "iou_thresholds": [round(float(t), 2) for t in IOUS],
        "recall_thresholds": len(RECALLS),
        "max_detections": list(MAX_DETECTIONS),
        "areas": {name: list(limits) for name, limits in AREAS.items()},
        "crowd": "ignored",
        "repeated_images": "dropped",
    }


_threads_of: int | None = None  # process in which hotcoco has started its threads


def refuse_lost_threads() -> None:
    """Hotcoco's threads do not come along when a process is forked: an evaluation would wait for them for ever.

    Raises:
        RuntimeError: this process was forked after they were started.
    """
    if _threads_of not in (None, os.getpid()):
        raise RuntimeError(
            "this process was forked from one that had evaluated, and the threads of the evaluator (hotcoco) do not "
            "come along: it would wait for them for ever; start processes anew, with Trainer(strategy='ddp') from a "
            "script, 'ddp_spawn', or multiprocessing.get_context('spawn'), or fork before anything is evaluated"
        )


def own_threads() -> None:
    """To be called before hotcoco is used; raises as `refuse_lost_threads` does."""
    global _threads_of
    refuse_lost_threads()
    _threads_of = os.getpid()


def run_evaluator(
    data: Collected, backend: Evaluator, areas: Mapping[str, tuple[float, float]], limits: Sequence[int]
) -> Any:
    """A COCOeval of either library after `evaluate` and `accumulate`; categories are head indices."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluator = _hotcoco(data) if backend == "hotcoco" else _pycocotools(data)
        evaluator.params.areaRng = [list(area) for area in areas.values()]
        evaluator.params.areaRngLbl = list(areas)
        evaluator.params.maxDets = list(limits)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def _hotcoco(data: Collected) -> Any:
    import hotcoco

    own_threads()
    masks = data.annotation_masks()
    truth = hotcoco.COCO.from_arrays(
        data.image_rows(),
        [{"id": c, "name": str(c)} for c in data.classes],
        data.images[data.annotation_image, 0],
        data.annotation_labels[:, 0],
        data.annotations[:, :4],
        ids=np.arange(1, len(data.annotations) + 1),
        area=data.annotations[:, 4],
        iscrowd=data.annotation_labels[:, 1].astype(bool),
        segmentation=None if masks is None else [*masks],
    )
    if data.masks is not None:
        return hotcoco.COCOeval(truth, truth.load_res(data.coco_results()), "segm")
    columns = (data.images[data.detection_image, 0], data.detections, data.detection_labels)
    return hotcoco.COCOeval(truth, truth.load_res(np.column_stack(columns).astype(np.float64)), "bbox")


def _pycocotools(data: Collected) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = COCO(), COCO()
    truth.dataset = data.ground_truth()
    # not loadRes: it fails on an empty list
    found.dataset = {key: truth.dataset[key] for key in ("images", "categories")}
    found.dataset["annotations"] = [
        result | {"id": number, "area": area, "iscrowd": 0}
        for number, (result, area) in enumerate(zip(data.coco_results(), _areas(data), strict=True), start=1)
    ]
    truth.createIndex()
    found.createIndex()
    return COCOeval(truth, found, data.iou_type)


def _areas(data: Collected) -> list[float]:
    """The area of each detection's mask, or else box, as pycocotools' loadRes computes it."""
    masks = data.detection_masks()
    if masks is None:
        return [float(w * h) for _, _, w, h, _ in data.detections.tolist()]
    from pycocotools import mask as coco_mask

    return [float(coco_mask.area(mask)) for mask in masks]  # of more than 255 at once it fails with numpy 2
