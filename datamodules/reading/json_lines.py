"""Files with a json object a line: a bad line becomes a remark, the others are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.reading.parsing import numbered_lines
from datamodules.reading.records import Remarks


def objects(file: Path, remarks: Remarks) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the line from 1, object). Empty lines are skipped, other lines that are no object become remarks.

    Raises:
        ValueError: naming the file, if it is no text.
    """
    for number, line in numbered_lines(file):
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict):
            yield number, content
        else:
            message = "line that is no json object; left out; export the file again"
            remarks.add("error", "malformed_labels", file, message, f"line {number}")


def first_object(line: str) -> dict[str, Any]:
    """A line as an object; empty if it is none or was cut off."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def whole_size(height: object, width: object) -> tuple[int, int] | None:
    """(h, w) if both are whole numbers of pixels."""
    sides = [s for s in (height, width) if isinstance(s, int) and not isinstance(s, bool) and 0 < s < 1 << 31]
    return (sides[0], sides[1]) if len(sides) == 2 else None


def four(values: Any) -> tuple[float, float, float, float]:
    """Four numbers.

    Raises:
        TypeError, ValueError: they are not.
    """
    a, b, c, d = (float(value) for value in values)
    return a, b, c, d
