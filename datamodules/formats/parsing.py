"""Parses annotation files of tools; what is wrong with one names the file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

# what taking a value of an unexpected kind apart raises: the file is at fault, the entry becomes a fault
MALFORMED = (AttributeError, LookupError, OverflowError, TypeError, ValueError)


def load_json(file: Path) -> Any:
    """The content of a json file.

    Raises:
        ValueError: naming the file, if it is none.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file} is no json: {error}; export it again") from error


def load_list(file: Path, what: str) -> list[Any]:
    """A json file that is a list of `what`.

    Raises:
        ValueError: naming the file, if it is not.
    """
    content = load_json(file)
    if not isinstance(content, list):
        raise ValueError(f"{file} is a {type(content).__name__}, not a list of {what}; export it again")
    return content


def load_xml(file: Path) -> ElementTree.Element:
    """The root of an xml file.

    Raises:
        ValueError: naming the file, if it is not well-formed.
    """
    try:
        return ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # also an encoding that does not exist
        raise ValueError(f"{file} is no well-formed xml: {error}; export it again") from error


def read_rows(file: Path, delimiter: str = ",") -> Iterator[list[str]]:
    """The rows of a table, without those of empty cells.

    Raises:
        ValueError: naming the file, if it is no table in UTF-8.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            yield from (r for r in csv.reader(stream, delimiter=delimiter) if any(cell.strip() for cell in r))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as a table: {error}; save it as csv in UTF-8") from error


def read_lines(file: Path) -> list[str]:
    """The lines of a text file, without ends.

    Raises:
        ValueError: naming the file, if it is no text.
    """
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8: {error}; save it as such") from error
