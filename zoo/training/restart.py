"""The second stage of D-FINE, DEIM and DEIMv2: short restarts from the best checkpoint of the first.

At the start of `schedule.restart_epoch` the training goes back to the best checkpoint so far: weights, average with
its count of updates, moments of the optimizer, scale of mixed precision. The step, the schedule and the data go on;
the official code lets the first step have the learning rate of that checkpoint, here it has the schedule's. The
epochs after it are a streak: as long as each scores above the best of its streak, it goes on; after one that does not,
the next epoch starts from the first stage's best again, with a new streak. The first streak begins with the score of
that checkpoint.

The decay of the average stays as it is. The official code writes a `restart decay` into an attribute that its decay
function does not read.

Source: Peterande/D-FINE@4a1f73a src/solver/det_solver.py, fit; the same in DEIMv2@0fff8d4 engine/solver/det_solver.py
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.storage.checkpoint_io import read_checkpoint
from zoo.training.saving import CheckpointSaver

FIRST_STAGE = "first-stage.ckpt"  # in the run's folder: the checkpoint that the second stage starts from


class SecondStage(Callback):
    """Does the restarts; what it decides is part of a checkpoint, so a resume decides the same.

    Attributes:
        epoch: that the second stage begins with, from 0.
        say: writes one line for the user.
    """

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.say: Callable[[str], None] = lambda line: None
        self.streak: float | None = None  # the best score since the last restart; None if there is none yet
        self.due = False  # the next epoch begins with a restart

    def state_dict(self) -> dict[str, Any]:
        """Where the second stage stands."""
        return {"streak": self.streak, "due": self.due}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.streak, self.due = state_dict["streak"], state_dict["due"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds out now what would only show at the end of the first stage.

        Raises:
            ValueError: there will be no best checkpoint to go back to.
        """
        limit = trainer.max_epochs
        if stage != "fit" or (limit not in (None, -1) and limit <= self.epoch):
            return
        saver, every = _saver(trainer), trainer.check_val_every_n_epoch
        if saver is None or saver.monitor is None or saver.save_top_k == 0:
            raise ValueError(
                self._refusal("no best is kept", "set checkpoint.monitor and checkpoint.save_top_k")
            )
        if trainer.limit_val_batches == 0 or (every is not None and every > self.epoch):
            raise ValueError(self._refusal("no epoch before it is validated", "validate more often"))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes back to the first stage's best where that is due; a resume at this place does it again."""
        position = pl_module.position()  # type: ignore[operator]
        if position.step_in_epoch:
            return
        first = position.epoch == self.epoch
        if not (first or self.due):
            return
        saver = _saver(trainer)
        assert saver is not None
        if first:
            try:
                saver.keep_best_as(trainer, FIRST_STAGE)
            except FileNotFoundError as error:
                raise FileNotFoundError(self._refusal(str(error), "")) from error
        checkpoint = self._go_back(trainer, saver, position.epoch)
        self.streak, self.due = (saver.best_in(checkpoint) if first else None), False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decides, before the checkpoint of this moment is written."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.count(trainer)

    def count(self, trainer: Trainer) -> None:
        """Decides by a validation of the recipe's."""
        if trainer.current_epoch < self.epoch:
            return
        saver = _saver(trainer)
        assert saver is not None
        score = saver.score(trainer)
        better = not math.isnan(score) and (self.streak is None or saver.above(score, self.streak))
        self.due = not better
        if better:
            self.streak = score

    def _go_back(self, trainer: Trainer, saver: CheckpointSaver, epoch: int) -> dict[str, Any]:
        try:
            checkpoint = read_checkpoint(saver.folder / FIRST_STAGE)
        except FileNotFoundError as error:
            raise FileNotFoundError(self._refusal(f"{saver.folder / FIRST_STAGE} is gone", "")) from error
        trainer.strategy.load_model_state_dict(checkpoint, strict=True)
        trainer.strategy.load_optimizer_state_dict(checkpoint)
        module = trainer.lightning_module
        (scheduler,) = (config.scheduler for config in trainer.lr_scheduler_configs)
        module.schedule.take_over(trainer.optimizers[0], scheduler, module.network)  # type: ignore[operator, arg-type, union-attr]
        precision = trainer.precision_plugin
        scale = checkpoint.get(type(precision).__qualname__)
        if scale is not None:
            precision.load_state_dict(scale)
        if trainer.is_global_zero:
            self.say(
                f"epoch {epoch + 1:>3}  starts from step {checkpoint['zoo']['step']}, the first stage's best"
            )
        return checkpoint

    def _refusal(self, why: str, way_out: str) -> str:
        or_else = f"{way_out}, or " if way_out else ""
        return (
            f"schedule.restart_epoch {self.epoch} goes back to the best checkpoint before it, and {why}: "
            f"{or_else}go on without it, with --model.schedule.restart_epoch null"
        )


def _saver(trainer: Trainer) -> CheckpointSaver | None:
    return next((c for c in trainer.checkpoint_callbacks if isinstance(c, CheckpointSaver)), None)
