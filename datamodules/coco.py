"""COCO 2017: annotations/instances_{train,val}2017.json, train2017/, val2017/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from datamodules.base import DetectionDataModule, LoadedData, refuse_tiles
from datamodules.formats import coco, shards
from datamodules.images.files import ImageFolder
from datamodules.index import AnnotationIndex
from datamodules.index.growing_columns import Scratch
from datamodules.index.source import Source, split_of
from datamodules.kept.large import keep_layout
from datamodules.loading.mask_truth import MaskTruth, bare_objects
from datamodules.loading.truth import Truth
from datamodules.shards.reader import is_address, local_path
from datamodules.tiling.rules import TileSampling
from datamodules.transforms.mixing import DenseO2O
from datamodules.transforms.presets import LaterTransform, Photometric
from zoo.contract.preprocess import InputContract


class CocoDataModule(DetectionDataModule):
    """The COCO layout, with either of the two published label spaces.

    Args:
        root: folder with annotations/ and one image folder a split; or shards of it, also at an address.
        labels: `contiguous` (80 classes) or `category_id` (91, the raw ids with their holes).
        train_split, eval_split: names of the image folder and of instances_<split>.json.
        masks: also read the outlines of the objects, for networks with a mask head.
    """

    def __init__(
        self,
        *,
        root: str,
        labels: Literal["contiguous", "category_id"],
        input: InputContract,
        train_transform: str,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        seed: int,
        train_split: str = "train2017",
        eval_split: str = "val2017",
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
        self._root = root if is_address(root) else local_path(root)
        self._labels: Literal["contiguous", "category_id"] = labels
        self._names = {"train": train_split, "val": eval_split}

    def load(self) -> LoadedData:
        """Reads both annotation files; sizes of images are taken from them, not from the images.

        Raises:
            ValueError: if a file of the layout is missing.
        """
        if isinstance(self._root, str) or shards.is_sharded(self._root):
            return self._from_shards(self._root)
        files = {
            role: self._root / "annotations" / f"instances_{name}.json" for role, name in self._names.items()
        }
        folders = {role: self._root / name for role, name in self._names.items()}
        absent = [
            str(p.relative_to(self._root)) for p in (*files.values(), *folders.values()) if not p.exists()
        ]
        if absent:
            raise ValueError(
                f"{self._root} lacks {', '.join(sorted(set(absent)))}; set `root` to the COCO folder, "
                "train_split and eval_split to the splits in it"
            )
        root = self._root

        def build(scratch: Scratch) -> Source:
            loaded = {file: coco.load(file, scratch) for file in dict.fromkeys(files.values())}
            images = {file: ImageFolder(folders[role]) for role, file in files.items()}
            own = {role: [file] for role, file in files.items()}
            return coco.assemble("coco", root, own, images, loaded, verify_sizes=False)

        way = ("coco layout", root, *self._names.items())
        source = keep_layout(way, list(files.values()), list(folders.values()), build)
        return self._loaded(source, source.splits)

    def _from_shards(self, root: Path | str) -> LoadedData:
        source = shards.read(root)
        splits = {}
        for role, name in self._names.items():
            known = name if name in source.splits else split_of(name)
            if known is None or known not in source.splits:
                raise ValueError(
                    f"{root} has no split {name}; it has {', '.join(source.splits)}: set train_split and "
                    "eval_split to those"
                )
            splits[role] = source.splits[known]
        return self._loaded(source, splits)

    def _loaded(self, source: Source, splits: Mapping[str, AnnotationIndex]) -> LoadedData:
        faults = [*source.faults, *(bare_objects(splits) if self._masks else ())]
        return LoadedData("coco", splits, source.label_map(self._labels), tuple(faults))

    def truth(self, split: str) -> Truth:
        """Boxes, and masks if `masks` is set."""
        return MaskTruth(self.skip_broken) if self._masks else Truth()
