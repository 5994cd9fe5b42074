"""From an entry of the recipe to an object of its library, with arguments checked by name before it is made."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
from typing import Any

from datamodules.augmentations.allowed import ALBUMENTATIONS, TORCHVISION
from datamodules.augmentations.block import Entry

INSTALL = "pip install 'detr-zoo[albumentations]'"


def made(entry: Entry) -> Any:
    """The library's object.

    Raises:
        ValueError: the installed library lacks the class, or the class refuses an argument; in one line.
        ImportError: albumentations is not installed; says what to install.
    """
    cls = getattr(_module(entry), entry.name, None)
    if cls is None:
        raise ValueError(
            f"{entry}: the installed {entry.library} has no such class; take another, or update it"
        )
    names = [
        n
        for n, p in inspect.signature(cls.__init__).parameters.items()
        if n != "self" and p.kind != p.VAR_KEYWORD
    ]
    arguments = {}
    for key, value in entry.arguments:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names)}"
            raise ValueError(f"{entry} has no argument {key!r}; {hint}")
        arguments[key] = _value(key, value, entry)
    try:
        return cls(**arguments)
    except (TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        raise ValueError(f"{entry}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What a library says is wrong, in one line; pydantic's texts have several, and addresses to read on."""
    text = re.sub(r"\[type=[^\]]*\]|For further information visit \S+", "", str(error))
    return " ".join(text.split())[:300] or type(error).__name__


def _module(entry: Entry) -> Any:
    if entry.library == TORCHVISION:
        return importlib.import_module(TORCHVISION)
    os.environ.setdefault(
        "NO_ALBUMENTATIONS_UPDATE", "1"
    )  # it asks a server for its newest version when imported
    try:
        return importlib.import_module(ALBUMENTATIONS)
    except ImportError as error:
        raise ValueError(f"{entry} needs albumentations: {INSTALL} ({reason(error)})") from error


def _value(key: str, value: Any, entry: Entry) -> Any:
    if key == "transforms" and isinstance(value, tuple):
        return [made(v) if isinstance(v, Entry) else v for v in value]
    if entry.library == TORCHVISION and key == "interpolation" and isinstance(value, str):
        from torchvision.transforms.v2 import InterpolationMode

        try:
            return InterpolationMode(value)
        except ValueError:
            valid = ", ".join(mode.value for mode in InterpolationMode)
            raise ValueError(f"{entry}: interpolation is {value!r:.40}; it is one of {valid}") from None
    return list(value) if isinstance(value, tuple) else value
