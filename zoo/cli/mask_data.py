"""Which data a model with masks trains and is evaluated on: panoptic folders, and folders with outlines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.formats import panoptic_file
from datamodules.formats.detect import detect

PANOPTIC, OUTLINES = "datamodules.panoptic.CocoPanopticDataModule", "datamodules.custom.CustomDataModule"


def is_panoptic(folder: Path) -> bool:
    """Whether the folder is read as COCO panoptic data, of which masks of instances are a part."""
    return folder.is_dir() and detect(folder) == "coco_panoptic"


def panoptic_splits(folder: Path) -> dict[str, str]:
    """`train_split` and `eval_split` of a panoptic folder, by the names of its files.

    Raises:
        ValueError: a split of either kind is missing; names those that are there.
    """
    names = list(panoptic_file.annotation_files(folder))
    found = {role: [n for n in names if n.startswith(word)] for role, word in _WORDS.items()}
    absent = [_WORDS[role] for role, matching in found.items() if not matching]
    if absent:
        raise ValueError(
            f"{folder} has no panoptic split whose name starts with {' or '.join(absent)}; it has "
            f"{', '.join(names)}. Name the file panoptic_{absent[0]}.json, with its folder of PNG files"
        )
    return {role: matching[0] for role, matching in found.items()}


_WORDS = {"train_split": "train", "eval_split": "val"}


def data_block(folder: Path, common: dict[str, Any]) -> dict[str, Any]:
    """The `data:` block for a folder: panoptic, or any other format with the outlines of its objects.

    Args:
        folder: of the user.
        common: arguments that both data modules share.
    """
    root = folder.expanduser().resolve()
    if not is_panoptic(root):
        return {"class_path": OUTLINES, "init_args": {"root": str(root), **common, "masks": True}}
    arguments = {"root": str(root), "labels": "contiguous", "ap_objects": "panoptic", **panoptic_splits(root)}
    return {"class_path": PANOPTIC, "init_args": {**arguments, **common}}


def refuse_bare_boxes(folder: Path, bare: int, objects: int) -> None:
    """Raises ValueError if objects have no outline, for there is nothing to learn masks from."""
    if bare:
        raise ValueError(
            f"{folder}: {bare} of {objects} objects have no outline, and this model learns masks. Draw them "
            "(polygons or run-length codes, in COCO json or an annotation tool's file), or finetune the model "
            "without masks, e.g. detr_r50"
        )
