"""Parses annotation files of tools; every error names the file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO
from xml.etree import ElementTree

from datamodules.reading.text import decode_text, decode_xml, encoding_of, read_text
from zoo.storage.opening import open_file, read_file

# raised while an entry with a value of an unexpected type is read: the entry then becomes a fault
MALFORMED = (AttributeError, LookupError, OverflowError, TypeError, ValueError)
_AT_ONCE = 64 << 20  # bytes of a table up to which it is taken into memory to tell its encoding


def load_json(file: Path) -> Any:
    """The content of a json file.

    Raises:
        ValueError: naming the file, if it is none.
    """
    try:
        return json.loads(decode_text(read_file(file)))
    except RecursionError as error:
        raise ValueError(f"{file} is nested deeper than any annotation file; export it again") from error
    except ValueError as error:
        # Python's own message advises to change a setting of Python
        reason = (
            "it has a number of thousands of digits" if "set_int_max_str_digits" in str(error) else str(error)
        )
        raise ValueError(f"{file} is no json that can be read: {reason}; export it again") from error


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
        return ElementTree.fromstring(decode_xml(read_file(file)))
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # also an encoding that does not exist
        raise ValueError(f"{file} is no well-formed xml: {error}; export it again") from error


def read_rows(file: Path, delimiter: str = ",") -> Iterator[list[str]]:
    """The rows of a table, without those of empty cells.

    Raises:
        ValueError: naming the file, if it is no table or its encoding is not certain.
    """
    try:
        with _open_table(file) as stream:
            yield from (r for r in csv.reader(stream, delimiter=delimiter) if any(cell.strip() for cell in r))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as a table: {error}; save it as csv in UTF-8") from error


def _open_table(file: Path) -> TextIO:
    if file.stat().st_size <= _AT_ONCE:
        return io.StringIO(read_text(file), newline="")
    with open_file(file) as stream:
        encoding = encoding_of(stream.read(_AT_ONCE >> 10))
    return file.open(encoding=encoding or "utf-8", newline="")


def read_lines(file: Path) -> list[str]:
    """The lines of a text file, without ends.

    Raises:
        ValueError: naming the file, if it is no text or its encoding is not certain.
    """
    return read_text(file).splitlines()


def numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, each after its number from 1; raises as `read_lines` does."""
    return ((number, line) for number, line in enumerate(read_lines(file), start=1) if line.strip())


def is_number(text: str) -> bool:
    """Whether Python reads the text as a number, `nan` and `inf` included."""
    try:
        float(text)
    except ValueError:
        return False
    return True
