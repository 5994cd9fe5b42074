"""The datamodule that all data sets share: steps, loaders, label map, summary.

A subclass has a typed `__init__`, which is the recipe's schema, and says how its folder is read.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray

from datamodules.augmentations.chain import Augmentations
from datamodules.balance import Balance
from datamodules.images.decodable import corrupt_images, without
from datamodules.index import AnnotationIndex, Fault
from datamodules.loading.datasets import EvaluationDataset, TrainingDataset
from datamodules.loading.loaders import EvaluationLoader, StepLoader
from datamodules.loading.pictures import Pictures, TilePictures
from datamodules.loading.samplers import Bucketing, StepBatchSampler, padding_share
from datamodules.loading.tiled_evaluation import TiledEvaluationDataset
from datamodules.loading.truth import Truth
from datamodules.summary import DataSummary, summarize
from datamodules.tiling.items import TileItems
from datamodules.tiling.rules import TileSampling
from datamodules.transforms.mixing import DenseO2O
from datamodules.transforms.presets import (
    PRESETS,
    LaterTransform,
    Photometric,
    TransformSchedule,
    build_transform,
    schedule_transforms,
)
from zoo.contract.batch import Sample
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract

_FAULTS_SHOWN = 5
_PADDING_STEPS = 64  # over which the padding is measured for the log
_log = logging.getLogger(__name__)
MOST_WORKERS = 1024  # processes of a loader, on the largest machines


@dataclass(frozen=True)
class LoadedData:
    """What a subclass reads: the splits by their role, and how their classes map to the head.

    `splits` has `train` and `val`; `test` where the data set has one.
    """

    format: str
    splits: Mapping[str, AnnotationIndex]
    label_map: LabelMap
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class _Split:
    """How an optimizer step is cut over ranks and micro-batches."""

    batch_size: int
    accumulation: int
    world_size: int
    rank: int


class DetectionDataModule(LightningDataModule, ABC):
    """Loaders that deliver `zoo.contract.batch.Batch`.

    Args:
        input: how an image becomes the network's input.
        train_transform: name of a preset of `datamodules.transforms.presets`.
        batch_size: images of a micro-batch on one device, at most; see `plan_steps`.
        eval_batch_size: images of an evaluation batch.
        num_workers: worker processes of each loader; 0 loads in the main process.
        seed: of the order of the images and of every random draw of a transform.
        later_transforms: presets that take the place of `train_transform`, each from an epoch on.
        min_box_side: pixels; training objects with a smaller side are dropped; null for the preset's own limit.
        dense_o2o: mosaic, mixup and copy-blend; null for none.
        flip_both: also flip training images top to bottom.
        photometric: `worker` distorts colours in the loader, as published; `device` after the resize, on the
            device of the network: slightly other pixels, see `zoo.contract.photometric.distort_batch`.
        skip_broken: train without faulty images and objects instead of refusing the data; every image is decoded
            once before, to know which can be.
        limit_train, limit_eval: use the first so many images only.
        bucketing: steps (e.g. 64) within which images are reordered so that a step holds images of like
            final size: less padding, other batches than the published ones. Null for none.
        augmentations: operations before and after `train_transform`, ours, torchvision's and albumentations', see
            `datamodules.augmentations.block`; null for none.
        balance: share of the training images, e.g. 0.001; images of classes that fewer have are used more often, by
            the rule of `datamodules.balance`. Null for each image once.
        tile_sampling: what an epoch holds where `input.tiles` cuts images; null for the defaults.
    """

    def __init__(
        self,
        *,
        input: InputContract,
        train_transform: str,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        seed: int,
        later_transforms: list[LaterTransform] | None = None,
        min_box_side: float | None = None,
        dense_o2o: DenseO2O | None = None,
        flip_both: bool = False,
        photometric: Photometric = "worker",
        skip_broken: bool = False,
        limit_train: int | None = None,
        limit_eval: int | None = None,
        bucketing: int | None = None,
        augmentations: list[Any] | None = None,
        balance: float | None = None,
        tile_sampling: TileSampling | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.input = input
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        if not 0 <= num_workers <= MOST_WORKERS:
            raise ValueError(
                f"num_workers is {num_workers}; it is a number of processes, 0 to {MOST_WORKERS}"
            )
        self.num_workers = num_workers
        self.seed = seed
        self.skip_broken = skip_broken
        if bucketing is not None and bucketing < 1:
            raise ValueError(f"bucketing is {bucketing} steps; it must be at least 1, or null for none")
        self.bucketing = bucketing
        if tile_sampling is not None and input.tiles is None:
            raise ValueError(
                "tile_sampling belongs to input.tiles, and there are none; set their size, or leave it out"
            )
        self.tile_sampling = tile_sampling or TileSampling()
        self._tiles_logged = False
        self._limits = {"train": limit_train, "val": limit_eval, "test": limit_eval}
        first = build_transform(train_transform, input, flip_both, photometric, min_box_side)
        self._transforms = schedule_transforms(first, later_transforms or ())
        self.dense_o2o = dense_o2o
        if dense_o2o is not None:
            refuse_dense(dense_o2o, self._transforms)
        if photometric == "device" and input.channels != 3:
            raise ValueError(
                "photometric: device distorts RGB; with other input.channels use photometric: worker"
            )
        self.augmentations = None if augmentations is None else Augmentations.of(augmentations)
        if self.augmentations is not None:
            refuse_augmented(input, photometric, bucketing)
        if balance is not None and not 0 < balance <= 1:
            raise ValueError(
                f"balance is {balance}; it is a share of the images, above 0 and at most 1, or null"
            )
        self.balance = balance
        if bucketing is not None:
            for transform in self._transforms.all:
                transform.final_size((1, 1), 0)  # raises now, not at a step, if the size depends on boxes
        self._data: LoadedData | None = None
        self._split: _Split | None = None
        self._skip = 0
        self._epoch = 0
        self._faults_logged = False
        self._padding_counted = self._padding_logged = False
        self.padding_ratio: float | None = (
            None  # of the first steps; None until known, and where it is 1 by rule
        )

    @abstractmethod
    def load(self) -> LoadedData:
        """Reads the annotations; bad ones are reported as faults."""

    def truth(self, split: str) -> Truth:
        """The reader of a split's ground truth: boxes, unless a subclass reads more. Call `read` first."""
        return Truth()

    # ------------------------------------------------------------------ reading

    def read(self) -> LoadedData:
        """The annotations, read at the first call. Faults are not raised here but in `setup`."""
        if self._data is None:
            data = self.load()
            if self.skip_broken:
                data = _decodable(data)
            splits = {n: _limited(index, self._limits.get(n)) for n, index in data.splits.items()}
            self._data = replace(data, splits=splits)
        return self._data

    def setup(self, stage: str) -> None:
        """Reads the data, and raises if they have errors.

        Raises:
            ValueError: naming the first faults, unless `skip_broken` is set; also for an empty split.
        """
        data = self.read()
        errors = [f for f in data.faults if f.severity == "error"]
        if errors and not self.skip_broken:
            shown = "\n".join(f"  {f}" for f in errors[:_FAULTS_SHOWN])
            more = f"\n  ... and {len(errors) - _FAULTS_SHOWN} more" if len(errors) > _FAULTS_SHOWN else ""
            raise ValueError(
                f"the data set has {len(errors)} error{'' if len(errors) == 1 else 's'}:\n{shown}{more}\n"
                "Correct them (`zoo data check` lists all, and with --fix CLEAN it writes a copy without them), or "
                + (
                    "train without them: --data.skip_broken true"
                    if stage == "fit"
                    else "score a model without them: --skip-broken of zoo validate, test, evaluate and compare"
                )
            )
        kinds = Counter(f.kind for f in data.faults if f.severity != "note")
        if kinds and not self._faults_logged:
            counts = ", ".join(f"{number} x {kind}" for kind, number in kinds.items())
            _log.warning("faults in the data: %s; `zoo data check` lists them", counts)
            self._faults_logged = True
        if stage == "fit" and not len(data.splits["train"]):
            raise ValueError(f"the train split has no image; faults: {[str(f) for f in data.faults[:3]]}")

    @property
    def label_map(self) -> LabelMap:
        """Classes of the data set and their head indices."""
        return self.read().label_map

    def digest(self) -> str:
        """sha256 over file names, annotations and label map: equal for equal data in any place."""
        digest = hashlib.sha256()
        data = self.read()
        for name, index in sorted(data.splits.items()):
            digest.update(name.encode() + b"\0")
            index.update_digest(digest)
        digest.update(repr(data.label_map.to_dict()).encode())
        return digest.hexdigest()

    def replace_split(self, name: str, index: AnnotationIndex) -> None:
        """Takes some of the images of a split for it."""
        data = self.read()
        self._data = replace(data, splits={**data.splits, name: index})

    def image_names(self, image_ids: Sequence[int]) -> list[str]:
        """Files of training images, by their ids."""
        index = self.read().splits["train"]
        rows = {int(image_id): row for row, image_id in enumerate(index.image_ids)}
        return [str(index.path(rows[image_id])) for image_id in image_ids if image_id in rows]

    def summary(self) -> DataSummary:
        """Splits, classes, faults."""
        data = self.read()
        return summarize(data.format, data.splits, data.label_map, data.faults)

    @cached_property
    def tile_items(self) -> TileItems | None:
        """The tiles and whole images of an epoch; None where images are not cut."""
        if self.input.tiles is None:
            return None
        index = self.read().splits["train"]
        return TileItems(index, self.input.tiles, self.tile_sampling, self.seed, self._repeats_of_images)

    # ------------------------------------------------------------------ steps

    def plan_steps(self, global_batch_size: int, world_size: int, rank: int) -> int:
        """Cuts steps of `global_batch_size` images into the largest micro-batches that `batch_size` allows.

        Returns:
            the micro-batches that one device accumulates per step.

        Raises:
            ValueError: if no cut keeps the number, or the training set is smaller than a step.
        """
        if global_batch_size < 1 or global_batch_size % world_size:
            raise ValueError(
                f"global_batch_size {global_batch_size} cannot be split over {world_size} devices; it must "
                f"be a multiple of {world_size}: change the number of devices or the recipe's number"
            )
        num_images = self.images_of_epoch
        if num_images < global_batch_size:
            what = "images" if self.input.tiles is None else "tiles and whole images an epoch"
            raise ValueError(
                f"the training set has {num_images} {what}, fewer than one step of global_batch_size "
                f"{global_batch_size}; add images or lower global_batch_size"
            )
        per_device = global_batch_size // world_size
        size = next(b for b in range(min(self.batch_size, per_device), 0, -1) if per_device % b == 0)
        self._split = _Split(size, per_device // size, world_size, rank)
        return self._split.accumulation

    @cached_property
    def repeats(self) -> Balance | None:
        """What `balance` makes of the images of an epoch, or of its tiles; None where nothing is repeated."""
        found, items = self._repeats_of_images, self.tile_items
        return found if found is None or items is None else replace(found, factors=items.factors)

    @cached_property
    def _repeats_of_images(self) -> Balance | None:
        if self.balance is None:
            return None
        found = Balance.of(self.read().splits["train"], self.balance)
        return found if found.rare else None

    @property
    def images_of_epoch(self) -> int:
        """Training images of an epoch, repeats or tiles included."""
        if self.repeats is not None:
            return self.repeats.num_images
        return len(self.read().splits["train"] if self.tile_items is None else self.tile_items)

    @property
    def micro_batches(self) -> tuple[int, int]:
        """(micro-batches of a step on one device, images of each), as `plan_steps` has cut it."""
        split = self._split
        return (1, self.batch_size) if split is None else (split.accumulation, split.batch_size)

    def skip_batches(self, n: int) -> None:
        """Makes the next training iterator skip its first `n` micro-batches, which were used before a resume."""
        if n < 0:
            raise ValueError(f"cannot skip {n} batches")
        self._skip = n

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next training iterator where there is no trainer to ask."""
        self._epoch = epoch

    def _current_epoch(self) -> int:
        return int(self.trainer.current_epoch) if self.trainer is not None else self._epoch

    def _take_skip(self) -> int:
        skip, self._skip = self._skip, 0
        return skip

    # ------------------------------------------------------------------ loaders

    def training_dataset(self) -> TrainingDataset:
        """Augmented training images, indexed by (epoch, row)."""
        return self._training_dataset(self.dense_o2o)

    def _training_dataset(self, dense: DenseO2O | None) -> TrainingDataset:
        known, items = (self.read().splits["train"], self.label_map, self.truth("train")), self.tile_items
        pictures = Pictures(*known) if items is None else TilePictures(*known, items)
        return TrainingDataset(pictures, self._transforms, self.seed, dense, self.augmentations)

    def train_dataloader(self) -> StepLoader:
        """Micro-batches with the facts of their step.

        Without `plan_steps` a step is one micro-batch of `batch_size` on one device.
        """
        dataset = self.training_dataset()
        sampler = self._sampler(dataset)
        self._log_padding(sampler, dataset)
        if self.tile_items is not None and not self._tiles_logged:
            self._tiles_logged = True
            for line in self.tile_items.lines():
                _log.info("%s", line)
        return StepLoader(
            dataset,
            sampler,
            seed=self.seed,
            num_workers=self.num_workers,
            pad_to_step=self.input.padding == "step",
            current_epoch=self._current_epoch,
            take_skip=self._take_skip,
        )

    def _sampler(self, dataset: TrainingDataset) -> StepBatchSampler:
        split = self._split or _Split(min(self.batch_size, max(1, len(dataset))), 1, 1, 0)
        return StepBatchSampler(
            len(dataset),
            self.seed,
            batch_size=split.batch_size,
            accumulation=split.accumulation,
            world_size=split.world_size,
            rank=split.rank,
            bucketing=None if self.bucketing is None else Bucketing(self.bucketing, dataset.final_size),
            group=self.dense_o2o.group if self.dense_o2o is not None and self.dense_o2o.mixes else None,
            balance=self.repeats,
        )

    def augmented(self, row: int, epoch: int) -> Sample:
        """What the training makes of an image in an epoch, mixed with the others of its group; resized, not normalised.

        An image that the epoch leaves out, at its end, stands alone.
        """
        dataset = self.training_dataset()
        sampler = self._sampler(dataset)
        group = None if self.dense_o2o is None or not self.dense_o2o.mixes else self.dense_o2o.group
        if group is not None:
            for step, rows in enumerate(sampler.order.steps(epoch)):
                if row in rows:
                    [sample] = dataset.__getitems__(
                        [sampler.members(epoch, step, rows, group)[rows.index(row)]]
                    )
                    return sample
        return dataset[(epoch, row)]

    def _log_padding(self, sampler: StepBatchSampler, dataset: TrainingDataset) -> None:
        """Logs the share of padding at the start of epoch 0, if there is any and final sizes are known by then."""
        if (
            not self._padding_counted
            and self.input.resize != "stretch"
            and not self._transforms.first.preset.needs_boxes
            and self.augmentations is None
        ):
            self._padding_counted = True
            share = padding_share(sampler, dataset.final_size, 0, _PADDING_STEPS)
            if share.useful:
                self.padding_ratio = share.ratio
                how = "no bucketing" if self.bucketing is None else f"bucketing over {self.bucketing} steps"
                _log.info(
                    "padding: %.2f pixels are computed for each pixel of an image (%s)", share.ratio, how
                )
        logger = None if self.trainer is None else self.trainer.logger  # the preflight has none
        if self.padding_ratio is not None and logger is not None and not self._padding_logged:
            self._padding_logged = True
            logger.log_metrics({"data/padding_ratio": self.padding_ratio}, step=0)

    def val_dataloader(self) -> EvaluationLoader:
        """The validation split."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> EvaluationLoader:
        """The test split, or the validation split if there is none."""
        return self._evaluation_loader("test" if "test" in self.read().splits else "val")

    def _evaluation_loader(self, name: str) -> EvaluationLoader:
        index = self.read().splits[name]
        if not len(index):
            raise ValueError(f"the {name} split has no image to evaluate")
        trainer = self.trainer
        world, rank = (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)
        known = (index, self.label_map, self.input, self.truth(name))
        dataset = (
            EvaluationDataset(*known)
            if self.input.tiles is None
            else TiledEvaluationDataset(*known, self.tile_sampling.visible)
        )
        return EvaluationLoader(dataset, self.eval_batch_size, self.num_workers, world, rank)

    # ------------------------------------------------------------------ preflight

    def strongest_epoch(self) -> int:
        """The first epoch that augments most: what a picture of training images has to show."""

        def strength(epoch: int) -> tuple[int, bool, bool]:
            preset = self._transforms.at(epoch).preset
            dense = 0 if self.dense_o2o is None else self.dense_o2o.count_at(epoch)
            return dense, preset.needs_boxes, preset.distorts

        changes = [0, *(begin for begin, _ in self._transforms.later)]
        return max(sorted({*changes, *(self.dense_o2o.begins if self.dense_o2o else ())}), key=strength)

    def most_objects(self) -> int:
        """The most objects that any image of any split has; a network cannot find more than it has queries."""
        if self.tile_items is not None:
            return self.tile_items.counts.fullest  # whole images show what is larger than a tile
        splits = self.read().splits.values()
        return max((int(_objects_of_images(index).max(initial=0)) for index in splits), default=0)

    def dropped_object_share(self, num_images: int) -> tuple[int, int]:
        """(dropped, total) objects of the first images of epoch 0: those that the training transform drops."""
        dataset = self._training_dataset(None)
        rows = np.linspace(0, len(dataset) - 1, min(num_images, len(dataset)), dtype=np.int64).tolist()
        total = sum(len(dataset.targets(row).labels) for row in rows)
        kept = sum(len(dataset[(0, row)].labels) for row in rows)
        return total - kept, total


def refuse_augmented(input: InputContract, photometric: Photometric, bucketing: int | None) -> None:
    """Raises ValueError for options that own operations do not go with."""
    if photometric == "device":
        raise ValueError(
            "photometric: device would distort colours after all augmentations, whatever their order; use "
            "photometric: worker"
        )
    if bucketing is not None and input.resize != "stretch":
        raise ValueError(
            "bucketing sorts images by their final size, and augmentations may change it when they are carried out; "
            "use resize: stretch, or leave one of the two out"
        )


def refuse_tiles(input: InputContract) -> None:
    """Raises ValueError where images of masks or segments would be cut: only boxes are merged over seams."""
    if input.tiles is not None:
        raise ValueError(
            "input.tiles cut images, and over the seams only boxes are merged, not masks; leave tiles out, or train a "
            "model without masks"
        )


def refuse_dense(dense: DenseO2O, transforms: TransformSchedule) -> None:
    """Raises ValueError where images cannot be mixed as `dense` says."""
    first = transforms.first
    if first.input.resize != "stretch":
        raise ValueError(
            f"dense_o2o mixes images of one size, and input.resize is {first.input.resize}; use resize: stretch"
        )
    if dense.mosaic is not None and first.input.channels != 3:
        raise ValueError(
            f"dense_o2o.mosaic is made of RGB images, and input.channels is {first.input.channels}"
        )
    if dense.mosaic is not None:
        begin, end = dense.mosaic.epochs
        for transform in transforms.between(begin, end):
            if transform.preset.draw_mosaic is None:
                having = ", ".join(name for name, preset in PRESETS.items() if preset.draw_mosaic)
                raise ValueError(
                    f"dense_o2o.mosaic.epochs [{begin}, {end}] have train_transform {transform.name!r}, which makes "
                    f"no mosaics; these do: {having}"
                )
    if dense.mixes and first.photometric == "device":
        raise ValueError(
            "photometric: device would distort images that dense_o2o has mixed; use photometric: worker"
        )


def _decodable(data: LoadedData) -> LoadedData:
    """Without the images that cannot be decoded, which become warnings; those in shards were decoded before."""
    plain = {name: index for name, index in data.splits.items() if index.store is None}
    broken = corrupt_images(plain)
    left_out = [
        replace(fault, severity="warning", message=f"{fault.message}; left out")
        for faults in broken.values()
        for fault in faults.values()
    ]
    return replace(data, splits=without(data.splits, broken), faults=(*data.faults, *left_out))


def _limited(index: AnnotationIndex, limit: int | None) -> AnnotationIndex:
    return index if limit is None or limit >= len(index) else index.take(np.arange(limit))


def _objects_of_images(index: AnnotationIndex) -> NDArray[np.int64]:
    """[N] objects of each image, crowds left out."""
    row = index.image_rows
    return np.bincount(row[~index.crowd], minlength=len(index))
