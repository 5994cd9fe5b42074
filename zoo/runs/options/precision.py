"""`--precision`: bfloat16 where a GPU has it, unless something else is said."""

from __future__ import annotations

from collections.abc import Collection

import torch

from zoo.runs import trainer_options
from zoo.runs.recipes import Recipe

DEFAULT = "32-true"  # of every recipe for fine-tuning


def write(recipe: Recipe, precision: str | None, given: Collection[str]) -> list[str]:
    """The precision into the recipe; a note where it is chosen here, for the user has not `given` its key."""
    trainer = recipe["trainer"]
    if precision is not None:
        trainer["precision"] = precision
        return []
    if "trainer.precision" in given or trainer.get("precision", DEFAULT) not in trainer_options.FLOAT32:
        return []  # a registered model's recipe was trained so
    if not trainer_options.on_gpu(trainer.get("accelerator")):
        return ["precision: 32-true, for no GPU trains"]
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return [f"precision: 32-true, for {torch.cuda.get_device_name()} has no bfloat16"]
    trainer["precision"] = "bf16-mixed"
    return ["precision: bf16-mixed, with boxes and losses in float32; --precision 32-true for all of it"]
