"""Finds classes that two data sets name differently: COCO's `tv` is Objects365's `Moniter/TV`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import yaml

How = Literal["name", "spelling", "alias"]


@dataclass(frozen=True)
class Match:
    """The class of the source that equals a class of the target, and how it was found."""

    source: str
    how: How


def corrected(name: str) -> str:
    """A published name without its typing errors and surrounding blanks; other names as they are."""
    plain = name.strip()
    return _table()[0].get(plain, plain)


def match_classes(source: Sequence[str], target: Sequence[str]) -> dict[str, Match]:
    """For each name of `target` that `source` has too, its name in `source` and how it was found.

    An equal name wins over one that differs only by case and known misspellings, and that over a known alias. A
    name that two classes of one side share when written so (`Cat`, `cat`) matches exactly or not at all.
    """
    exact = set(source)
    by_key, own_keys = _unique(source), _unique(target)
    found: dict[str, Match] = {}
    for name in target:
        key = _key(name)
        if name in exact:
            found[name] = Match(name, "name")
        elif key not in own_keys:
            continue
        elif key in by_key:
            found[name] = Match(by_key[key], "spelling")
        else:
            other = next((k for k in _table()[1].get(key, ()) if k in by_key), None)
            if other is not None:
                found[name] = Match(by_key[other], "alias")
    return found


def _key(name: str) -> str:
    return corrected(name).casefold()


def _unique(names: Sequence[str]) -> dict[str, str]:
    counts = Counter(_key(name) for name in names)
    return {_key(name): name for name in names if counts[_key(name)] == 1}


@cache
def _table() -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Published -> corrected spelling, and key -> keys of its aliases, in both directions."""
    text = resources.files("zoo.contract").joinpath("class_names.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    aliases: dict[str, tuple[str, ...]] = {}
    for one, other in content["aliases"].items():
        for a, b in ((one.casefold(), other.casefold()), (other.casefold(), one.casefold())):
            aliases[a] = (*aliases.get(a, ()), b)
    return content["spellings"], aliases
