"""Objects365 v2: train/ and val/, each with its zhiyuan_objv2_<split>.json and patches of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from datamodules.base import DetectionDataModule, LoadedData
from datamodules.formats import objects365, shards
from datamodules.index import Fault
from datamodules.index.growing_columns import Scratch
from datamodules.index.source import Source
from datamodules.kept.large import keep_layout, keep_tree
from datamodules.shards.reader import is_address, local_path
from datamodules.transforms.mixing import DenseO2O
from datamodules.transforms.presets import LaterTransform, Photometric
from zoo.contract.preprocess import InputContract


class Objects365DataModule(DetectionDataModule):
    """The published layout; also with flattened patches, and with one of the two splits alone.

    `limit_eval: 5000` evaluates on the first 5000 val images, as D-FINE does (which trains on the others).

    Args:
        root: folder with train/ and val/; see `datamodules.formats.objects365` for where images may be. Or
            shards of it, also at an address.
        labels: `contiguous` (365 classes, RT-DETR) or `category_id` (366, row 0 unused, D-FINE and DEIM).
        verify_sizes: read the header of every image and correct exchanged widths and heights, not only of the known
            files. This takes long on 1.7 million images.
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
        verify_sizes: bool = False,
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
    ) -> None:
        super().__init__(
            input=input, train_transform=train_transform, batch_size=batch_size, eval_batch_size=eval_batch_size,
            num_workers=num_workers, seed=seed, later_transforms=later_transforms, flip_both=flip_both,
            min_box_side=min_box_side, dense_o2o=dense_o2o,
            photometric=photometric, skip_broken=skip_broken, limit_train=limit_train, limit_eval=limit_eval,
            bucketing=bucketing, augmentations=augmentations, balance=balance,
        )  # fmt: skip
        self._root = root if is_address(root) else local_path(root)
        self._labels: Literal["contiguous", "category_id"] = labels
        self._verify_sizes = verify_sizes

    def load(self) -> LoadedData:
        """Reads the json files; a missing split is empty, with a warning.

        Raises:
            ValueError: if there is neither split, one is not of v2, or its images are not found.
        """
        if isinstance(self._root, str) or shards.is_sharded(self._root):
            source = shards.read(self._root)
        else:
            source = self._kept(self._root)
        present = next(iter(source.splits.values()))
        splits, faults = dict(source.splits), list(source.faults)
        for split in objects365.SPLITS:
            if split not in splits:
                splits[split] = replace(present.take([]), faults=())
                message = (
                    f"zhiyuan_objv2_{split}.json is not here, so {split} has no image; `zoo data download "
                    f"objects365 --parts {split}` fetches it"
                )
                faults.append(Fault("warning", "no_split", split, None, message))
        return LoadedData("objects365", splits, source.label_map(self._labels), tuple(faults))

    def _kept(self, root: Path) -> Source:
        files = list(objects365.annotation_files(root).values())

        def build(scratch: Scratch) -> Source:
            return objects365.read(root, verify_sizes=self._verify_sizes, scratch=scratch)

        if self._verify_sizes:
            return keep_tree(("objects365", root, True), root, build)
        folders = [root / split for split in objects365.SPLITS]
        folders += [root / "images" / split for split in objects365.SPLITS]
        return keep_layout(("objects365 layout", root), files, folders, build)
