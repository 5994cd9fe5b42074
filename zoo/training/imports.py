"""Arguments of a class out of a recipe, manifest or checkpoint that would make jsonargparse import what they name."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


def refuse_imports(value: Any, hint: Any, where: str) -> None:
    """Raises ValueError at a `class_path`, or a string where an object stands, anywhere in a value.

    jsonargparse imports both before it finds that the class does not fit, and an import runs code.

    Args:
        value: of plain YAML.
        hint: type that the value is for.
        where: dotted key of the value.
    """
    kinds = [kind for kind in _parts(hint) if _is_object(kind)]
    if isinstance(value, str) and kinds:
        raise ValueError(f"{where} is {value!r:.60}; it must be a mapping of {kinds[0].__name__}'s keys")
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            refuse_imports(item, hint, f"{where}[{index}]")
    elif isinstance(value, Mapping):
        hints = {
            name: of_field
            for kind in kinds
            if dataclasses.is_dataclass(kind)
            for name, of_field in typing.get_type_hints(kind).items()
        }
        for key, item in value.items():
            if key in ("class_path", "dict_kwargs") or str(key).startswith("__"):
                raise ValueError(
                    f"{where}.{key} is no key of a recipe; no class is named here: write its values"
                )
            refuse_imports(item, hints.get(key), f"{where}.{key}")


def _parts(hint: Any) -> Iterator[Any]:
    """The hint, or those it is made of: of `list[A] | None` list, A and None."""
    if typing.get_origin(hint) is None:
        yield hint
    elif typing.get_origin(hint) is not typing.Literal:
        yield typing.get_origin(hint)
        for part in typing.get_args(hint):
            yield from _parts(part)


def _is_object(kind: Any) -> bool:
    """Whether YAML has no value of a class, so that a string in its place would be taken for an import path."""
    if kind in (type, Callable):
        return True
    plain = ("builtins", "types", "typing", "collections.abc")
    return inspect.isclass(kind) and kind.__module__ not in plain and not issubclass(kind, (Path, enum.Enum))
