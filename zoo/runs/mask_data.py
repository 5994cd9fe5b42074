"""Which data a model with masks trains and is evaluated on: panoptic folders, and folders with outlines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from datamodules.base import DetectionDataModule
from datamodules.custom import CustomDataModule
from datamodules.formats import panoptic_file
from datamodules.formats.detect import detect
from datamodules.panoptic import CocoPanopticDataModule
from datamodules.shards.reader import is_address
from zoo.contract.labels import LabelMap
from zoo.runs import schema
from zoo.storage.patterns import compiled
from zoo.training.module import parameter_names

PANOPTIC, OUTLINES = "datamodules.panoptic.CocoPanopticDataModule", "datamodules.custom.CustomDataModule"
# arguments of a recipe's data module that stay when its data are replaced
KEPT = ("input", "train_transform", "batch_size", "eval_batch_size", "num_workers", "seed")


def is_panoptic(place: str) -> bool:
    """Whether a place is a folder that is read as COCO panoptic data."""
    return not is_address(place) and Path(place).is_dir() and detect(Path(place)) == "coco_panoptic"


def panoptic_splits(folder: Path, needs_train: bool = True) -> dict[str, str]:
    """`train_split` and `eval_split` of a panoptic folder, by the names of its files.

    Args:
        folder: that holds panoptic_*.json.
        needs_train: else the split to evaluate on stands for one that is not there.

    Raises:
        ValueError: there is no split to train or evaluate on; names those that are there.
    """
    files = panoptic_file.annotation_files(folder)
    if not needs_train and "val" in files:
        files = {"train": files["val"], **files}
    absent = [role for role in ("train", "val") if role not in files]
    if absent:
        raise ValueError(
            f"{folder} has panoptic_*.json for {', '.join(files)} and none for {' and '.join(absent)}; add "
            f"panoptic_{absent[0]}.json with its folder of PNG files"
        )
    names = {role: files[role].stem.removeprefix("panoptic_") for role in ("train", "val")}
    return {"train_split": names["train"], "eval_split": names["val"]}


def data_block(place: str, common: dict[str, Any], needs_train: bool = True) -> dict[str, Any]:
    """The `data:` block of a place: panoptic, or any other format with the outlines of its objects.

    Args:
        place: absolute folder, or address of shards.
        common: arguments that both data modules share.
        needs_train: whether a folder without images to train on is refused.
    """
    if not is_panoptic(place):
        lenient = {} if needs_train else {"needs_train": False}
        return {"class_path": OUTLINES, "init_args": {"root": place, **common, "masks": True, **lenient}}
    shared = {k: v for k, v in common.items() if k != "val_fraction"}
    splits = panoptic_splits(Path(place), needs_train)
    arguments = {"root": place, "labels": "contiguous", "ap_objects": "panoptic", **splits, **shared}
    return {"class_path": PANOPTIC, "init_args": arguments}


def suit_model(recipe: dict[str, Any]) -> list[str]:
    """Adapts frozen parts, panoptic rule and monitored score to the data; returns notes for the user."""
    notes, arguments = [], recipe["model"]["init_args"]
    rules = arguments["schedule"]["rules"]
    if any(rule.get("freeze") for rule in rules):
        of_classes = schema.module_class(recipe).class_tensors
        heads = [name for name in parameter_names(recipe["model"]) if re.search(of_classes, name)]
        for rule in [r for r in rules if r.get("freeze") and any(map(compiled(r["match"]).search, heads))]:
            rules.remove(rule)
            notes.append(f"{rule['match']} learns instead of being frozen: new classes need it")
    if recipe["data"]["class_path"] == PANOPTIC and arguments.get("panoptic") is not None:
        recipe["checkpoint"]["monitor"] = "val/PQ"
        return [
            *notes,
            "panoptic data: things and stuff are learned; the best checkpoint is that of the highest PQ",
        ]
    if "panoptic" in arguments:
        arguments["panoptic"] = None
    recipe["checkpoint"]["monitor"] = "val/segm_AP"
    return [
        *notes,
        "masks of instances are learned; the best checkpoint is that of the highest AP of masks",
    ]


def refuse_bare_boxes(data: DetectionDataModule, place: str) -> None:
    """Raises ValueError if objects have no outline: there is nothing to learn their masks from."""
    bare = sum(fault.kind == "no_outline" for fault in data.read().faults)
    if bare and not data.skip_broken:
        total = sum(index.num_objects for index in data.read().splits.values())
        raise ValueError(
            f"{place}: {bare} of {total} objects have no outline, and this model learns masks. Draw them (as "
            "polygons or run-length codes, e.g. in COCO json), set --data.skip_broken true to leave such objects "
            "out, or finetune a model without masks, e.g. detr_r50"
        )


def evaluation_data(place: str, common: dict[str, Any], labels: LabelMap | None) -> DetectionDataModule:
    """A place to evaluate a model with masks on; without outlines in it boxes alone can be evaluated.

    Args:
        place: absolute folder, or address of shards.
        common: arguments that both data modules share.
        labels: of the model: whether its head has the ids of the categories, or their positions.
    """
    block = data_block(place, common, needs_train=False)
    arguments = block["init_args"]
    if block["class_path"] == PANOPTIC:
        if labels is not None and labels.head_indices == labels.source_ids:
            arguments |= {"labels": "category_id", "num_classes": labels.num_classes}
        return CocoPanopticDataModule(**arguments)
    data = CustomDataModule(**arguments)
    if any(f.kind == "no_outline" for f in data.read().faults):
        return CustomDataModule(**arguments | {"masks": False})
    return data
