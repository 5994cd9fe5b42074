"""The options of a fine-tuning that say how it trains; each is written into the recipe, as `fit` reads it."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from zoo.runs.options import freezing, stopping
from zoo.runs.options import precision as precisions
from zoo.runs.recipes import Recipe
from zoo.runs.trainer_options import on_gpu
from zoo.tracking import others


@dataclass(frozen=True, kw_only=True)
class Options:
    """See `zoo.runs.finetune.finetune`. None means the recipe's."""

    patience: int | None = None
    max_time: str | datetime.timedelta | None = None
    freeze: str | Sequence[str] | None = None
    precision: str | None = None
    checkpointing: bool | None = None
    compile: bool | None = None
    search_batch: bool = False
    logger: str | Sequence[str] | None = None

    def write(self, recipe: Recipe, given: Collection[str]) -> list[str]:
        """Writes them into the recipe, unless its keys are `given` by the user; notes for the user."""
        notes = stopping.write(recipe, self.patience, self.max_time)
        if self.logger is not None:
            also = self.logger.split(",") if isinstance(self.logger, str) else self.logger
            recipe["tracking"]["also"] = [name.strip() for name in also]
            others.require(recipe["tracking"]["also"])
        computing = {
            "checkpointing": self.checkpointing, "compile": self.compile, "search_batch": self.search_batch or None,
        }  # fmt: skip
        said = {key: value for key, value in computing.items() if value is not None}
        if said:
            recipe["computing"] = recipe.get("computing", {}) | said
        notes += [*freezing.write(recipe, self.freeze), *precisions.write(recipe, self.precision, given)]
        if self.compile and not on_gpu(recipe["trainer"].get("accelerator")):
            notes.append(
                "--compile: on a CPU it takes a minute and gains little over the kernels that are there"
            )
        return notes
