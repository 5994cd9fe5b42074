"""Callbacks of a training run: progress, and the curves' history."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm.auto import tqdm  # a widget in a notebook

from zoo.evaluation.scores import or_nan
from zoo.training.saving import CheckpointSaver

PLAIN_SECONDS = 10.0  # between two lines where there is no terminal
BAR_SECONDS = 1.0  # between two readings of the loss: on a GPU each one waits for the step


class Progress(Callback):
    """A bar on a terminal, else a line every ten seconds; and one line per validation.

    Args:
        say: writes one line for the user.
        bar: whether a bar can be shown; None: where stderr is a terminal.
    """

    def __init__(self, say: Callable[[str], None], bar: bool | None = None) -> None:
        self.say = say
        self.use_bar = sys.stderr.isatty() if bar is None else bar
        self._bar: Any = None
        self._next = self._next_evaluated = 0.0
        self._started = (0.0, 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports what padding costs, if the data module knows it; a resumed run's clock starts where it stood."""
        padding = getattr(getattr(trainer, "datamodule", None), "padding_ratio", None)
        if padding is not None and trainer.is_global_zero:
            self.say(f"padding     {padding:.2f} pixels are computed for each pixel of an image")
        number, images = getattr(getattr(trainer, "datamodule", None), "micro_batches", (1, 0))
        if number > 1 and trainer.is_global_zero:
            self.say(f"accumulate  {number} batches of {images} images for each step of a device")
        self._started = (time.monotonic(), trainer.global_step)
        self._next = time.monotonic() + PLAIN_SECONDS
        if self.use_bar and trainer.is_global_zero:
            total = total_steps(trainer)
            self._bar = tqdm(
                total=total, initial=trainer.global_step, unit="step", dynamic_ncols=True, leave=False
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar, or prints a line if the last one is ten seconds old."""
        if not trainer.is_global_zero or time.monotonic() < self._next:
            return
        if self._bar is None:
            self._next = time.monotonic() + PLAIN_SECONDS
            self.say(self._line(trainer))
            return
        self._next = time.monotonic() + BAR_SECONDS
        self._bar.set_description(f"epoch {trainer.current_epoch + 1}", refresh=False)
        loss = _metric(trainer, "train/loss")
        if not math.isnan(loss):  # it is known from the first step on
            self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of the lines."""
        self._next_evaluated = time.monotonic() + PLAIN_SECONDS

    on_test_start = on_validation_start

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Says every ten seconds how far an evaluation is."""
        if not trainer.is_global_zero or time.monotonic() < self._next_evaluated:
            return
        self._next_evaluated = time.monotonic() + PLAIN_SECONDS
        test = trainer.state.fn == "test"
        total = sum(trainer.num_test_batches if test else trainer.num_val_batches)
        if self._bar is not None:
            self._bar.clear()
        self.say(f"{'test' if test else 'val'} batch {batch_idx + 1}/{total:.0f}")

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One line per epoch: AP, AP50, those of masks, and whether the weights are the best so far."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        saver = trainer.checkpoint_callback  # after this one, so it does not know the score yet
        best = isinstance(saver, CheckpointSaver) and saver.is_best(saver.score(trainer))
        mark = "  best so far" if best else ""
        line = (
            f"epoch {trainer.current_epoch + 1:>3}  step {trainer.global_step:>6}  "
            f"loss {_metric(trainer, 'train/loss'):7.3f}  "
            f"AP {_metric(trainer, 'val/AP'):.3f}  AP50 {_metric(trainer, 'val/AP50'):.3f}{_of_masks(trainer)}{mark}"
        )
        if self._bar is not None:
            self._bar.clear()
        self.say(line)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the bar."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, trainer: Trainer) -> str:
        begun, first = self._started
        done, total = trainer.global_step, total_steps(trainer)
        if done == first:
            return f"step {done + 1}{'' if total is None else f' of {total}'} is being computed"
        rate = (done - first) / max(time.monotonic() - begun, 1e-9)
        left = "" if total is None or rate == 0 else f"  {_clock((total - done) / rate)} left"
        of = "" if total is None else f"/{total}"
        return f"step {done}{of}  loss {_metric(trainer, 'train/loss'):.3f}  {rate:.1f} steps/s{left}"


def _of_masks(trainer: Trainer) -> str:
    names = {"val/segm_AP": "segm AP", "val/PQ": "PQ"}
    known = trainer.callback_metrics
    return "".join(f"  {name} {_metric(trainer, key):.3f}" for key, name in names.items() if key in known)


class History(Callback):
    """Training loss and validation scores over the steps, in memory, for the curves of the run."""

    def __init__(self) -> None:
        self.series: dict[str, list[tuple[int, float]]] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Reads the loss as often as the logger does."""
        step = trainer.global_step
        seen = self.series.get("train/loss", [])
        interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step % interval == 0 and (not seen or seen[-1][0] != step):
            self.add(trainer, ["train/loss"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads every validation score."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self.add(trainer, [name for name in trainer.callback_metrics if name.startswith("val/")])

    def state_dict(self) -> dict[str, Any]:
        """A resumed run keeps its curve."""
        return {"series": {name: [list(point) for point in points] for name, points in self.series.items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.series = {
            name: [(int(s), float(v)) for s, v in points] for name, points in state_dict["series"].items()
        }

    def add(self, trainer: Trainer, names: list[str]) -> None:
        """Appends the current value of each metric."""
        for name in names:
            if name in trainer.callback_metrics:
                self.series.setdefault(name, []).append((trainer.global_step, _metric(trainer, name)))


def total_steps(trainer: Trainer) -> int | None:
    """Optimizer steps of the whole fit; None if it has no end."""
    total = trainer.estimated_stepping_batches
    return None if total == float("inf") else int(total)


def _metric(trainer: Trainer, name: str) -> float:
    return or_nan(trainer.callback_metrics.get(name))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
