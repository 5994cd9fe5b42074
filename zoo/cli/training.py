"""Training a complete recipe: under `zoo fit`, and `zoo finetune` and `zoo demo` after they wrote one."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from datamodules.base import DetectionDataModule
from datamodules.shards import is_address, local_path
from zoo.callbacks import History, Progress, SaveWhenInterrupted
from zoo.checkpoint_io import read_checkpoint, write_atomically
from zoo.cli import recipes, schema, signals
from zoo.cli.console import Console, is_rank_zero
from zoo.cli.lightning import ZooCLI
from zoo.cli.recipes import Recipe
from zoo.cli.starting import start_from
from zoo.module import DetectionModule
from zoo.preflight import run_preflight
from zoo.tracking import MLflowTracker

RUNS = Path("mlruns", "checkpoints")
RECIPE_FILE = "recipe.yaml"
RUN_FILE = "run.json"  # MLflow's id of the run, so that a resume continues it
FOLDER_VARIABLE = "ZOO_RUN_FOLDER"  # tells the processes that Lightning starts where rank zero writes


@dataclass
class TrainedRun:
    """A finished training; the module holds the weights of the best checkpoint."""

    folder: Path
    recipe: Recipe
    module: DetectionModule
    data: DetectionDataModule
    trainer: Trainer
    history: History
    checkpoint: Path  # the best one
    step: int  # optimizer steps when it was written
    seconds: float

    @property
    def tracker(self) -> MLflowTracker | None:
        """The MLflow run, unless the recipe chose another logger."""
        logger = self.trainer.logger
        return logger if isinstance(logger, MLflowTracker) else None


def new_folder(name: str) -> Path:
    """A run folder that does not exist yet; the same one in the processes that Lightning starts."""
    if FOLDER_VARIABLE in os.environ:
        return Path(os.environ[FOLDER_VARIABLE])
    folder = RUNS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    while folder.exists():
        folder = folder.with_name(folder.name + "b")
    return folder


def train(
    recipe: Recipe, folder: Path | None, resume: Path | None, overfit_first: bool, registry: Path | None,
    console: Console,
) -> TrainedRun:  # fmt: skip
    """Trains a complete recipe and returns with the weights of its best checkpoint.

    Args:
        recipe: complete.
        folder: of the run; None makes one under mlruns/checkpoints.
        resume: checkpoint to go on from.
        overfit_first: the longer preflight.
        registry: where a named `init_from.source` is looked up.
        console: for the user.

    Raises:
        ValueError, OSError: the recipe, the data or the weights are at fault; or the preflight failed.
        Terminated: by SIGTERM; `last.ckpt` is written.
    """
    folder = (folder or new_folder(str(recipe.get("about", {}).get("name", "run")))).absolute()
    os.environ[FOLDER_VARIABLE] = str(folder)
    history, interrupted = History(), SaveWhenInterrupted(folder)
    if resume is not None:
        recipe = _continued(recipe, folder)
    schema.check(recipe)
    refuse_missing_data(recipe)
    cli = ZooCLI(recipe, folder, [Progress(console.say), history, interrupted])
    module, data, trainer = cli.model, cli.datamodule, cli.trainer
    data.setup("fit")
    write_recipe(recipe, folder)
    if is_rank_zero():
        console.say(f"recipe      {folder / RECIPE_FILE}")
        console.say(f"run         {folder}")
    if resume is None:
        module.adopt(data.label_map, data.input)
        start_from(cli.config_init.init_from, module, data.label_map, registry, console)
        preflight(module, data, folder, overfit_first, console)
    note_start(trainer, recipe, data, folder)
    begun = time.monotonic()
    try:
        with signals.deferred():
            trainer.fit(module, datamodule=data, ckpt_path=None if resume is None else str(resume))
    except SIGTERMException as error:
        _say_resume(interrupted, console)
        raise signals.Terminated from error
    except SystemExit as error:
        # Lightning answers Ctrl-C with exit(1) after its own clean-up
        _say_resume(interrupted, console)
        raise KeyboardInterrupt from error
    finally:
        os.environ.pop(FOLDER_VARIABLE, None)
    score_last_steps(trainer, module, data, history)
    best, step = load_best(trainer, module)
    return TrainedRun(folder, recipe, module, data, trainer, history, best, step, time.monotonic() - begun)


def refuse_missing_data(recipe: Recipe) -> None:
    """Raises FileNotFoundError for a data folder that is not there, before any weights are fetched."""
    root = str(recipe["data"]["init_args"].get("root", "."))
    if not is_address(root) and not local_path(root).is_dir():
        raise FileNotFoundError(f"{root} is not a folder; give the data set's with --data.root FOLDER")


def preflight(
    module: DetectionModule, data: DetectionDataModule, folder: Path, overfit: bool, console: Console
) -> None:
    """Looks at one batch and one step before hours are spent; says what it saw."""
    if not is_rank_zero():
        return
    report = run_preflight(module, data, folder, overfit=overfit)
    for line in report.lines():
        console.say(line)


def note_start(trainer: Trainer, recipe: Recipe, data: DetectionDataModule, folder: Path) -> None:
    """The facts that make the run repeatable, on the run, and its id in the folder."""
    tracker = trainer.logger
    if not isinstance(tracker, MLflowTracker) or not is_rank_zero():
        return
    about = recipe.get("about", {})
    tracker.log_start(
        recipe=recipes.dump(recipe), label_map=data.label_map, data_digest=data.digest(),
        recipe_name=f"{about.get('name')}.{about.get('tag')}",
    )  # fmt: skip
    tracker.set_tags({"zoo.hardware": hardware(trainer)})
    for picture in folder.glob("*.png"):
        tracker.log_figure_file(picture)
    if tracker.run_id is not None:
        (folder / RUN_FILE).write_text(json.dumps({"mlflow_run": tracker.run_id}), encoding="utf-8")


def score_last_steps(
    trainer: Trainer, module: DetectionModule, data: DetectionDataModule, history: History
) -> None:
    """Validates the final weights if the training ended after its last validation.

    `max_steps` may end in the middle of an epoch, and a schedule that falls to its end has its best
    weights there. The checkpoint callback then takes them as it takes those of any epoch.
    """
    scored = history.series.get("val/AP", [])
    if scored and scored[-1][0] == trainer.global_step:
        return
    callback = trainer.checkpoint_callback
    if not isinstance(callback, ModelCheckpoint):
        return
    monitor = callback.monitor or "val/AP"
    path = Path(str(callback.dirpath)) / f"final-step={trainer.global_step}.ckpt"  # agreed by all ranks
    trainer.save_checkpoint(path)
    loggers, trainer.loggers = trainer.loggers, []
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.loggers = loggers
    if monitor not in trainer.callback_metrics:
        raise ValueError(
            f"checkpoint.monitor is {monitor}, which was not measured; take one of "
            + ", ".join(sorted(n for n in trainer.callback_metrics if n.startswith("val/")))
        )
    score = trainer.callback_metrics[monitor]
    history.add(trainer, [name for name in trainer.callback_metrics if name.startswith("val/")])
    if callback.best_model_score is None or score >= callback.best_model_score:
        callback.best_model_path, callback.best_model_score = str(path), score


def load_best(trainer: Trainer, module: DetectionModule) -> tuple[Path, int]:
    """Loads the best checkpoint, or the last where none was scored; (its path, its step).

    Raises:
        ValueError: if the run wrote no checkpoint.
    """
    callback = trainer.checkpoint_callback
    path = (
        callback.best_model_path or callback.last_model_path if isinstance(callback, ModelCheckpoint) else ""
    )
    if not path:
        raise ValueError("the run wrote no checkpoint: no epoch was completed; give it more steps")
    checkpoint = read_checkpoint(path)
    module.load_state_dict(checkpoint["state_dict"])
    return Path(path), int(checkpoint["zoo"]["step"])


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """The resolved recipe into the run folder, by rank zero, in one rename."""
    if not is_rank_zero():
        return
    folder.mkdir(parents=True, exist_ok=True)
    text = recipes.dump(recipe).encode()
    write_atomically(folder / RECIPE_FILE, lambda file: file.write(text))


def hardware(trainer: Trainer) -> str:
    """e.g. `2 x NVIDIA H200` or `CPU, 2 cores`."""
    if trainer.strategy.root_device.type == "cuda":
        return f"{trainer.world_size} x {torch.cuda.get_device_name(trainer.strategy.root_device)}"
    return (
        f"CPU, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    )


def _continued(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the MLflow run that the folder belongs to."""
    file = folder / RUN_FILE
    if not file.is_file():
        return recipe
    run: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return {**recipe, "tracking": {**recipe["tracking"], "run_id": run["mlflow_run"]}}


def _say_resume(interrupted: SaveWhenInterrupted, console: Console) -> None:
    if interrupted.saved:
        console.say(f"interrupted; go on with: zoo fit --ckpt-path {interrupted.path}")
