"""What a recipe may name besides model and data: a stranger may have written it.

A class that a recipe names is imported, which runs code, and its arguments say where it writes or sends. So only those
of Lightning that stay within the run and the working directory are taken from a recipe that nobody vouches for.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

# none of them has an argument that is a function or a class, for jsonargparse would import what a string names
OF_LIGHTNING = {
    "callbacks": (
        "DeviceStatsMonitor", "EarlyStopping", "LearningRateMonitor", "ModelSummary", "TQDMProgressBar", "Timer",
    ),
    "logger": ("CSVLogger", "TensorBoardLogger"),
}  # fmt: skip
_PLACES = {"callbacks": "lightning.pytorch.callbacks", "logger": "lightning.pytorch.loggers"}
_OUTSIDE = re.compile(
    r"[/\\~]|[A-Za-z]:[/\\]|.*(\.\.|://|\$|::)", re.DOTALL
)  # another folder, an address, a variable
# what a registered model's recipe may say of the trainer: how it was trained, and nothing of this machine
FROM_REGISTRY = (
    "precision", "max_epochs", "min_epochs", "max_steps", "min_steps", "limit_train_batches", "limit_val_batches",
    "val_check_interval", "check_val_every_n_epoch", "log_every_n_steps", "gradient_clip_val",
    "gradient_clip_algorithm", "deterministic", "benchmark", "sync_batchnorm",
)  # fmt: skip


def refuse_resolvers(value: Any, where: str = "") -> None:
    """Raises ValueError at `${...}`: a recipe must not reach environment, files or other keys."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            refuse_resolvers(key, where)
            refuse_resolvers(item, f"{where}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for item in value:
            refuse_resolvers(item, where)
    elif isinstance(value, str) and "${" in value:
        raise ValueError(
            f"{where.replace('.init_args', '')} is {value!r:.60}; nothing is filled in for ${{...}}: write the value "
            'itself, or let the shell do it, as in --data.root "$COCO/2017"'
        )


def refuse_strangers(trainer: Mapping[str, Any]) -> None:
    """Raises ValueError at a class of callbacks or loggers, or an argument, that only a trusted recipe may have."""
    for key, item in _named(trainer):
        path = str(item.get("class_path"))
        if not _is_of_lightning(key, path):
            raise ValueError(
                f"trainer.{key} names {path!r:.80}, which would be imported, and it is none of "
                f"{', '.join(OF_LIGHTNING[key])}; leave it out, or {WAY_OUT}"
            )
        arguments = item.get("init_args") or {}
        if not isinstance(arguments, Mapping) or item.keys() - {"class_path", "init_args"}:
            raise ValueError(
                f"trainer.{key}: {path} has class_path and init_args, a mapping, and nothing else"
            )
        for name, value in arguments.items():
            if not isinstance(value, (str, int, float, type(None))):
                raise ValueError(f"trainer.{key}.{name} is no word and no number; write one, or {WAY_OUT}")
            if isinstance(value, str) and _OUTSIDE.match(value):
                raise ValueError(
                    f"trainer.{key}.{name} is {value!r:.60}; name a place under the working directory, or {WAY_OUT}"
                )


WAY_OUT = "if you know what the recipe does: --trust-recipe (in Python trust=True)"


def strangers(trainer: Mapping[str, Any]) -> list[str]:
    """The classes of a recipe's trainer that are imported because it is trusted."""
    paths = [(key, str(item.get("class_path"))) for key, item in _named(trainer)]
    return [path for key, path in paths if not _is_of_lightning(key, path)]


def _named(trainer: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key in OF_LIGHTNING:
        value = trainer.get(key)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                yield key, item


def _is_of_lightning(key: str, path: str) -> bool:
    """Whether a class path names one that is allowed: by its name alone, or as Lightning gives it."""
    name = path.rpartition(".")[2]
    if name not in OF_LIGHTNING[key]:
        return False
    home = getattr(importlib.import_module(_PLACES[key]), name).__module__
    return path in (name, f"{_PLACES[key]}.{name}", f"{home}.{name}")
