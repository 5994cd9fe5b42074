"""Which checkpoints a run keeps: `last.ckpt`, whatever its score, the one before it, and the best by a score.

A checkpoint exists only at the end of an optimizer step. Lightning's ModelCheckpoint saves between
micro-batches too, writes its last only where it wrote a best, takes NaN for a score, and remembers where
the folder lay.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from zoo.evaluation.scores import or_nan
from zoo.storage.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from zoo.storage.durable import temporary_of
from zoo.training.position import ends_step
from zoo.training.stopping import StopRequest

LAST = "last.ckpt"
BEFORE = f"{LAST}.before"  # the last but one, should the last be damaged


class CheckpointSaver(Checkpoint):
    """Writes `last.ckpt`, `last.ckpt.before` and `best-step=N.ckpt`, and leaves when a signal asks for it.

    `last.ckpt` is written at the end of each epoch and after each validation, at the end of the training,
    every `every_n_minutes` or `every_n_train_steps`, and before SIGTERM or Ctrl-C end the run. A validation
    that was due and did not happen is made up for by the resume.

    Args:
        monitor: the score that tells the best, e.g. val/AP; None keeps the last alone.
        mode: whether the best is the highest or the lowest.
        save_top_k: how many of the best to keep; -1 keeps all, 0 none.
        save_last: always true; here because recipes say it.
        every_n_minutes: longest time without a checkpoint; null for none.
        every_n_train_steps: longest number of steps without one; null for none.

    Attributes:
        folder: where they go; set before the fit.
        stop: the signals, where somebody notes them.
        trusted: whether the recipe was, which a resume has to say again.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "max",
        save_top_k: int = 1,
        save_last: bool = True,
        every_n_minutes: float | None = 15.0,
        every_n_train_steps: int | None = None,
    ) -> None:
        if not save_last:
            raise ValueError("checkpoint.save_last is false; last.ckpt is what a resume needs: leave it true")
        if save_top_k < -1:
            raise ValueError(f"checkpoint.save_top_k is {save_top_k}; it is a number, or -1 for all")
        for name, value in (("minutes", every_n_minutes), ("train_steps", every_n_train_steps)):
            if value is not None and not value > 0:
                raise ValueError(f"checkpoint.every_n_{name} is {value}; it must be above 0, or null")
        self.monitor = monitor
        self.mode = mode
        self.save_top_k = save_top_k
        self.every_n_minutes = every_n_minutes
        self.every_n_train_steps = every_n_train_steps
        self.folder = Path()
        self.stop = StopRequest()
        self.trusted = False
        self.best: dict[str, float] = {}  # file name -> score, of those that are kept
        self._saved: tuple[int, bool] | None = None  # step, and whether it was validated
        self._saved_at = 0.0
        self._between_steps = True
        self._due = False  # what was decided at the end of the step, and is done when the loggers have it
        self._leaving = False

    # --- what others ask

    @property
    def last_model_path(self) -> str:
        """last.ckpt, or nothing if there is none."""
        path = self.folder / LAST
        return str(path) if path.is_file() else ""

    def resume_command(self) -> str:
        """The line to copy that goes on with the run, or nothing if there is no last.ckpt."""
        last = self.last_model_path
        trust = " --trust-recipe" if self.trusted else ""
        return f"zoo fit --ckpt-path {shlex.quote(last)}{trust}" if last else ""

    @property
    def best_model_path(self) -> str:
        """The best of those that are kept, or nothing."""
        return str(self.folder / self._ranked()[0]) if self.best else ""

    @property
    def best_score(self) -> float | None:
        """Of `best_model_path`."""
        return self.best[self._ranked()[0]] if self.best else None

    def is_best(self, score: float) -> bool:
        """Whether `score` is above all so far; NaN never is."""
        return not math.isnan(score) and (self.best_score is None or self.above(score, self.best_score))

    def score(self, trainer: Trainer) -> float:
        """The monitored score of the latest validation; NaN if it has none."""
        return or_nan(trainer.callback_metrics.get(self.monitor or ""))

    def state_dict(self) -> dict[str, Any]:
        """Names and scores: a folder may be moved."""
        return {"best": dict(self.best)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`; files that are gone are no longer the best."""
        self.best = {
            str(name): float(score)
            for name, score in state_dict["best"].items()
            if (self.folder / Path(name).name).is_file()
        }

    # --- when

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """All ranks read and write where rank zero does."""
        if stage == "fit":
            self.folder = Path(trainer.strategy.broadcast(str(self.folder.absolute())))
            resumes = trainer.ckpt_path is not None
            if resumes != trainer.strategy.broadcast(resumes):
                raise ValueError(
                    f"rank zero {'begins a new run' if resumes else 'goes on with a run'} in {self.folder}, and rank "
                    f"{trainer.global_rank} sees another folder there; all machines must share it"
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, and leaves at once if a signal has come before, to whichever rank."""
        self.stop.install()
        self._saved_at = time.monotonic()
        self.obey_if_any_asked(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Saves the step before, which the loggers have only now: a kill in between would lose its records."""
        self._do_what_is_due(trainer)
        self._between_steps = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Decides whether to save, if this was the last micro-batch of its step: time or a signal asks for it."""
        if not ends_step(trainer, batch_idx):
            return
        self._between_steps = True
        steps = self.every_n_train_steps
        stop, due = self._agreed(trainer, self.stop.signal is not None, self._time_is_up())
        self._due = stop or due or (steps is not None and trainer.global_step % steps == 0)
        self._leaving = stop

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the step before; leaves without it, and then the checkpoint says that it is still due."""
        if _fits(trainer):
            self._do_what_is_due(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """A long validation is left at once; several ranks finish it, for they have different shares."""
        if trainer.world_size == 1 and self.stop.signal is not None:
            if _fits(trainer):
                self.save_last(trainer)
            self.stop.obey()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """As in a validation after the fit."""
        if trainer.world_size == 1:
            self.stop.obey_if_asked()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves: as one of the best if the score says so, and as the last."""
        if not _fits(trainer):
            return
        name, dropped = self._enter(f"best-step={trainer.global_step}.ckpt", self.score(trainer))
        if name is not None:
            self._save(trainer, name)
            self._take_as_last(trainer, name)
        else:
            self.save_last(trainer)
        if trainer.is_global_zero:
            for old in dropped:
                (self.folder / old).unlink(missing_ok=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves an epoch that no validation has saved."""
        self._due = True
        self._do_what_is_due(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves a training that ended inside an epoch."""
        self.save_last(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves if a signal has ended something on the way, e.g. a data worker, and no step was cut by it."""
        ended = self.stop.signal is not None and not isinstance(exception, OSError)
        leaving = isinstance(exception, SIGTERMException | KeyboardInterrupt)
        if ended and not leaving and self._between_steps and trainer.world_size == 1 and trainer.global_step:
            self.save_last(trainer)

    def obey_if_any_asked(self, trainer: Trainer) -> None:
        """Ends the run if a signal has come, to whichever rank; for a place that all ranks come to."""
        stop, _ = self._agreed(trainer, self.stop.signal is not None, due=False)
        if stop:
            self.stop.obey()

    # --- how

    def save_last(self, trainer: Trainer) -> None:
        """Writes last.ckpt, unless it is of this step already and nothing has changed since."""
        if self._saved != self._present(trainer):
            self._save(trainer, LAST)

    def adopt_last(self, trainer: Trainer, score: float, wins_tie: bool = True) -> None:
        """Enters the weights in last.ckpt with a score that was measured after the fit; for rank zero.

        A tie goes to them: they have been trained longest. Not where a validation of the recipe's is made up for,
        which would have left it to the earlier ones.
        """
        checkpoint = read_checkpoint(self.folder / LAST)
        if checkpoint["zoo"]["step"] != trainer.global_step:
            return  # resumed at an earlier checkpoint, from which nothing was left to train
        tie = wins_tie and self.best_score is not None and score == self.best_score
        name, dropped = self._enter(f"best-step={trainer.global_step}.ckpt", score, tie)
        checkpoint["zoo"]["validated"] = True
        states = {c.state_key: c.state_dict() for c in trainer.callbacks}  # type: ignore[attr-defined]
        checkpoint["callbacks"] |= {key: state for key, state in states.items() if state}
        for target in filter(None, (name, LAST)):
            try:
                AtomicCheckpointIO().save_checkpoint(checkpoint, self.folder / target)
            except OSError as error:
                raise self._told(error, target) from error
        for old in dropped:
            (self.folder / old).unlink(missing_ok=True)
        self._tell_loggers(trainer)

    def _enter(self, name: str, score: float, before_equals: bool = False) -> tuple[str | None, list[str]]:
        """(`name` if it is one of the best now, else None; names that are no longer)."""
        if math.isnan(score) or self.save_top_k == 0:
            return None, []
        others = {n: s for n, s in self.best.items() if n != name}
        order = {name: score, **others} if before_equals else {**others, name: score}
        ranked = sorted(order, key=lambda n: order[n], reverse=self.mode == "max")
        kept = ranked if self.save_top_k == -1 else ranked[: self.save_top_k]
        if name not in kept:
            return None, []
        self.best = {n: order[n] for n in kept}
        return name, [n for n in ranked if n not in kept]

    def _ranked(self) -> list[str]:
        return sorted(self.best, key=lambda n: self.best[n], reverse=self.mode == "max")

    def best_in(self, checkpoint: Mapping[str, Any]) -> float | None:
        """The best score when a checkpoint was written."""
        scores = checkpoint["callbacks"].get(self.state_key, {}).get("best", {}).values()
        return (max if self.mode == "max" else min)(scores, default=None)

    def above(self, score: float, other: float) -> bool:
        """Whether a score is better than another."""
        return score > other if self.mode == "max" else score < other

    def _present(self, trainer: Trainer) -> tuple[int, bool]:
        position = trainer.lightning_module.position()  # type: ignore[operator, union-attr]
        return position.step, position.validated

    def _save(self, trainer: Trainer, name: str) -> None:
        """Writes a checkpoint of this moment.

        Raises:
            OSError: the disk is full or read-only; names the last checkpoint that is whole.
        """
        try:
            if name == LAST:
                self._keep_last(trainer)
            trainer.save_checkpoint(self.folder / name)
        except OSError as error:
            raise self._told(error, name) from error
        self._note_saved(trainer)

    def _take_as_last(self, trainer: Trainer, name: str) -> None:
        """last.ckpt becomes the file just written: a second name of it, where the file system has such."""
        linked = True
        if trainer.is_global_zero:
            try:
                self._keep_last(trainer)
                self._link(name, LAST)
            except OSError:
                linked = False
        if not trainer.strategy.broadcast(linked):
            self._save(trainer, LAST)
        self._note_saved(trainer)

    def _keep_last(self, trainer: Trainer) -> None:
        """The last becomes the one before it; where one file cannot have two names, there is no last for a moment."""
        last, before = self.folder / LAST, self.folder / BEFORE
        if not trainer.is_global_zero or not last.is_file():
            return
        if before.is_file() and before.samefile(last):
            return  # a save has failed since; and renaming between two names of one file leaves both
        try:
            self._link(LAST, BEFORE)
        except OSError:
            os.replace(last, before)

    def keep_best_as(self, trainer: Trainer, name: str) -> None:
        """Gives the best so far a second name, under which it stays when it is no longer the best.

        A file of that name stays where there is no best: the run has been here before and went back.

        Raises:
            FileNotFoundError: on all ranks: there is neither.
        """
        best, kept = Path(self.best_model_path), not self.best and (self.folder / name).is_file()
        if trainer.is_global_zero and self.best and best.is_file():
            try:
                self._link(best.name, name)
            except OSError:  # a file system without links
                temporary = temporary_of(self.folder / name)
                shutil.copyfile(best, temporary)
                os.replace(temporary, self.folder / name)
            kept = True
        if not trainer.strategy.broadcast(kept):
            raise FileNotFoundError(
                f"{best} is gone" if self.best else f"nothing was scored by {self.monitor}"
            )

    def _link(self, name: str, second: str) -> None:
        temporary = temporary_of(self.folder / second)
        os.link(self.folder / name, temporary)
        os.replace(temporary, self.folder / second)

    def _note_saved(self, trainer: Trainer) -> None:
        self._saved = self._present(trainer)
        self._saved_at = time.monotonic()
        self._tell_loggers(trainer)

    def _tell_loggers(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            logger.after_save_checkpoint(self)  # type: ignore[arg-type]

    def _told(self, error: OSError, name: str) -> OSError:
        reason = error.strerror or str(error)
        again = self.resume_command()
        if again:
            reason += (
                f"; {LAST} before it is whole{'' if self._saved is None else f' (step {self._saved[0]})'}: "
                f"make room, then go on with: {again}"
            )
        return OSError(error.errno, reason, str(self.folder / name))

    def _time_is_up(self) -> bool:
        minutes = self.every_n_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def _agreed(self, trainer: Trainer, stop: bool, due: bool) -> tuple[bool, bool]:
        """What any rank wants: all save and leave together."""
        if trainer.world_size == 1:
            return stop, due
        wants = torch.tensor([stop, due], dtype=torch.int32, device=trainer.strategy.root_device)
        dist.all_reduce(wants, op=dist.ReduceOp.MAX)
        agreed = wants.tolist()
        return bool(agreed[0]), bool(agreed[1])

    def _do_what_is_due(self, trainer: Trainer) -> None:
        if self._due:
            self.save_last(trainer)
        self._due = False
        if self._leaving:
            self.stop.obey()


def _fits(trainer: Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking
