"""COCO panoptic 2017, and any folder in its layout: things and stuff, with a mask each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from datamodules.base import DetectionDataModule, LoadedData, refuse_tiles
from datamodules.formats import coco_panoptic
from datamodules.images.id_maps import PngFolder
from datamodules.index import AnnotationIndex
from datamodules.loading.mask_truth import missing_outlines
from datamodules.loading.panoptic_truth import PanopticTruth
from datamodules.loading.truth import Truth
from datamodules.transforms.presets import LaterTransform
from zoo.contract.preprocess import InputContract


class CocoPanopticDataModule(DetectionDataModule):
    """Panoptic data: `Targets.masks` in training, `Batch.panoptic` in evaluation.

    Segments of stuff and crowds are trained on like any other.

    Args:
        root: folder with annotations/panoptic_<split>.json, annotations/panoptic_<split>/*.png and the images.
        labels: `category_id` (head index = category id, with holes) or `contiguous`.
        num_classes: width of a head on category ids; null for the highest id + 1.
        ap_objects: whose box and mask AP is measured: `instances`, the objects of
            annotations/instances_<split>.json, as published; or `panoptic`, the segments of things.
        train_split, eval_split: names of the splits.
        masks: whether training gets the masks; false for a network without a mask head, which needs boxes alone.
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
        num_classes: int | None = None,
        ap_objects: Literal["instances", "panoptic"] = "panoptic",
        train_split: str = "train2017",
        eval_split: str = "val2017",
        masks: bool = True,
        later_transforms: list[LaterTransform] | None = None,
        flip_both: bool = False,
        skip_broken: bool = False,
        limit_train: int | None = None,
        limit_eval: int | None = None,
        bucketing: int | None = None,
        augmentations: list[Any] | None = None,
        balance: float | None = None,
    ) -> None:
        super().__init__(
            input=input, train_transform=train_transform, batch_size=batch_size, eval_batch_size=eval_batch_size,
            num_workers=num_workers, seed=seed, later_transforms=later_transforms, flip_both=flip_both,
            skip_broken=skip_broken, limit_train=limit_train, limit_eval=limit_eval, bucketing=bucketing,
            augmentations=augmentations, balance=balance,
        )  # fmt: skip
        refuse_tiles(input)
        self._root = Path(root).expanduser().resolve()
        self._labels: Literal["contiguous", "category_id"] = labels
        self._num_classes = num_classes
        self._names = {"train": train_split, "val": eval_split}
        self._masks = masks
        self._ap_objects: Literal["instances", "panoptic"] = ap_objects
        self._pngs: dict[str, PngFolder] = {}
        self._instances: AnnotationIndex | None = None

    def load(self) -> LoadedData:
        """Reads both files; PNG files are only looked for, and read when their image is.

        Raises:
            ValueError: if a file of the layout is missing.
        """
        files = {role: self._file(name) for role, name in self._names.items()}
        source = coco_panoptic.assemble(self._root, files, verify=False)
        self._pngs = dict(source.pngs)
        label_map = source.panoptic_label_map(self._labels, self._num_classes)
        faults = source.faults
        if self._ap_objects == "instances":
            file = files["val"].with_name(files["val"].name.replace("panoptic_", "instances_", 1))
            self._instances = coco_panoptic.read_instances(self._root, file, source, "val")
            faults += [*self._instances.faults, *missing_outlines(self._instances, crowds=True)]
        return LoadedData("coco_panoptic", source.splits, label_map, tuple(faults))

    def _file(self, split: str) -> Path:
        places = [folder / f"panoptic_{split}.json" for folder in (self._root / "annotations", self._root)]
        found = next((p for p in places if p.is_file() and p.with_suffix("").is_dir()), None)
        if found is None:
            raise ValueError(
                f"{self._root} lacks annotations/panoptic_{split}.json with the folder panoptic_{split} of PNG "
                "files beside it; set `root` to the folder, train_split and eval_split to the splits in it"
            )
        return found

    def truth(self, split: str) -> Truth:
        """Masks and segments from the PNG files."""
        self.read()
        instances = self._instances if split == "val" else None
        return PanopticTruth(self._pngs[split], self.skip_broken, instances, self._masks)
