"""Map-style datasets: an index row to a `Sample`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.augmentations.chain import Augmentations, Watch
from datamodules.augmentations.libraries import AugmentationError
from datamodules.images.decoding import decode, decode_tensor
from datamodules.index import AnnotationIndex
from datamodules.loading.samplers import Key, Member
from datamodules.transforms.mixing import DenseO2O, GroupDraw, Objects
from datamodules.transforms.mosaic import MosaicPlan
from datamodules.transforms.plan import Plan
from datamodules.transforms.presets import TrainTransform, Transformed, TransformSchedule
from datamodules.transforms.targets import ImageTargets, resized_targets, training_targets, unit_boxes
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


class Drawn(NamedTuple):
    """What becomes of an image in an epoch, before any pixel is read."""

    seed: int  # of the image in its epoch
    transform: TrainTransform
    mosaic: MosaicPlan | None
    targets: ImageTargets  # of the image, or of the mosaic
    size: tuple[int, int]  # (h, w) of the same

    @property
    def plan(self) -> Plan:
        """Of the preset alone."""
        return self.transform.draw(self.size, self.targets.boxes_xyxy, self.seed, self.mosaic is not None)


class TrainingDataset(Dataset[Sample]):
    """Augmented images. dataset[(epoch, row)] depends on (seed, epoch, row) alone, mosaics included.

    A list of `Member`s gives images that are mixed with others of their groups; they depend on (seed, group) alone.
    """

    def __init__(
        self,
        index: AnnotationIndex,
        label_map: LabelMap,
        transforms: TransformSchedule,
        seed: int,
        truth: Truth | None = None,
        dense: DenseO2O | None = None,
        augmentations: Augmentations | None = None,
    ) -> None:
        self.index = index
        self._augmentations = augmentations
        self._label_map = label_map
        self._transforms = transforms
        self._seed = seed
        self._truth = truth or Truth()
        self._dense = dense

    def targets(self, row: int) -> ImageTargets:
        """The objects of an image before any transform."""
        return self._truth.targets(self.index, row, self._label_map)

    def __len__(self) -> int:
        return len(self.index)

    def final_size(self, key: Key) -> tuple[int, int]:
        """(h, w) of the image of dataset[key]; decodes nothing."""
        epoch, row = key
        return self._transforms.at(epoch).final_size(
            self.index.size(row % len(self)), derived_seed(self._seed, epoch, row)
        )

    def __getitem__(self, key: Key) -> Sample:
        row, out = key[1] % len(self), self.watched(key)
        return Sample(
            image=out.image,
            labels=out.labels,
            boxes=out.boxes,
            masks=out.masks,
            photometric=out.photometric,
            image_id=self.index.image_id(row),
            original_size=self.index.size(row),
        )

    def watched(self, key: Key, watch: Watch | None = None) -> Transformed:
        """What becomes of an image; `watch` sees every operation of the recipe's own list.

        Raises:
            AugmentationError: one of them cannot be used on this image; names both.
        """
        row, drawn = key[1] % len(self), self._drawn(key)
        image, mosaic = self._image(row, drawn), drawn.mosaic is not None
        if self._augmentations is None:
            return drawn.transform.apply(image, drawn.targets, drawn.plan)
        try:
            return self._augmentations(drawn.transform, image, drawn.targets, drawn.seed, mosaic, watch)
        except AugmentationError as error:
            where = self.index.images.where(self.index.files[row])
            raise AugmentationError(f"{where}: {error}") from error

    def _image(self, row: int, drawn: Drawn) -> Image.Image | Tensor:
        """The decoded image, or its mosaic."""
        backend = drawn.transform.input.backend
        if drawn.mosaic is None:
            return read_image(self.index, row, backend)
        tiles = {r: read_image(self.index, r, backend) for r in set(drawn.mosaic.rows)}
        return drawn.mosaic.image([tiles[r] for r in drawn.mosaic.rows])

    def __getitems__(self, keys: Sequence[Key] | Sequence[Member]) -> list[Sample]:
        """The images of a micro-batch; each is read once, also where several are mixed from it."""
        read = cache(self.__getitem__)
        objects = cache(self._objects)
        return [self._mixed(key, read, objects) if isinstance(key, Member) else read(key) for key in keys]

    def _drawn(self, key: Key) -> Drawn:
        epoch, number = key
        row, seed = number % len(self), derived_seed(self._seed, epoch, number)
        transform = self._transforms.at(epoch)
        mosaic = None if self._dense is None else self._dense.mosaic_at(epoch)
        tiles = None if mosaic is None else mosaic.draw(row, len(self), self.index.size, seed)
        if tiles is None:
            targets, size = self.targets(row), self.index.size(row)
        else:
            targets, size = tiles.targets([self.targets(r) for r in tiles.rows]), tiles.size
        return Drawn(seed, transform, tiles, targets, size)

    def _objects(self, key: Key) -> Objects:
        """The objects of dataset[key] with their areas in the annotations."""
        drawn = self._drawn(key)
        row = key[1] % len(self)
        rows = (row,) if drawn.mosaic is None else drawn.mosaic.rows
        every = [self.targets(row) for row in rows]
        labels = torch.cat([one.labels for one in every])
        areas = torch.cat([self._areas(row) for row in rows])
        # numbers in the place of labels: a transform drops objects, and says which only by their labels
        numbers = torch.arange(len(labels)).split([len(one.labels) for one in every])
        numbered = [one._replace(labels=own) for one, own in zip(every, numbers, strict=True)]
        whole = numbered[0] if drawn.mosaic is None else drawn.mosaic.targets(numbered)
        if self._augmentations is None:
            kept = drawn.transform.kept(whole, drawn.plan)
        else:  # a library's operation moves boxes only together with pixels
            image = self._image(row, drawn)
            _, kept = self._augmentations.pixels(
                drawn.transform, image, whole, drawn.seed, drawn.mosaic is not None
            )
        return Objects(labels[kept.labels], kept.boxes_xyxy, areas[kept.labels])

    def _areas(self, row: int) -> Tensor:
        """Of `targets(row)`, as the annotations have them."""
        every = self.index.objects(row)
        numbers = range(len(every.crowd))
        kept = training_targets(
            torch.from_numpy(every.boxes_xywh), numbers, every.crowd.tolist(), self.index.size(row)
        )
        return torch.from_numpy(every.areas)[kept.labels].double()

    def _mixed(
        self, member: Member, read: Callable[[Key], Sample], objects: Callable[[Key], Objects]
    ) -> Sample:
        keys = [(member.epoch, row) for row in member.rows]
        own = read(keys[member.place])
        seed = derived_seed(self._seed, member.epoch, -1, member.number)
        draw = None if self._dense is None else self._dense.draw(member.epoch, seed)
        if draw is None or len(keys) == 1:
            return own
        if draw.copy_blend is None:
            return _mixed_up(draw, own, read(keys[member.place - 1]))
        size = (own.image.shape[1], own.image.shape[2])
        pastes = draw.pastes(member.place, [objects(key) for key in keys], size)
        image = own.image.clone()
        for paste in pastes:
            there, here = paste.window(paste.target), paste.window(paste.source)
            piece = read(keys[paste.place]).image[:, here[0], here[1]]
            image[:, there[0], there[1]] = draw.blended(image[:, there[0], there[1]], piece)
        boxes = torch.tensor([paste.box_xyxy for paste in pastes], dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor([paste.label for paste in pastes], dtype=torch.int64)
        added = unit_boxes(ImageTargets(labels, boxes), size)
        return replace(
            own, image=image, labels=torch.cat([own.labels, labels]), boxes=torch.cat([own.boxes, added])
        )


def _mixed_up(draw: GroupDraw, own: Sample, other: Sample) -> Sample:
    """Mixup of two images; the objects of both count in full."""
    return replace(
        own,
        image=draw.blended(own.image, other.image),
        labels=torch.cat([own.labels, other.labels]),
        boxes=torch.cat([own.boxes, other.boxes]),
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
