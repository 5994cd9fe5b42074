"""When a training ends before its schedule does: no better for a while, or out of time."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.training.position import ends_step
from zoo.training.saving import CheckpointSaver


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """When the score is no better any more; the time has the key `trainer.max_time`.

    Attributes:
        patience: validations without a better score of `checkpoint.monitor` after which the training ends; null for
            never. What is validated is the moving average, where there is one. Of a training that starts a second
            stage from its best (`schedule.restart_epoch`) only those of that stage count: the first does not end it.
        min_delta: a score counts as better if it is so by more than this.
    """

    patience: int | None = None
    min_delta: float = 0.001

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"stopping.patience is {self.patience}; it must be at least 1, or null for none")
        if not 0 <= self.min_delta < math.inf:
            raise ValueError(f"stopping.min_delta is {self.min_delta}; it must be a number of at least 0")


class StopRules(Callback):
    """Ends a training by its patience or its time, always at the end of an optimizer step and after a validation.

    What it has counted is part of every checkpoint: a resume decides the same, and a run that was stopped stays so
    until it is given more. Lightning's EarlyStopping decides anew after a resume, its Timer between micro-batches.

    Args:
        stopping: see there.
        max_time: of all training, resumes and validations included; null for none.

    Attributes:
        waited: validations since the last better one.
        better: the score of that one; None as long as there is none.
    """

    def __init__(self, stopping: Stopping, max_time: datetime.timedelta | None = None) -> None:
        self.stopping, self.max_time = stopping, max_time
        self.waited = 0
        self.better: float | None = None
        self._counts_from = 0  # epoch: of the second stage, where there is one
        self._seconds = 0.0  # of earlier processes
        self._begun: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """What was counted; the time where it matters, for it is another one in each repetition."""
        counted: dict[str, Any] = {"waited": self.waited, "better": self.better}
        return counted if self.max_time is None else counted | {"seconds": self.seconds}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.waited, self.better = state_dict["waited"], state_dict["better"]
        self._seconds = state_dict.get("seconds", 0.0)

    @property
    def seconds(self) -> float:
        """Trained so far."""
        return self._seconds + (0.0 if self._begun is None else time.monotonic() - self._begun)

    def reason(self) -> str | None:
        """The rule that ends the training now: `patience`, `max_time` or None."""
        if self.stopping.patience is not None and self.waited >= self.stopping.patience:
            return "patience"
        if self.max_time is not None and self.seconds >= self.max_time.total_seconds():
            return "max_time"
        return None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds out now that there is no score to wait for.

        Raises:
            ValueError: there will be none.
        """
        if stage == "fit" and self.stopping.patience is not None:
            saver = trainer.checkpoint_callback
            if not isinstance(saver, CheckpointSaver) or saver.monitor is None:
                raise ValueError(
                    f"stopping.patience {self.stopping.patience} waits for a better score, and there is none: set "
                    "checkpoint.monitor, as in --checkpoint.monitor val/AP"
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock; a run that was stopped trains no step more."""
        self._begun = time.monotonic()
        self._counts_from = second_stage_of(trainer, pl_module) or 0
        self._decide(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks at the clock when a step is done; Lightning validates before it ends."""
        if self.max_time is not None and ends_step(trainer, batch_idx):
            self._decide(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts, before the checkpoint of this moment is written."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.count(trainer)
        if self.stopping.patience is not None:
            self._decide(trainer)

    def count(self, trainer: Trainer) -> None:
        """Counts a validation of the recipe's."""
        saver = trainer.checkpoint_callback
        if not isinstance(saver, CheckpointSaver):
            return
        score, sign = saver.score(trainer), 1 if saver.mode == "max" else -1
        ahead = math.inf if self.better is None else sign * (score - self.better)
        if not math.isnan(score) and ahead > self.stopping.min_delta:
            self.better, self.waited = score, 0
        elif trainer.current_epoch >= self._counts_from:
            self.waited += 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock."""
        self._seconds, self._begun = self.seconds, None

    def _decide(self, trainer: Trainer) -> None:
        """All ranks do what rank zero sees on its clock."""
        trainer.should_stop |= trainer.strategy.broadcast(self.reason() is not None)

    def told(self, trainer: Trainer, by_option: bool) -> str:
        """The rule that has ended the training, as the option or the key that set it, with the line that goes on."""
        saver = trainer.checkpoint_callback
        again = saver.resume_command() if isinstance(saver, CheckpointSaver) else ""
        more = f"; for more: {again or 'again with'}"
        if self.reason() == "patience":
            assert isinstance(saver, CheckpointSaver)
            best = "none" if self.better is None else f"{self.better:.4f}"
            validations = f"{self.waited} validation{'' if self.waited == 1 else 's'}"
            rule = "--patience" if by_option else "stopping.patience"
            return (
                f"by {rule} {self.stopping.patience}: in {validations} no {saver.monitor} was better than {best} "
                f"by more than {self.stopping.min_delta:g}{more} --stopping.patience {2 * self.waited}"
            )
        assert self.max_time is not None
        rule = (
            f"--max-time {spoken(self.max_time)}" if by_option else f"trainer.max_time {clock(self.max_time)}"
        )
        return f"by {rule}: it is over{more} --trainer.max_time {clock(2 * self.max_time)}"


def second_stage_of(trainer: Trainer, module: LightningModule) -> int | None:
    """The epoch that the second stage begins with; None where there is none, or the training ends before."""
    stage = getattr(module, "second_stage", None)
    if stage is None:
        return None
    per_epoch = int(trainer.num_training_batches) // trainer.accumulate_grad_batches
    return stage.epoch if stage.epoch * per_epoch < trainer.estimated_stepping_batches else None


def timedelta(value: Any) -> datetime.timedelta | None:
    """`trainer.max_time` as `zoo.runs.trainer_options` has checked it: DD:HH:MM:SS, units, or None."""
    if value is None or isinstance(value, datetime.timedelta):
        return value
    if isinstance(value, Mapping):
        return datetime.timedelta(**{str(unit): int(number) for unit, number in value.items()})
    days, hours, minutes, seconds = map(int, str(value).split(":"))
    return datetime.timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def clock(time: datetime.timedelta) -> str:
    """DD:HH:MM:SS."""
    minutes, seconds = divmod(round(time.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days:02d}:{hours:02d}:{minutes:02d}:{seconds:02d}"


def spoken(time: datetime.timedelta) -> str:
    """As `--max-time` takes it: 1d12h, 90m is 1h30m."""
    seconds = round(time.total_seconds())
    parts = zip(
        "dhms", (seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60, seconds % 60), strict=True
    )
    return "".join(f"{number}{unit}" for unit, number in parts if number) or "0s"
