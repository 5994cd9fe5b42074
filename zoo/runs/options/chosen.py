"""The options of a fine-tuning that say how it trains; each is written into the recipe, as `fit` reads it."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from zoo.runs.options import freezing, stopping
from zoo.runs.options import precision as precisions
from zoo.runs.recipes import Recipe
from zoo.tracking import others


@dataclass(frozen=True, kw_only=True)
class Options:
    """See `zoo.runs.finetune.finetune`. None means the recipe's."""

    patience: int | None = None
    max_time: str | datetime.timedelta | None = None
    freeze: str | Sequence[str] | None = None
    precision: str | None = None
    checkpointing: bool | None = None
    search_batch: bool = False
    logger: str | Sequence[str] | None = None

    def write(self, recipe: Recipe, given: Collection[str]) -> list[str]:
        """Writes them into the recipe, unless its keys are `given` by the user; notes for the user."""
        stopping.write(recipe, self.patience, self.max_time)
        if self.logger is not None:
            also = self.logger.split(",") if isinstance(self.logger, str) else self.logger
            recipe["tracking"]["also"] = [name.strip() for name in also]
            others.require(recipe["tracking"]["also"])
        computing = {} if self.checkpointing is None else {"checkpointing": self.checkpointing}
        if self.search_batch:
            computing["search_batch"] = True
        if computing:
            recipe["computing"] = recipe.get("computing", {}) | computing
        return [*freezing.write(recipe, self.freeze), *precisions.write(recipe, self.precision, given)]
