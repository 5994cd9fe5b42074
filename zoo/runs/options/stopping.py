"""`--patience` and `--max-time`, and how often a fine-tuning validates."""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection
from typing import Any

from zoo.runs.recipes import Recipe
from zoo.training.stop_rules import Stopping, clock

# Longest and shortest stretch between two validations, in optimizer steps, and validations that a run has at least:
# a long epoch is cut, so that patience and the best checkpoint have something to go by; a set of a few images is not
# validated more than it is trained on.
MOST_STEPS, FEWEST_STEPS, VALIDATIONS = 1000, 10, 10
_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_PART = r"(\d{1,6})([dhms])"


def write(recipe: Recipe, patience: int | None, max_time: str | datetime.timedelta | None) -> list[str]:
    """The choices as the keys that `fit` reads; a note where a second stage is waited for."""
    if patience is not None:
        least = {"min_delta": Stopping.min_delta}
        recipe["stopping"] = least | recipe.get("stopping", {}) | {"patience": patience}
    if max_time is not None:
        recipe["trainer"]["max_time"] = clock(parse_time(max_time))
    model = recipe.get("model", {"init_args": {"schedule": {}}})["init_args"]
    begin = model["schedule"].get("restart_epoch")
    if patience is None or begin is None:
        return []
    return [
        f"--patience {patience}: counted from epoch {begin + 1} on, which starts from the best of those before "
        "(schedule.restart_epoch); of a training that ends earlier from the first on"
    ]


def parse_time(given: str | datetime.timedelta) -> datetime.timedelta:
    """`2h`, `90m`, `1d12h`, `01:30:00` (hours first) or `1:00:00:00` (days first).

    Raises:
        ValueError: not of that form, or no time at all.
    """
    if isinstance(given, datetime.timedelta):
        found = given
    else:
        text = given.strip().lower()
        parts = re.findall(_PART, text)
        fields = re.fullmatch(r"(?:(\d{1,4}):)?(\d{1,4}):(\d{1,2}):(\d{1,2})", text)
        if fields:
            found = datetime.timedelta(
                **dict(zip(_UNITS.values(), map(int, fields.groups("0")), strict=True))
            )
        elif parts and re.fullmatch(f"(?:{_PART})+", text) and len({unit for _, unit in parts}) == len(parts):
            found = datetime.timedelta(**{_UNITS[unit]: int(number) for number, unit in parts})
        else:
            raise ValueError(
                f"--max-time is {given!r:.40}; write it as 2h, 90m, 1d12h, or as hours:minutes:seconds 01:30:00"
            )
    if found < datetime.timedelta(seconds=1):
        raise ValueError(f"--max-time is {str(given)!r:.40}; it must be at least a second")
    return found


def suit_validations(recipe: Recipe, per_epoch: int, steps: int, given: Collection[str]) -> list[str]:
    """Writes how often a run of `steps` with `per_epoch` validates, unless the keys `given` by the user say it."""
    trainer: dict[str, Any] = recipe["trainer"]
    restarts = recipe["model"]["init_args"]["schedule"].get("restart_epoch") is not None
    own = {
        f"trainer.{key}" for key in ("check_val_every_n_epoch", "val_check_interval", "limit_train_batches")
    }
    plain = trainer.get("check_val_every_n_epoch", 1) == 1 and trainer.get("val_check_interval", 1.0) == 1.0
    if restarts or not plain or own.intersection(given):
        return []
    if per_epoch > MOST_STEPS:
        times = -(-per_epoch // MOST_STEPS)
        trainer["val_check_interval"] = per_epoch // times
        return [f"validates every {per_epoch // times} steps, {times} times an epoch of {per_epoch}"]
    every = min(-(-FEWEST_STEPS // per_epoch), steps // per_epoch // VALIDATIONS)
    if every > 1:
        trainer["check_val_every_n_epoch"] = every
        return [f"validates every {every} epochs, {every * per_epoch} steps"]
    return []
