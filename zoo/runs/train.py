"""Trains a complete recipe, for `fit`, `finetune` and `demo`."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from datamodules.base import DetectionDataModule
from datamodules.progress import watched
from datamodules.shards.reader import is_address, local_path
from zoo.runs import recipes, schema, signals
from zoo.runs.console import Console, is_rank_zero, quoted
from zoo.runs.init_from import start_from
from zoo.runs.input_sizes import refuse_sizes
from zoo.runs.lightning import ZooCLI
from zoo.runs.recipes import Recipe
from zoo.runs.run_folder import RECIPE_FILE, RUN_FILE, claimed, new_folder, refuse_used
from zoo.runs.trust import strangers
from zoo.storage.checkpoint_io import read_checkpoint
from zoo.storage.durable import write_atomically, write_json
from zoo.tracking.logger import MLflowTracker
from zoo.training.callbacks import History, Progress, total_steps
from zoo.training.module import DetectionModule
from zoo.training.preflight import run_preflight
from zoo.training.saving import CheckpointSaver
from zoo.training.stopping import StopRequest


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


def train(
    recipe: Recipe, folder: Path | None, resume: Path | None, overfit_first: bool,
    registry: str | Path | None, console: Console, trusted: bool = False,
) -> TrainedRun:  # fmt: skip
    """Trains a complete recipe and returns with the weights of its best checkpoint.

    Args:
        recipe: complete.
        folder: of the run; None makes one under mlruns/checkpoints.
        resume: checkpoint to go on from.
        overfit_first: the longer preflight.
        registry: where a named `init_from.source` is looked up.
        console: for the user.
        trusted: whether the recipe may name classes of others, which are imported.

    Raises:
        ValueError, OSError: the recipe, the data or the weights are at fault; the folder is another run's;
            the disk is full; or the preflight failed.
        Terminated: by SIGTERM; `last.ckpt` is written.
    """
    if folder is None:
        folder = new_folder(str(recipe.get("about", {}).get("name", "run")))
    elif resume is None:
        refuse_used(folder)
    folder = folder.absolute()
    with claimed(folder):
        return _train(recipe, folder, resume, overfit_first, registry, console, trusted)


def _train(
    recipe: Recipe, folder: Path, resume: Path | None, overfit_first: bool,
    registry: str | Path | None, console: Console, trusted: bool,
) -> TrainedRun:  # fmt: skip
    history = History()
    schema.check(recipe, trusted)
    if trusted and (named := strangers(recipe["trainer"])):
        console.say(f"trusted     the recipe's word alone imports {', '.join(named)}")
    refuse_missing_data(recipe)
    ids = {} if resume is None else {"run_id": run_of(folder), "local_id": run_of(folder, "local_id")}
    cli = ZooCLI(recipe, folder, [Progress(console.say, watched()), history], trusted=trusted, **ids)
    module, data, trainer = cli.model, cli.datamodule, cli.trainer
    saver = saver_of(trainer)
    data.setup("fit")
    refuse_sizes(module, data, recipe)
    write_recipe(recipe, folder)
    if is_rank_zero():
        console.say(f"recipe      {folder / RECIPE_FILE}")
        console.say(f"run         {folder}")
    if resume is None:
        module.adopt(data.label_map, data.input)
        start_from(cli.config_init.init_from, module, data.label_map, registry, console)
        preflight(trainer, module, data, folder, overfit_first, console)
    note_start(trainer, recipe, data, folder)
    begun = time.monotonic()
    with StopRequest() as saver.stop:
        fit(trainer, module, data, resume, saver, console, trusted)
    if resume is not None and module.position() == module.begun:
        console.say(f"finished    step {trainer.global_step}{_of_total(trainer)}: nothing is left to train; "
                    "for more, set --trainer.max_epochs or --trainer.max_steps higher")  # fmt: skip
    score_last_steps(trainer, module, data, history)
    best, step = load_best(trainer, module, console)
    return TrainedRun(folder, recipe, module, data, trainer, history, best, step, time.monotonic() - begun)


def fit(
    trainer: Trainer, module: DetectionModule, data: DetectionDataModule, resume: Path | None,
    saver: CheckpointSaver, console: Console, trusted: bool = False,
) -> None:  # fmt: skip
    """Trains; a signal that arrived meanwhile is raised, whatever error Lightning made of it.

    Raises:
        Terminated, KeyboardInterrupt: by SIGTERM or Ctrl-C.
    """
    try:
        trainer.fit(module, datamodule=data, ckpt_path=None if resume is None else str(resume))
    except MisconfigurationException as error:  # options that Lightning refuses together
        raise ValueError(" ".join(str(error).split())) from error
    except (SIGTERMException, SystemExit) as error:
        # Lightning answers Ctrl-C with exit(1) after its own clean-up
        saver.stop.signal = saver.stop.signal or (
            signal.SIGINT if isinstance(error, SystemExit) else signal.SIGTERM
        )
    except Exception:
        if saver.stop.signal is None:
            raise
    if saver.stop.signal is None:
        return
    if saver.last_model_path:
        again = f"zoo fit --ckpt-path {quoted(saver.last_model_path)}{' --trust-recipe' if trusted else ''}"
        console.say(f"interrupted; go on with: {again}")
    if saver.stop.signal == signal.SIGTERM:
        raise signals.Terminated
    raise KeyboardInterrupt(
        f"the run is kept; go on with zoo.fit(resume={saver.last_model_path!r}{', trust=True' if trusted else ''})"
        if saver.last_model_path
        else ""
    )


def saver_of(trainer: Trainer) -> CheckpointSaver:
    """The callback that writes the run's checkpoints."""
    saver = trainer.checkpoint_callback
    if not isinstance(saver, CheckpointSaver):
        raise ValueError("trainer.enable_checkpointing is false; a run keeps its weights: leave it out")
    return saver


def refuse_missing_data(recipe: Recipe) -> None:
    """Raises FileNotFoundError for a data folder that is not there, before any weights are fetched."""
    root = str(recipe["data"]["init_args"].get("root", "."))
    if not is_address(root) and not local_path(root).is_dir():
        raise FileNotFoundError(f"{root} is not a folder; give the data set's with --data.root FOLDER")


def preflight(
    trainer: Trainer, module: DetectionModule, data: DetectionDataModule, folder: Path, overfit: bool,
    console: Console,
) -> None:  # fmt: skip
    """Runs the preflight in the training's precision and prints its report; on rank zero only."""
    if not is_rank_zero():
        return
    report = run_preflight(
        module, data, folder, overfit=overfit, precision=trainer.precision_plugin.forward_context
    )
    for line in report.lines():
        console.say(line)


def note_start(trainer: Trainer, recipe: Recipe, data: DetectionDataModule, folder: Path) -> None:
    """Logs what makes the run repeatable to MLflow, and writes the run's id into the folder."""
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
    write_json(folder / RUN_FILE, {"mlflow_run": tracker.run_id, "local_id": tracker.local_id})


def score_last_steps(
    trainer: Trainer, module: DetectionModule, data: DetectionDataModule, history: History
) -> None:
    """Validates the final weights if the training ended after its last validation.

    `max_steps` may end in the middle of an epoch, and a schedule that falls to its end has its best
    weights there. The checkpoint callback then takes them as it takes those of any epoch.
    """
    saver = saver_of(trainer)
    scored = history.series.get("val/AP", [])
    if (scored and scored[-1][0] == trainer.global_step) or not saver.last_model_path:
        return
    loggers = trainer.loggers
    if module.position().validated:  # else a signal came before a validation of the recipe's
        trainer.loggers = []
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.loggers = loggers
    if saver.monitor is not None and saver.monitor not in trainer.callback_metrics:
        raise ValueError(
            f"checkpoint.monitor is {saver.monitor}, which was not measured; take one of "
            + ", ".join(sorted(n for n in trainer.callback_metrics if n.startswith("val/")))
        )
    history.add(trainer, [name for name in trainer.callback_metrics if name.startswith("val/")])
    if trainer.is_global_zero:
        saver.adopt_last(trainer, saver.score(trainer))
    saver.best = trainer.strategy.broadcast(saver.best)


def load_best(trainer: Trainer, module: DetectionModule, console: Console) -> tuple[Path, int]:
    """Loads the best checkpoint, or the last where none was scored; (its path, its step).

    Raises:
        ValueError: if the run wrote no checkpoint.
    """
    saver = saver_of(trainer)
    path = saver.best_model_path or saver.last_model_path
    if not path:
        raise ValueError("the run wrote no checkpoint: no step was completed; give it more steps")
    if not saver.best_model_path and saver.save_top_k and is_rank_zero():
        unmeasured = saver.monitor is not None and math.isnan(saver.score(trainer))
        why = f"{saver.monitor} could not be measured" if unmeasured else "nothing was scored"
        console.say(f"no best     {why}: the weights of the last step are taken")
    checkpoint = read_checkpoint(path)
    module.load_state_dict(checkpoint["state_dict"])
    return Path(path), int(checkpoint["zoo"]["step"])


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """The resolved recipe into the run folder, by rank zero, in one rename."""
    if not is_rank_zero():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RECIPE_FILE, recipes.dump(recipe).encode())


def hardware(trainer: Trainer) -> str:
    """e.g. `2 x NVIDIA H200` or `CPU, 2 cores`."""
    if trainer.strategy.root_device.type == "cuda":
        return f"{trainer.world_size} x {torch.cuda.get_device_name(trainer.strategy.root_device)}"
    return (
        f"CPU, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    )


def run_of(folder: Path, key: str = "mlflow_run") -> str | None:
    """MLflow's id of the run that the folder belongs to, or its `local_id`, if that can still be read."""
    try:
        noted = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return noted if isinstance(noted, str) else None


def _of_total(trainer: Trainer) -> str:
    total = total_steps(trainer)
    return "" if total is None else f" of {total}"
