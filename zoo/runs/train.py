"""Trains a complete recipe, for `fit`, `finetune` and `demo`."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from datamodules.base import DetectionDataModule
from datamodules.images.decodable import usable_cores
from datamodules.progress import watched
from datamodules.shards.reader import is_address, local_path
from zoo.runs import recipes, schema, signals
from zoo.runs.console import Console, counted, is_rank_zero, quoted
from zoo.runs.init_from import start_from
from zoo.runs.input_sizes import refuse_sizes
from zoo.runs.launch import connect, launched, lost, of_another_process
from zoo.runs.lightning import ZooCLI
from zoo.runs.options.batch_size import BatchSearch
from zoo.runs.recipes import Recipe
from zoo.runs.run_folder import RECIPE_FILE, RUN_FILE, claimed, new_folder, note, noted, refuse_used
from zoo.runs.threads import chosen
from zoo.runs.tracked import note_start, run_name
from zoo.runs.trust import strangers
from zoo.storage.checkpoint_io import read_checkpoint
from zoo.storage.durable import FULL, write_atomically, write_json
from zoo.tracking.logger import MLflowTracker
from zoo.training import freezing
from zoo.training.callbacks import History, Progress, total_steps
from zoo.training.diagnosis import ZeroAP
from zoo.training.module import DetectionModule
from zoo.training.position import in_epoch_before, stand_after
from zoo.training.preflight import run_preflight
from zoo.training.restart import SecondStage
from zoo.training.saving import BEFORE, LAST, CheckpointSaver
from zoo.training.stop_rules import StopRules
from zoo.training.stopping import StopRequest


class Registration(NamedTuple):
    """What a fine-tuning ends with; noted in its folder, for one that is interrupted."""

    name: str  # of the registry
    registry: str | None  # folder
    parent: str | None  # reference of the weights it started from


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
    stop: StopRequest
    stopped: str | None  # the rule that ended it before its schedule did

    @property
    def tracker(self) -> MLflowTracker | None:
        """The MLflow run, unless the recipe chose another logger."""
        logger = self.trainer.logger
        return logger if isinstance(logger, MLflowTracker) else None


@contextmanager
def trained(
    recipe: Recipe, folder: Path | None, resume: Path | None, overfit_first: bool, registry: str | Path | None,
    console: Console, trusted: bool = False, registration: Registration | None = None,
) -> Iterator[TrainedRun]:  # fmt: skip
    """Trains a complete recipe; inside, the weights are those of its best checkpoint.

    Until it is left no other run writes into the folder, and a signal ends it where it can be gone on with.

    Args:
        recipe: complete.
        folder: of the run; None makes one under mlruns/checkpoints.
        resume: checkpoint to go on from.
        overfit_first: the longer preflight.
        registry: where a named `init_from.source` is looked up.
        console: for the user.
        trusted: whether the recipe may name classes of others, which are imported.
        registration: what a resume will find noted, and end with.

    Raises:
        ValueError, OSError: the recipe, the data or the weights are at fault; the folder is another run's;
            the disk is full; or the preflight failed.
        Terminated, KeyboardInterrupt: by SIGTERM or Ctrl-C; `last.ckpt` is written.
    """
    if folder is None:
        folder = new_folder(str(recipe.get("about", {}).get("name", "run")))
    elif resume is None:
        refuse_used(folder, trusted)
    folder = folder.absolute()
    before = noted(folder).get("threads") if resume is not None else None
    with (
        claimed(folder),
        chosen(console, before if isinstance(before, int) else None),
        _train(recipe, folder, resume, overfit_first, registry, console, trusted, registration) as run,
    ):
        yield run


@contextmanager
def _train(
    recipe: Recipe, folder: Path, resume: Path | None, overfit_first: bool, registry: str | Path | None,
    console: Console, trusted: bool, registration: Registration | None,
) -> Iterator[TrainedRun]:  # fmt: skip
    history = History()
    schema.check(recipe, trusted)
    if trusted and (named := strangers(recipe["trainer"])):
        console.say(f"trusted     the recipe's word alone imports {', '.join(named)}")
    refuse_missing_data(recipe)
    with said_again(resume, console, trusted):
        if resume is not None:
            resume = whole(resume, folder, console)
        ids = noted_ids(recipe, folder, resume)
        shown = [Progress(console.say, watched()), history, ZeroAP(console.say)]
        cli = ZooCLI(
            recipe, folder, shown, trusted=trusted, run_name=run_name(recipe), run_id=ids["run_id"],
            local_id=ids["local_id"],
        )  # fmt: skip
        cli.datamodule.setup("fit")
    module, data, trainer = cli.model, cli.datamodule, cli.trainer
    saver = saver_of(trainer)
    if module.second_stage is not None:
        module.second_stage.say = console.say
    refuse_sizes(module, data, recipe)
    module.schedule.freeze(module.network.named_parameters())
    write_recipe(recipe, folder)
    if is_rank_zero():
        if resume is None:
            ending = {} if registration is None else {"register": registration._asdict()}
            write_json(folder / RUN_FILE, ending | ({"mlflow_run": ids["run_id"]} if ids["run_id"] else {}))
        note(folder, threads=torch.get_num_threads())
        workers, cores = data.num_workers, usable_cores()
        if workers > cores:
            console.say(
                f"workers     {workers}, on {counted(cores, 'core')}; fewer: --data.num_workers {cores}"
            )
        if isinstance(trainer.logger, MLflowTracker):  # finds a run that is made, and by a kill not noted
            note(folder, local_id=trainer.logger.local_id)
        for line in freezing.told(module.network):
            console.say(line)
        console.say(f"recipe      {folder / RECIPE_FILE}")
        console.say(f"run         {folder}")
    with ended_as_asked(trainer, saver, console):
        if resume is None:
            module.adopt(data.label_map, data.input)
            start_from(cli.config_init.init_from, module, data.label_map, registry, console)
            preflight(trainer, module, data, folder, overfit_first, console)
        begun = time.monotonic()
        search = batch_search(trainer, recipe, data, folder, console)
        with StopRequest() as saver.stop:
            if search is None:
                note_start(trainer, recipe, data, folder)
            else:
                search.search(trainer, module)
            connect(trainer, cli.config_init.distributed.timeout_minutes)
            if recipe.get("computing", {}).get("compile"):
                console.say(
                    "compiling   at the first step, and at the first validation: a minute or more each"
                )
            fit(trainer, module, data, resume)
            stopped = note_stop(trainer, folder, console)
            saver.obey_if_any_asked(trainer)
            if stopped is None and resume is not None and module.position() == module.begun:
                console.say(
                    f"finished    step {trainer.global_step}{_of_total(trainer)}: nothing is left to train; for more: "
                    f"zoo fit --ckpt-path {quoted(resume)} with a higher --trainer.max_epochs or --trainer.max_steps"
                )
            score_last_steps(trainer, module, data, history)
            best, step = load_best(trainer, module, console)
            seconds = time.monotonic() - begun
            yield TrainedRun(
                folder, recipe, module, data, trainer, history, best, step, seconds, saver.stop, stopped
            )


def fit(trainer: Trainer, module: DetectionModule, data: DetectionDataModule, resume: Path | None) -> None:
    """Trains.

    Raises:
        ValueError: options that Lightning refuses together.
    """
    try:
        trainer.fit(module, datamodule=data, ckpt_path=None if resume is None else str(resume))
    except MisconfigurationException as error:
        raise ValueError(" ".join(str(error).split())) from error


def batch_search(
    trainer: Trainer, recipe: Recipe, data: DetectionDataModule, folder: Path, console: Console
) -> BatchSearch | None:
    """What the recipe asks for by `computing.search_batch`; recipe and MLflow then get the number that is found."""
    if not recipe.get("computing", {}).get("search_batch"):
        return None

    def done() -> None:
        write_recipe(recipe, folder)
        note_start(trainer, recipe, data, folder)

    search = BatchSearch(recipe, data, console, done)
    trainer.callbacks.insert(0, search)  # type: ignore[attr-defined]
    return search


def note_stop(trainer: Trainer, folder: Path, console: Console) -> str | None:
    """The rule that ended the training before its schedule did: told, and kept in run.json and as MLflow's tag."""
    rules = next(c for c in trainer.callbacks if isinstance(c, StopRules))  # type: ignore[attr-defined]
    stopped = (rules.reason() or "callback") if trainer.should_stop else None
    if stopped is not None:
        finetuned = noted(folder).get("register") is not None
        why = rules.told(trainer, finetuned) if rules.reason() else "by a callback of the recipe"
        console.say(f"stopped     step {trainer.global_step}{_of_total(trainer)} {why}")
    if noted(folder).get("stopped") != stopped and is_rank_zero():
        note(folder, stopped=stopped)
        for logger in trainer.loggers:
            if isinstance(logger, MLflowTracker):
                logger.set_tags({"zoo.stopped": stopped or "schedule"})
    return stopped


@contextmanager
def said_again(resume: Path | None, console: Console, trusted: bool) -> Iterator[None]:
    """Inside, before anything is trained, a signal leaves the checkpoint as it is; says how to go on with it."""
    try:
        yield
    except (KeyboardInterrupt, signals.Terminated) as error:
        if resume is None:
            raise
        trust = " --trust-recipe" if trusted else ""
        console.say(f"interrupted; go on with: zoo fit --ckpt-path {quoted(resume)}{trust}")
        if isinstance(error, KeyboardInterrupt):
            raise signals.Told from error
        raise


@contextmanager
def ended_as_asked(trainer: Trainer, saver: CheckpointSaver, console: Console) -> Iterator[None]:
    """Inside, a signal ends it as signals end commands, whatever it ended first; says how to go on.

    Raises:
        Terminated, KeyboardInterrupt: by SIGTERM or Ctrl-C.
    """
    try:
        yield
    except (SIGTERMException, KeyboardInterrupt, SystemExit) as error:
        # Lightning answers Ctrl-C with exit(1) after its own clean-up
        by_term = isinstance(error, SIGTERMException | signals.Terminated)
        number = saver.stop.signal or (signal.SIGTERM if by_term else signal.SIGINT)
    except Exception as error:
        if saver.stop.signal is None and of_another_process(error):
            raise ConnectionError(lost(error, saver.resume_command())) from error
        if saver.stop.signal is None and isinstance(error, OSError) and error.errno in FULL:
            raise no_room(error, saver) from error
        if saver.stop.signal is None:
            raise
        number = saver.stop.signal
    else:
        return
    for logger in trainer.loggers:
        if isinstance(logger, MLflowTracker):
            logger.finalize("killed")
    last, again = saver.last_model_path, saver.resume_command()
    if again:
        launch = launched()
        how = "" if launch is None else f", started by {launch.by} as before,"
        console.say(f"interrupted; go on{how} with: {again}")
    else:
        console.say("interrupted before a step was saved; nothing is lost: start it again as before")
    if number != signal.SIGINT:
        raise signals.Terminated(number)
    raise signals.Told(
        f"the run is kept; go on with zoo.fit(resume={last!r}{', trust=True' if saver.trusted else ''})"
        if last
        else ""
    )


def no_room(error: OSError, saver: CheckpointSaver) -> OSError:
    """The same of a full disk, with the line that goes on; of a checkpoint it has that already."""
    again = saver.resume_command()
    if not again or again in str(error):
        return error
    reason = f"{os.strerror(error.errno or 0)}; {LAST} is whole: make room, then go on with: {again}"
    return OSError(error.errno, reason, error.filename)


def whole(resume: Path, folder: Path, console: Console) -> Path:
    """The checkpoint if all of its bytes are as they were written, else the one before it; says where it stands.

    A damaged last.ckpt in the run's own folder is kept under another name, so that it replaces no whole one.

    Raises:
        ValueError: there is no other.
    """
    before = resume.with_name(BEFORE)
    try:
        if not resume.is_file() and resume.name == LAST and before.is_file():
            raise ValueError(f"{resume} is gone")  # the processes of other devices come after the first
        checkpoint = read_checkpoint(resume)
    except ValueError as error:
        if resume.name != LAST or not before.is_file():
            raise
        checkpoint = read_checkpoint(before)
        console.say(f"damaged     {error}: the one before it is taken, {before}")
        if is_rank_zero() and resume.is_file() and resume.absolute().parent == folder:
            os.replace(resume, resume.with_name(f"{LAST}.damaged"))
        resume = before
    facts = checkpoint.get("zoo", {})
    console.say(f"resume      {resume}: step {facts.get('step')}")
    return resume


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
    position = module.position()
    extra = position.validated  # else a signal came before a validation of the recipe's
    if extra:
        stand_after(trainer, position)
    with in_epoch_before(trainer, not extra and position.step_in_epoch == 0):
        trainer.validate(module, datamodule=data, verbose=False)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if not extra and isinstance(callback, StopRules | SecondStage):
                callback.count(trainer)
    if saver.monitor is not None and saver.monitor not in trainer.callback_metrics:
        raise ValueError(
            f"checkpoint.monitor is {saver.monitor}, which was not measured; take one of "
            + ", ".join(sorted(n for n in trainer.callback_metrics if n.startswith("val/")))
        )
    history.add(trainer, [name for name in trainer.callback_metrics if name.startswith("val/")])
    if trainer.is_global_zero:
        saver.adopt_last(trainer, saver.score(trainer), wins_tie=extra)
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


def noted_ids(recipe: Recipe, folder: Path, resume: Path | None) -> dict[str, str | None]:
    """MLflow's id of the run that is gone on with, and the `local_id` by which it is found if it has none yet.

    A run that was ended before its first checkpoint is begun again, by the same recipe, under the same ids.
    """
    facts = noted(folder)
    if resume is None:
        place = folder / RECIPE_FILE
        if not place.is_file() or place.read_text(encoding="utf-8") != recipes.dump(recipe):
            facts = {}
    ids = {"run_id": facts.get("mlflow_run"), "local_id": facts.get("local_id")}
    return {name: value if isinstance(value, str) else None for name, value in ids.items()}


def _of_total(trainer: Trainer) -> str:
    total = total_steps(trainer)
    return "" if total is None else f" of {total}"
