"""Finds a trained model by its registry name, checkpoint, run folder, or recipe and weights."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from datamodules.base import DetectionDataModule
from datamodules.shards.reader import place_of
from zoo.detector import Detector
from zoo.registry.manifest import thresholds_of
from zoo.registry.pull import pull
from zoo.registry.store import UnknownModelError, find
from zoo.runs import catalogue, mask_data, recipes
from zoo.runs.init_from import read_weights
from zoo.runs.lightning import ZooCLI
from zoo.runs.run_folder import document_of
from zoo.runtimes.naming import is_exported
from zoo.training.module import DetectionModule
from zoo.training.transfer import load_weights


@dataclass
class Subject:
    """What is evaluated: a module, its data and trainer, and its name in messages."""

    name: str
    module: DetectionModule
    data: DetectionDataModule
    trainer: Trainer


def load(model: str | Path, registry: str | Path | None = None) -> Detector:
    """The detector of `NAME[@alias|:version]`, a checkpoint, a run folder or an exported file.

    A built-in model is fetched once.

    >>> import zoo
    >>> detector = zoo.load("run")
    >>> prediction = detector.predict("shapes/val/00000.png", threshold=0.0)
    >>> prediction.size, len(prediction.scores)
    ((64, 64), 20)

    Args:
        model: from `zoo.available()`, a bare name for its default tag, or the user's own, every hash checked; or a
            path. A name that is both is the registry's, whatever lies in the working directory; `./name` is a path.
        registry: folder of the user's registry; ZOO_REGISTRY or ./mlruns/registry by default.

    Raises:
        FileNotFoundError: a path that is not there, or a folder without a finished run.
        UnknownModelError: neither a name nor a path; a ValueError.
        ValueError: a file that is no checkpoint, or one that was changed.
        ConnectionError: a built-in model that cannot be fetched.
    """
    path = Path(model).expanduser()
    if not is_written_as_path(model):
        try:
            find(str(model), registry)
        except (UnknownModelError, ValueError):
            if not os.path.exists(path):
                catalogue.refuse_without_weights(str(model))
                raise
        else:
            return Detector.from_pulled(pull(str(model), registry=registry))
    if is_exported(path):
        return Detector.from_exported(path)
    thresholds = None
    if os.path.isdir(path):
        document = document_of(path)
        path, chosen = Path(document["checkpoint"]), document.get("thresholds")
        thresholds = None if chosen is None else thresholds_of(chosen)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no checkpoint or run folder {str(path)[:200]}")
    return Detector.from_checkpoint(path, thresholds)


def is_written_as_path(model: str | Path) -> bool:
    """Whether a model is meant to be a file or folder, and is not looked for in the registry."""
    if isinstance(model, Path) or os.sep in model or "/" in model or model.startswith((".", "~")):
        return True
    return Path(model).suffix in (".ckpt", ".pth", ".pt", ".safetensors", ".onnx", ".xml")


def detector_of_recipe(
    given: recipes.Given,
    overrides: Mapping[str, Any],
    weights: str | None,
    registry: Path | None,
) -> Detector:
    """The recipe's model with these weights; an official file gets the label map of the recipe's data."""
    subject = from_recipe(given, overrides, weights, None, registry)
    subject.module.adopt(subject.module.label_map or subject.data.label_map, subject.data.input)
    return Detector(subject.module, subject.name)


def from_recipe(
    given: recipes.Given, overrides: Mapping[str, Any] | None, weights: str | Path | None,
    data: Path | str | None, registry: str | Path | None,
) -> Subject:  # fmt: skip
    """Module, data and trainer of a recipe, with the weights that were named."""
    recipe = recipes.read(given, overrides)
    if weights is None:
        raise ValueError("which weights? give --ckpt-path, or a registered model's name, beside --config")
    if isinstance(recipe.get("trainer"), dict):  # these belong to a training
        recipe["trainer"] = {
            k: v for k, v in recipe["trainer"].items() if k not in ("callbacks", "logger", "profiler")
        }
    if data is not None:
        recipe = with_data(recipe, data)
    backbone = recipe["model"]["init_args"].get("backbone")
    if isinstance(backbone, dict):
        backbone["weights"] = "random"  # the weights that are loaded hold the backbone's
    cli = ZooCLI(recipe, Path("."), [], with_tracker=False)
    state, labels = read_weights(str(weights), cli.model, registry)
    load_weights(cli.model, state, "keep")
    cli.model.label_map = labels
    return Subject(str(weights), cli.model, cli.datamodule, cli.trainer)


def with_data(recipe: recipes.Recipe, folder: Path | str) -> recipes.Recipe:
    """The recipe on another folder of images; panoptic data stay panoptic, with the recipe's own ids."""
    changed = copy.deepcopy(recipe)
    arguments, place = changed["data"]["init_args"], place_of(folder)
    if changed["data"]["class_path"] == mask_data.PANOPTIC and mask_data.is_panoptic(place):
        arguments |= {"root": place, **mask_data.panoptic_splits(Path(place))}
        return changed
    keep = {k: arguments[k] for k in (*mask_data.KEPT, "skip_broken") if k in arguments}
    changed["data"] = {"class_path": mask_data.OUTLINES, "init_args": {"root": place, **keep}}
    return changed
