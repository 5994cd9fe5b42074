"""What MLflow is told of a training before its first step: name, recipe, data set, versions, machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from datamodules.base import DetectionDataModule
from datamodules.images.decodable import usable_cores
from datamodules.shards.reader import place_of
from zoo.runs import recipes
from zoo.runs.console import is_rank_zero
from zoo.runs.recipes import Recipe
from zoo.runs.run_folder import note
from zoo.tracking.lineage import tool_versions
from zoo.tracking.logger import MLflowTracker
from zoo.tracking.others import OtherTracker


def run_name(recipe: Recipe) -> str:
    """The name in the registry and the time, e.g. `rt_detr_r18.birds 2026-05-04 13:37:00`."""
    return f"{registry_name(recipe)} {time.strftime('%Y-%m-%d %H:%M:%S')}"


def registry_name(recipe: Recipe) -> str:
    """`NAME.TAG` of what the recipe trains; `run` of a recipe that does not say."""
    about = recipe.get("about", {})
    return ".".join(str(about[key]) for key in ("name", "tag") if about.get(key)) or "run"


def note_start(trainer: Trainer, recipe: Recipe, data: DetectionDataModule, folder: Path) -> None:
    """Logs what makes the run repeatable to MLflow, and writes the run's id into the folder."""
    for logger in trainer.loggers:
        if isinstance(logger, OtherTracker):
            logger.log_hyperparams(recipes.flat(recipe))
    tracker = trainer.logger
    if not isinstance(tracker, MLflowTracker) or not is_rank_zero():
        return
    note(folder, mlflow_run=tracker.run_id)
    digest, name = data.digest(), registry_name(recipe)
    tracker.log_start(
        recipe=recipes.dump(recipe), label_map=data.label_map, data_digest=digest, recipe_name=name
    )
    versions = {f"version.{tool}": version for tool, version in tool_versions().items()}
    tracker.log_params({"model": name} | recipes.flat(recipe) | versions)
    place = place_of(recipe["data"]["init_args"].get("root", "."))
    tracker.log_dataset(place.rstrip("/").rpartition("/")[2] or place, digest, place, counts(data))
    tracker.set_tags({"zoo.hardware": hardware(trainer)})
    for picture in folder.glob("*.png"):
        tracker.log_figure_file(picture)
    note(folder, mlflow_run=tracker.run_id)


def counts(data: DetectionDataModule) -> dict[str, Any]:
    """Images and objects of each split, and the number of classes."""
    found: dict[str, Any] = {"classes": data.label_map.num_classes}
    for name, split in data.summary().splits.items():
        found |= {f"{name}_images": split.images, f"{name}_objects": split.objects}
    return found


def hardware(trainer: Trainer) -> str:
    """e.g. `2 x NVIDIA H200` or `CPU, 2 cores`."""
    if trainer.strategy.root_device.type == "cuda":
        return f"{trainer.world_size} x {torch.cuda.get_device_name(trainer.strategy.root_device)}"
    return f"CPU, {usable_cores()} cores"
