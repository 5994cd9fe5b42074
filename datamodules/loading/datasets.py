"""Map-style datasets: an index row to a `Sample`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from datamodules.augmentations.chain import Augmentations, Watch
from datamodules.augmentations.libraries import AugmentationError
from datamodules.index import AnnotationIndex
from datamodules.loading.pictures import Pictures, Pixels, read_image
from datamodules.loading.samplers import EvaluationBatchSampler, Key, Member
from datamodules.loading.truth import Truth
from datamodules.transforms.mixing import DenseO2O, GroupDraw, Objects
from datamodules.transforms.mosaic import MosaicPlan
from datamodules.transforms.plan import Plan
from datamodules.transforms.presets import TrainTransform, Transformed, TransformSchedule
from datamodules.transforms.targets import ImageTargets, resized_targets, unit_boxes
from zoo.contract.batch import Sample
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.contract.seeds import derived_seed

_REGION = -1  # in the place of a label, of what is neither object nor background


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
        pictures: Pictures,
        transforms: TransformSchedule,
        seed: int,
        dense: DenseO2O | None = None,
        augmentations: Augmentations | None = None,
    ) -> None:
        self.pictures = pictures
        self.index = pictures.index
        self._augmentations = augmentations
        self._transforms = transforms
        self._seed = seed
        self._dense = dense

    def targets(self, row: int) -> ImageTargets:
        """The objects of an image of epoch 0 before any transform."""
        return self.pictures.targets(0, row)

    def __len__(self) -> int:
        return len(self.pictures)

    def final_size(self, key: Key) -> tuple[int, int]:
        """(h, w) of the image of dataset[key]; decodes nothing."""
        epoch, row = key
        return self._transforms.at(epoch).final_size(
            self.pictures.size(epoch, row % len(self)), derived_seed(self._seed, epoch, row)
        )

    def __getitem__(self, key: Key) -> Sample:
        epoch, row = key[0], key[1] % len(self)
        out = self.watched(key)
        return Sample(
            image=out.image,
            labels=out.labels,
            boxes=out.boxes,
            masks=out.masks,
            photometric=out.photometric,
            ignored=out.ignored,
            image_id=self.index.image_id(self.pictures.row(epoch, row)),
            original_size=self.pictures.size(epoch, row),
        )

    def watched(self, key: Key, watch: Watch | None = None) -> Transformed:
        """What becomes of an image; `watch` sees every operation of the recipe's own list.

        Raises:
            AugmentationError: one of them cannot be used on this image; names both.
        """
        epoch, row, drawn = key[0], key[1] % len(self), self._drawn(key)
        image, mosaic = self._image(epoch, row, drawn), drawn.mosaic is not None
        regions = self._regions(epoch, row, drawn)
        if self._augmentations is None:
            plan = drawn.plan  # drawn anew at every question
            out = drawn.transform.apply(image, drawn.targets, plan)
            if regions is None:
                return out
            return out._replace(ignored=unit_boxes(plan.regions(regions), plan.size))
        try:
            if regions is None:
                return self._augmentations(drawn.transform, image, drawn.targets, drawn.seed, mosaic, watch)
            # a library's operation moves boxes only together with pixels, so regions go along as objects
            every = ImageTargets(
                torch.cat([drawn.targets.labels, regions.labels]),
                torch.cat([drawn.targets.boxes_xyxy, regions.boxes_xyxy]),
            )
            out = self._augmentations(drawn.transform, image, every, drawn.seed, mosaic, watch)
        except AugmentationError as error:
            where = self.index.images.where(self.index.files[self.pictures.row(epoch, row)])
            raise AugmentationError(f"{where}: {error}") from error
        region = out.labels == _REGION
        return out._replace(labels=out.labels[~region], boxes=out.boxes[~region], ignored=out.boxes[region])

    def _regions(self, epoch: int, row: int, drawn: Drawn) -> ImageTargets | None:
        """What is neither object nor background, in pixels before the transform; None where there is none by rule."""
        rows = (row,) if drawn.mosaic is None else drawn.mosaic.rows
        found = [self.pictures.ignored(epoch, one) for one in rows]
        boxes = [region for region in found if region is not None]
        if len(boxes) < len(found):
            return None
        every = [ImageTargets(torch.full((len(one),), _REGION), one) for one in boxes]
        return every[0] if drawn.mosaic is None else drawn.mosaic.targets(every)

    def _image(self, epoch: int, row: int, drawn: Drawn) -> Pixels:
        """The decoded image, or its mosaic."""
        contract, pictures = drawn.transform.input, self.pictures
        if drawn.mosaic is None:
            return pictures.image(epoch, row, contract)
        tiles = {r: pictures.image(epoch, r, contract) for r in set(drawn.mosaic.rows)}
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
        of_epoch, size_of = partial(self.pictures.targets, epoch), partial(self.pictures.size, epoch)
        tiles = None if mosaic is None else mosaic.draw(row, len(self), size_of, seed)
        if tiles is None:
            targets, size = of_epoch(row), size_of(row)
        else:
            targets, size = tiles.targets([of_epoch(r) for r in tiles.rows]), tiles.size
        return Drawn(seed, transform, tiles, targets, size)

    def _objects(self, key: Key) -> Objects:
        """The objects of dataset[key] with their areas in the annotations."""
        drawn = self._drawn(key)
        epoch, row = key[0], key[1] % len(self)
        rows = (row,) if drawn.mosaic is None else drawn.mosaic.rows
        every = [self.pictures.targets(epoch, one) for one in rows]
        labels = torch.cat([one.labels for one in every])
        areas = torch.cat([self.pictures.areas(epoch, one) for one in rows])
        # numbers in the place of labels: a transform drops objects, and says which only by their labels
        numbers = torch.arange(len(labels)).split([len(one.labels) for one in every])
        numbered = [one._replace(labels=own) for one, own in zip(every, numbers, strict=True)]
        whole = numbered[0] if drawn.mosaic is None else drawn.mosaic.targets(numbered)
        if self._augmentations is None:
            kept = drawn.transform.kept(whole, drawn.plan)
        else:  # a library's operation moves boxes only together with pixels
            image = self._image(epoch, row, drawn)
            _, kept = self._augmentations.pixels(
                drawn.transform, image, whole, drawn.seed, drawn.mosaic is not None
            )
        return Objects(labels[kept.labels], kept.boxes_xyxy, areas[kept.labels])

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
        )  # what is ignored stays: a piece over it is an object and matched


def _mixed_up(draw: GroupDraw, own: Sample, other: Sample) -> Sample:
    """Mixup of two images; the objects of both count in full."""
    return replace(
        own,
        image=draw.blended(own.image, other.image),
        labels=torch.cat([own.labels, other.labels]),
        boxes=torch.cat([own.boxes, other.boxes]),
        ignored=None
        if own.ignored is None or other.ignored is None
        else torch.cat([own.ignored, other.ignored]),
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

    def batches(self, batch_size: int, world_size: int, rank: int) -> EvaluationBatchSampler:
        """What a rank evaluates together."""
        return EvaluationBatchSampler(len(self), batch_size, world_size, rank)

    def __getitem__(self, row: int) -> Sample:
        size = self.index.size(row)
        image = self._input.resize_image(read_image(self.index, row, self._input))
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
