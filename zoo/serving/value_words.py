"""What is wrong with a value of a request, in words: msgspec speaks of Python's types and of its own paths."""

from __future__ import annotations

import re
from collections.abc import Sequence

from zoo.serving.problems import shown

_KINDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_WHERE = re.compile(r" - at `\$\.?(.*)`$", re.DOTALL)
_TYPE = re.compile(r"Expected `([a-z |]+)`, got `([a-z]+)`")
_BOUND = re.compile(r"Expected `\w+` (<=|>=) ([-+.\de]+)")
_LENGTH = re.compile(r"Expected `(\w+)` of length (<=|>=) (\d+)")
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_LIMITS = {">=": "at least", "<=": "at most"}


def fault_in_words(message: str, fields: Sequence[str]) -> str:
    """A message of `msgspec.ValidationError`.

    Args:
        message: of the error.
        fields: that the body may have, for whoever gives another one.

    >>> fault_in_words("Expected `float | null`, got `str` - at `$.threshold`", ())
    '`threshold` is text and must be a number or null'
    """
    place = _WHERE.search(message)
    said = message if place is None else message[: place.start()]
    at = place[1] if place else ""
    subject = f"`{shown(at)}`" if at else "the body"
    if found := _UNKNOWN.fullmatch(said):
        return f"`{shown(found[1])}` is no field of a request; they are {', '.join(fields)}"
    if found := _MISSING.fullmatch(said):
        return f"`{at and at + '.'}{found[1]}` is missing"
    if found := _TYPE.fullmatch(said):
        allowed = [_KINDS.get(name, name) for name in found[1].split(" | ")]
        return f"{subject} is {_KINDS.get(found[2], found[2])} and must be {' or '.join(allowed)}"
    if found := _LENGTH.fullmatch(said):
        one, several = ("entry", "entries") if found[1] == "array" else ("character", "characters")
        return f"{subject} must have {_LIMITS[found[2]]} {found[3]} {one if found[3] == '1' else several}"
    if found := _BOUND.fullmatch(said):
        return f"{subject} must be {_LIMITS[found[1]]} {float(found[2]):g}"
    return f"{subject} has a value that is not allowed"
