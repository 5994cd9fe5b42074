"""Map-style datasets: an index row to a `Sample`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.images.decoding import decode, decode_tensor
from datamodules.index import AnnotationIndex
from datamodules.loading.samplers import Key
from datamodules.transforms.presets import TransformSchedule
from datamodules.transforms.targets import ImageTargets, resized_targets, training_targets
from zoo.contract.batch import RLE, Annotations, Sample
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract, ResizeBackend
from zoo.contract.seeds import derived_seed
from zoo.contract.segments import PanopticSegmentation


def read_targets(index: AnnotationIndex, row: int, label_map: LabelMap) -> ImageTargets:
    """Training targets of an image, labels as head indices."""
    objects = index.objects(row)
    return training_targets(
        torch.from_numpy(objects.boxes_xywh),
        _head_indices(objects.source_ids, label_map),
        objects.crowd.tolist(),
        index.size(row),
    )


def read_image(index: AnnotationIndex, row: int, backend: ResizeBackend) -> Image.Image | Tensor:
    """The decoded image, RGB, in the frame of its boxes: a [3, h, w] uint8 tensor, or PIL's for `pil`."""
    read = decode if backend == "pil" else decode_tensor
    return read(index.images, index.files[row], index.image_id(row), index.size(row))


def _head_indices(source_ids: np.ndarray, label_map: LabelMap) -> list[int]:
    return [label_map.head_of_source[i] for i in source_ids.tolist()]


def read_annotations(index: AnnotationIndex, row: int, label_map: LabelMap) -> Annotations:
    """What COCO evaluation needs, as the annotation file has it; without masks."""
    objects = index.objects(row)
    return Annotations(
        boxes_xywh=torch.from_numpy(objects.boxes_xywh),
        areas=torch.from_numpy(objects.areas),
        labels=torch.tensor(_head_indices(objects.source_ids, label_map), dtype=torch.int64),
        crowd=torch.from_numpy(objects.crowd),
        counts=(len(objects.source_ids),),
    )


def with_codes(every: Annotations, kept: list[int], codes: Iterable[RLE]) -> Annotations:
    """The objects `kept` of an image, with a mask for each as COCO's run-length code."""
    return Annotations(
        every.boxes_xywh[kept], every.areas[kept], every.labels[kept], every.crowd[kept], (len(kept),), tuple(codes)
    )  # fmt: skip


class Evaluated(NamedTuple):
    """What evaluation needs to know about an image."""

    targets: ImageTargets  # without masks or with, which are not used
    annotations: Annotations
    panoptic: PanopticSegmentation | None = None


@dataclass(frozen=True)
class Truth:
    """Reads the ground truth of an image: boxes; subclasses also read masks or segments. Its pickle is small."""

    def targets(self, index: AnnotationIndex, row: int, label_map: LabelMap) -> ImageTargets:
        """Training targets of an image, labels as head indices."""
        return read_targets(index, row, label_map)

    def evaluated(self, index: AnnotationIndex, row: int, label_map: LabelMap) -> Evaluated:
        """What evaluation needs to know about an image."""
        targets = read_targets(index, row, label_map)
        return Evaluated(targets, read_annotations(index, row, label_map))


class TrainingDataset(Dataset[Sample]):
    """Augmented images. dataset[(epoch, row)] depends on (seed, epoch, row) alone."""

    def __init__(
        self,
        index: AnnotationIndex,
        label_map: LabelMap,
        transforms: TransformSchedule,
        seed: int,
        truth: Truth | None = None,
    ) -> None:
        self.index = index
        self._label_map = label_map
        self._transforms = transforms
        self._seed = seed
        self._truth = truth or Truth()

    def targets(self, row: int) -> ImageTargets:
        """The objects of an image before any transform."""
        return self._truth.targets(self.index, row, self._label_map)

    def __len__(self) -> int:
        return len(self.index)

    def final_size(self, key: Key) -> tuple[int, int]:
        """(h, w) of the image of dataset[key]; decodes nothing."""
        epoch, row = key
        return self._transforms.at(epoch).final_size(
            self.index.size(row), derived_seed(self._seed, epoch, row)
        )

    def __getitem__(self, key: Key) -> Sample:
        epoch, row = key
        targets = self.targets(row)
        seed = derived_seed(self._seed, epoch, row)
        transform = self._transforms.at(epoch)
        plan = transform.draw(self.index.size(row), targets.boxes_xyxy, seed)
        image = read_image(self.index, row, transform.input.backend)
        out = transform.apply(image, targets, plan)
        return Sample(
            image=out.image,
            labels=out.labels,
            boxes=out.boxes,
            masks=out.masks,
            photometric=out.photometric,
            image_id=self.index.image_id(row),
            original_size=self.index.size(row),
        )


class EvaluationDataset(Dataset[Sample]):
    """Images after the input contract's resize, with the annotations as the file has them."""

    def __init__(
        self,
        index: AnnotationIndex,
        label_map: LabelMap,
        input: InputContract,
        truth: Truth | None = None,
    ) -> None:
        self.index = index
        self._label_map = label_map
        self._input = input
        self._truth = truth or Truth()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> Sample:
        size = self.index.size(row)
        image = self._input.resize_image(read_image(self.index, row, self._input.backend))
        known = self._truth.evaluated(self.index, row, self._label_map)
        labels, boxes = resized_targets(known.targets, size, (image.shape[1], image.shape[2]), min_size=0.0)
        return Sample(
            image,
            labels,
            boxes,
            self.index.image_id(row),
            size,
            annotations=known.annotations,
            panoptic=known.panoptic,
        )
