"""Where a training stands between two optimizer steps, in steps and images: a step may be cut in any way.

Lightning counts micro-batches, and differently in each hook that may save. So its counters are
not used: they are written anew, for the present cut of a step, whenever a checkpoint is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from lightning.pytorch import Trainer


@dataclass(frozen=True, kw_only=True)
class Position:
    """The end of an optimizer step.

    Attributes:
        step: optimizer steps of the whole training.
        epoch: epochs whose steps are all done.
        step_in_epoch: steps of the next one, fewer than it has.
        step_size: images of a step.
        validated: False if a validation is due at this step and was not finished.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    step_size: int = 1
    validated: bool = True

    def after(self, step: int, steps_per_epoch: int, validated: bool) -> Position:
        """The position at the later `step` of the same training."""
        epochs, inside = divmod(self.step_in_epoch + step - self.step, steps_per_epoch)
        return replace(self, step=step, epoch=self.epoch + epochs, step_in_epoch=inside, validated=validated)

    def of_size(self, step_size: int, steps_per_epoch: int) -> Position:
        """The same images, counted in steps of another size; those of a step that is cut are used again."""
        inside = self.step_in_epoch * self.step_size // step_size
        if inside >= steps_per_epoch:  # the data have become fewer
            return replace(self, epoch=self.epoch + 1, step_in_epoch=0, step_size=step_size)
        return replace(self, step_in_epoch=inside, step_size=step_size)


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a micro-batch is the last one of its step: an epoch has whole steps."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


# Lightning has no public names for what follows; all private ones that are used are here.


def validation_follows(trainer: Trainer) -> bool:
    """Whether Lightning will validate after the step that has just ended."""
    fit = trainer.fit_loop
    epoch = fit.epoch_progress.current
    running = epoch.processed < epoch.started  # type: ignore[attr-defined]
    if not running or fit._data_fetcher is None:
        return False
    batches: Any = fit.epoch_loop.batch_progress.current
    if batches.ready != batches.processed:  # the next one has begun: a validation was not due, or is done
        return False
    ends = batches.ready % trainer.accumulate_grad_batches == 0
    return ends and fit.epoch_loop._should_check_val_fx(fit._data_fetcher)


@contextmanager
def in_epoch_before(trainer: Trainer, yes: bool) -> Iterator[None]:
    """Inside, the epoch that loggers are told is the one before, whose validation is made up for."""
    epoch = trainer.fit_loop.epoch_progress.current
    epoch.completed -= yes
    yield
    epoch.completed += yes


def validate_now(trainer: Trainer, *, of_epoch_before: bool) -> None:
    """Runs the validation that is due before the next step, as Lightning does it between two steps."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    with in_epoch_before(trainer, of_epoch_before):
        trainer.validating = True
        loop.restarting = False
        loop.run()
        trainer.training = True


def stand_after(trainer: Trainer, position: Position) -> None:
    """Sets what loggers are told to that after a fit that has ended here, also where nothing was left to train."""
    trainer.fit_loop.epoch_progress.current.completed = position.epoch + (position.step_in_epoch > 0)
    count_logged_steps(trainer)


def count_logged_steps(trainer: Trainer) -> None:
    """Sets the step that loggers are given: Lightning's own count of it is off by one after some resumes."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def write_loops(loops: dict[str, Any], position: Position, accumulation: int) -> None:
    """Sets the counters in a checkpoint's `loops` to `position`; `accumulation`: micro-batches of a step."""
    fit = loops["fit_loop"]
    begun = position.epoch + (position.step_in_epoch > 0)
    epochs = {
        "ready": begun, "started": begun, "processed": position.epoch, "completed": position.epoch
    }  # fmt: skip
    fit["epoch_progress"] = {"total": epochs, "current": dict(epochs)}
    total, inside = position.step, position.step_in_epoch
    fit["epoch_loop.batch_progress"] = {
        "total": _four(total * accumulation), "current": _four(inside * accumulation), "is_last_batch": False
    }  # fmt: skip
    fit["epoch_loop.scheduler_progress"] = {"total": _two(total), "current": _two(inside)}
    fit["epoch_loop.automatic_optimization.optim_progress"] = {
        "optimizer": {
            "step": {"total": _two(total), "current": _two(inside)},
            "zero_grad": {
                "total": {**_two(total), "started": total},
                "current": {**_two(inside), "started": inside},
            },
        }
    }
    fit["epoch_loop.val_loop.batch_progress"] = {
        "total": _four(0),
        "current": _four(0),
        "is_last_batch": False,
    }
    # what Lightning has after a step and before its validation
    fit["epoch_loop.state_dict"] = {"_batches_that_stepped": max(0, total - 1)}


def _two(number: int) -> dict[str, int]:
    return {"ready": number, "completed": number}


def _four(number: int) -> dict[str, int]:
    return {"ready": number, "started": number, "processed": number, "completed": number}
