"""Trained models by whatever names them: registry name, checkpoint, run folder, or a recipe with weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import Trainer

from datamodules.base import DetectionDataModule
from datamodules.shards import place_of
from zoo.cli import mask_data, recipes
from zoo.cli.lightning import ZooCLI
from zoo.cli.run_folder import document_of
from zoo.cli.starting import read_weights
from zoo.detector import Detector, load
from zoo.module import DetectionModule
from zoo.transfer import load_weights


@dataclass
class Subject:
    """What is evaluated: a module bound to nothing yet, its data, and what to call it."""

    name: str
    module: DetectionModule
    data: DetectionDataModule
    trainer: Trainer


def load_detector(model: str, registry: Path | None) -> Detector:
    """The detector of a registry name, a checkpoint file, or a run folder.

    Raises:
        FileNotFoundError: a run folder without a finished run.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        path = Path(document_of(path)["checkpoint"])
    if path.is_file():
        return Detector.from_checkpoint(path)
    if path.suffix in (".ckpt", ".pth"):
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    return load(model, registry)


def detector_of_recipe(
    configs: Sequence[str],
    overrides: Sequence[tuple[str, str]],
    weights: str | None,
    registry: Path | None,
) -> Detector:
    """The recipe's model with these weights; an official file gets the label map of the recipe's data."""
    subject = from_recipe(configs, overrides, weights, None, registry)
    subject.module.adopt(subject.module.label_map or subject.data.label_map, subject.data.input)
    return Detector(subject.module, subject.name)


def from_recipe(
    configs: Sequence[str], overrides: Sequence[tuple[str, str]], weights: str | None, data: Path | str | None,
    registry: Path | None,
) -> Subject:  # fmt: skip
    """Module, data and trainer of a recipe, with the weights that were named."""
    recipe = recipes.read(configs, overrides)
    if weights is None:
        raise ValueError("which weights? give --ckpt-path, or a registered model's name, beside --config")
    if data is not None:
        recipe = with_data(recipe, data)
    backbone = recipe["model"]["init_args"].get("backbone")
    if isinstance(backbone, dict):
        backbone["weights"] = "random"  # the weights that are loaded hold the backbone's
    cli = ZooCLI(recipe, Path("."), [], with_tracker=False)
    state, labels = read_weights(weights, cli.model, registry)
    load_weights(cli.model, state, "keep")
    cli.model.label_map = labels
    return Subject(weights, cli.model, cli.datamodule, cli.trainer)


def with_data(recipe: recipes.Recipe, folder: Path | str) -> recipes.Recipe:
    """The recipe on another folder of images; panoptic data stay panoptic, with the recipe's own ids."""
    changed = copy.deepcopy(recipe)
    arguments, place = changed["data"]["init_args"], place_of(folder)
    if changed["data"]["class_path"] == mask_data.PANOPTIC and mask_data.is_panoptic(place):
        arguments |= {"root": place, **mask_data.panoptic_splits(Path(place))}
        return changed
    keep = {
        k: arguments[k]
        for k in ("input", "train_transform", "batch_size", "eval_batch_size", "num_workers", "seed")
    }
    changed["data"] = {"class_path": mask_data.OUTLINES, "init_args": {"root": place, **keep}}
    return changed
