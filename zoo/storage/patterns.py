"""Regular expressions of a recipe, which may come from a stranger: one that could run for hours is refused."""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from functools import lru_cache
from typing import Any

_LONGEST = 300  # characters
_MOST_WAYS = 3_000  # to match one place of a name
_WAYS_OF_A_REPEAT = 14


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> re.Pattern[str]:
    """The pattern, once it is known that searching a parameter's name for it is quick.

    Python tries every way in which repeats and alternatives can share a text, so their number is bounded and
    repeats inside repeats, such as `(a+)+`, are refused.

    Raises:
        ValueError: no regular expression, or one of too many ways.
    """
    shown = repr(pattern if len(pattern) <= 60 else f"{pattern[:60]}...")
    if len(pattern) > _LONGEST:
        raise ValueError(f"match: {shown} has {len(pattern)} characters; at most {_LONGEST} are searched for")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of doubtful escapes
            found = re.compile(pattern)
            ways = _ways(_parse(pattern))
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"match: {shown} is no regular expression: {error}") from error
    if ways > _MOST_WAYS:
        raise ValueError(
            f"match: {shown} can match in too many ways to be searched for; use fewer `*`, `+` and `|`, none inside "
            "another"
        )
    return found


def _parse(pattern: str) -> Any:
    # the module of the parser since Python 3.11, and before
    return importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse").parse(
        pattern
    )


def _ways(parsed: Any) -> float:
    """An upper bound of the ways to match at one place; infinity if something with several ways is repeated."""
    ways = 1.0
    for operation, argument in parsed:
        name = str(operation)
        if name.endswith("REPEAT"):
            least, most, body = argument
            if most > 1 and _ways(body) > 1:
                return float("inf")
            ways *= _ways(body) * (1 if least == most else _WAYS_OF_A_REPEAT if most > 1 else 2)
        elif name == "BRANCH":
            ways *= sum(_ways(branch) for branch in argument[1])
        elif name in ("SUBPATTERN", "ATOMIC_GROUP", "ASSERT", "ASSERT_NOT"):
            ways *= _ways(argument if name == "ATOMIC_GROUP" else argument[-1])
        elif name == "GROUPREF_EXISTS":
            return float("inf")
    return ways
