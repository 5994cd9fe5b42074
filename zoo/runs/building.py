"""A recipe that builds its module, data and trainer, for scripts with a Trainer of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from datamodules.base import DetectionDataModule
from datamodules.progress import watched
from zoo.runs import recipes
from zoo.runs.console import Console, Silent
from zoo.runs.init_from import start_from
from zoo.runs.lightning import ZooCLI
from zoo.runs.run_folder import new_folder, refuse_used
from zoo.runs.schema import InitFrom, check_options
from zoo.training.callbacks import History, Progress
from zoo.training.module import DetectionModule


class Recipe(dict[str, Any]):
    """The values of a complete recipe, as its YAML file has them, and what they describe.

    When a trainer sets them up, the module takes label map and input contract from the data, and the data divide
    the images of a step among the devices. The checkpoints of any Trainer can be loaded with
    `zoo.load` and registered with `zoo.publish`.
    """

    trusted = False  # whether it may name classes of others in `trainer`, which are imported

    def module(self, registry: str | Path | None = None) -> DetectionModule:
        """The network with its losses and schedule, with the weights that a run of the recipe begins with.

        Random weights are drawn from the recipe's seed; the state of torch's global generator is restored.

        Args:
            registry: where a name in `init_from` is looked up; ZOO_REGISTRY or ./mlruns/registry by default.

        Raises:
            ValueError: a key or a value of the recipe is wrong, or weights do not fit; names it.
            OSError: weights cannot be had.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self["seed_everything"])
            module = self._built("model").model
        init = InitFrom(**self["init_from"])
        labels = self.datamodule().label_map if init.head == "by_class_name" else None
        start_from(init, module, labels, registry, Silent())
        return module

    def datamodule(self) -> DetectionDataModule:
        """The data; nothing is read before it is needed.

        Raises:
            ValueError: a key or a value of the recipe is wrong; names it.
        """
        return self._built("data").datamodule

    def trainer(self, folder: str | Path | None = None, **overrides: Any) -> Trainer:
        """The recipe's Trainer: it writes checkpoints as `zoo.fit` does and tracks the run.

        Args:
            folder: of the checkpoints; None makes one under mlruns/checkpoints.
            overrides: options of Lightning's Trainer instead of the recipe's; callbacks and plugins are added to
                those that are there.

        Raises:
            ValueError: an option that there is not, or that would not do here what it says.
            FileExistsError: the folder holds a run.
        """
        check_options(overrides)
        plain = {name: value for name, value in overrides.items() if _is_plain(value)}
        objects = {name: value for name, value in overrides.items() if name not in plain}
        folder = Path(folder) if folder is not None else None
        if folder is not None:
            refuse_used(folder, self.trusted)
        changed = Recipe({**self, "trainer": {**self["trainer"], **plain}})
        changed.trusted = self.trusted
        where = folder or new_folder(str(self.get("about", {}).get("name", "run")))
        return changed._built("trainer", where, objects).trainer

    def _built(self, part: str, folder: Path = Path(), objects: Mapping[str, Any] | None = None) -> ZooCLI:
        values = dict(self) | {"seed_everything": False}  # seeding is left to the caller
        if part != "trainer":
            values["trainer"] = {
                "max_epochs": 1
            }  # the caller's trainer is another, perhaps on another machine
        callbacks = [Progress(Console().say, watched()), History()] if part == "trainer" else []
        return ZooCLI(
            values, folder, callbacks, with_tracker=part == "trainer", parts=(part,), objects=objects,
            trusted=self.trusted,
        )  # fmt: skip


def recipe(name: recipes.Given, overrides: Mapping[str, Any] | None = None, *, trust: bool = False) -> Recipe:
    """A recipe by its path or name, to be changed, built, or trained with `zoo.fit`.

    >>> import zoo
    >>> recipe = zoo.recipe("rt_detr/tiny", {"data.root": "shapes", "model.num_classes": 4})
    >>> recipe["model"]["init_args"]["num_classes"]
    4
    >>> from lightning.pytorch import Trainer
    >>> trainer = Trainer(
    ...     max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    ... )
    >>> trainer.fit(recipe.module(), recipe.datamodule())
    >>> trainer.model.label_map.names
    ('circle', 'square', 'triangle', 'cross')

    Args:
        name: a file, `rt_detr/r18_coco_72e`, the name of a model, several of them to be merged in their order, or a
            mapping with the values.
        overrides: dotted keys and their values; `model.x` is `model.init_args.x`.
        trust: whether its trainer may name callbacks and loggers besides Lightning's harmless ones; they are imported.

    Raises:
        FileNotFoundError: no such recipe; names the nearest.
        ValueError: a key that leads nowhere; names the nearest.
    """
    found = Recipe(recipes.read(name, overrides))
    found.trusted = trust
    return found


def _is_plain(value: Any) -> bool:
    """Whether a recipe could say it."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    return value is None or isinstance(value, (bool, int, float, str))
