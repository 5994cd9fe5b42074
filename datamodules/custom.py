"""Any folder of images and boxes, in any format of `datamodules.formats.detect`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.base import DetectionDataModule, LoadedData, refuse_tiles
from datamodules.formats.detect import Format, read
from datamodules.index import AnnotationIndex, Fault, concatenate
from datamodules.index.source import Source
from datamodules.loading.mask_truth import MaskTruth, bare_objects
from datamodules.loading.truth import Truth
from datamodules.shards.reader import is_address, local_path
from datamodules.splits import held_out
from datamodules.tiling.rules import TileSampling
from datamodules.transforms.mixing import DenseO2O
from datamodules.transforms.presets import LaterTransform, Photometric
from zoo.contract.preprocess import InputContract


class CustomDataModule(DetectionDataModule):
    """A user's own data set; classes are contiguous in the order of their source ids.

    Args:
        root: folder of the data set; for shards also an address (s3://..., https://...).
        format: `auto` detects it; else one of `datamodules.formats.detect.FORMATS`.
        train_split, eval_split: `auto`, or names of splits joined by `+`, e.g. `train+val`. `auto`
            trains on train and evaluates on val, or on test where there is no val.
        val_fraction: share of the training images to evaluate on where there is no other split.
        needs_train: if false, evaluation data without a train split are read too; that split is then empty.
        masks: also read the outlines of the objects, for networks with a mask head.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        input: InputContract,
        train_transform: str,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        seed: int,
        format: Format = "auto",
        train_split: str = "auto",
        eval_split: str = "auto",
        val_fraction: float = 0.1,
        needs_train: bool = True,
        masks: bool = False,
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
        super().__init__(
            input=input, train_transform=train_transform, batch_size=batch_size, eval_batch_size=eval_batch_size,
            num_workers=num_workers, seed=seed, later_transforms=later_transforms, flip_both=flip_both,
            min_box_side=min_box_side, dense_o2o=dense_o2o,
            photometric=photometric, skip_broken=skip_broken, limit_train=limit_train, limit_eval=limit_eval,
            bucketing=bucketing, augmentations=augmentations, balance=balance, tile_sampling=tile_sampling,
        )  # fmt: skip
        if masks:
            refuse_tiles(input)
        if masks and dense_o2o is not None:
            raise ValueError(
                "dense_o2o mixes objects by their boxes and has no rule for masks: true; leave one out"
            )
        self._masks = masks
        self._needs_train = needs_train
        self._root = str(root) if is_address(root) else local_path(root)
        self._format: Format = format
        self._train_split = train_split
        self._eval_split = eval_split
        self._val_fraction = val_fraction

    def load(self) -> LoadedData:
        """Detects the format, reads it, and gives each split its role.

        Raises:
            ValueError: if the layout is unknown or a split that was asked for does not exist.
        """
        source = read(self._root, self._format)
        if not self._needs_train and self._train_split == "auto" and "train" not in source.splits:
            nothing = replace(next(iter(source.splits.values())).take([]), faults=())
            source = replace(source, splits={"train": nothing, **source.splits})
        train = _joined(source, "train" if self._train_split == "auto" else self._train_split, "train_split")
        splits, notes = self._roles(source, train)
        bare = bare_objects(splits) if self._masks else ()
        return LoadedData(source.format, splits, source.label_map(), (*source.faults, *notes, *bare))

    def truth(self, split: str) -> Truth:
        """Boxes, and masks if `masks` is set."""
        return MaskTruth(self.skip_broken) if self._masks else Truth()

    def _roles(
        self, source: Source, train: AnnotationIndex
    ) -> tuple[dict[str, AnnotationIndex], list[Fault]]:
        if self._eval_split != "auto":
            splits = {"train": train, "val": _joined(source, self._eval_split, "eval_split")}
            if "test" in source.splits:
                splits["test"] = source.splits["test"]
            return splits, _shared_images(splits)
        evaluation = next((s for s in ("val", "test") if s in source.splits and len(source.splits[s])), None)
        if evaluation is None:
            kept, out = held_out(train, self._val_fraction, self.seed)
            note = _note(
                "no_val_split",
                f"there is no validation split, so {len(out)} of {len(train)} training images, drawn with "
                f"seed {self.seed}, are held out for evaluation; make a val split to choose them",
            )
            return {"train": kept, "val": out}, [note]
        splits = {"train": train, "val": source.splits[evaluation]}
        if evaluation == "val" and "test" in source.splits and len(source.splits["test"]):
            splits["test"] = source.splits["test"]
        notes = []
        if evaluation == "test":
            notes.append(
                _note("test_as_val", "there is no validation split, so the test split is evaluated on")
            )
        return splits, notes + _shared_images(splits)


def _note(kind: str, message: str) -> Fault:
    return Fault("warning", kind, ".", None, message)


def _joined(source: Source, names: str, argument: str) -> AnnotationIndex:
    parts = [n.strip() for n in names.split("+")]
    absent = [n for n in parts if n not in source.splits]
    if absent:
        raise ValueError(
            f"{argument} {names!r}: {source.root} has no split {', '.join(absent)}; it has "
            f"{', '.join(source.splits)}"
        )
    indices = [source.splits[n] for n in parts]
    return indices[0] if len(indices) == 1 else concatenate(indices)


def _shared_images(splits: dict[str, AnnotationIndex]) -> list[Fault]:
    """A warning if the splits as used share images; the reader reports images that the files' own splits share."""
    shared = len(set(splits["train"].files.tolist()) & set(splits["val"].files.tolist()))
    if not shared:
        return []
    return [
        _note(
            "train_in_val",
            f"{shared} images are trained and evaluated on; the score is not that of unseen data",
        )
    ]
