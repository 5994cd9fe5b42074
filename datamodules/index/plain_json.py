"""Values to json and back, also with names of files that are no UTF-8."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec

_T = TypeVar("_T")


def encode(value: Any, indent: int | None = None) -> bytes:
    """Json of structs, dataclasses and plain values; bytes that are no UTF-8 stand in it as \\udcXX."""
    try:
        text = msgspec.json.encode(value)
        return text if indent is None else msgspec.json.format(text, indent=indent)
    except UnicodeEncodeError:  # a lone surrogate, which only Python's own json writes and reads
        return json.dumps(msgspec.to_builtins(value), indent=indent).encode("ascii")


def decode(raw: bytes, type: type[_T]) -> _T:
    """Inverse of `encode`.

    Raises:
        ValueError: if it is no json of that type.
    """
    try:
        return msgspec.json.decode(raw, type=type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            return msgspec.convert(json.loads(raw), type)
        except RecursionError as error:
            raise ValueError("a value is nested too deeply") from error
        except ValueError as error:
            if "set_int_max_str_digits" in str(error):  # Python's words advise to change Python
                raise ValueError("a number of thousands of digits") from error
            raise
