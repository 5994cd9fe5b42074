"""Reads a json object that is larger than memory: its members one by one, its lists in pieces.

A piece is cut behind an element. The quick guess is the last `}, {` of the buffer; it is proven by decoding,
for a text that is valid json up to there and closed cannot have been cut inside an element. Where the guess
fails (a list's end, braces in strings, nested lists of objects) the structure is scanned, strings left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import msgspec
import numpy as np

from datamodules.progress import Meter
from datamodules.reading.text import encoding_of
from zoo.storage.opening import open_file

CHUNK = 1 << 22  # bytes read at a time
LONGEST = 1 << 28  # bytes of one element; a file with a bracket too few would be read to its end otherwise

_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BETWEEN = re.compile(rb"[ \t\r\n]*,[ \t\r\n]*(?=\{)")
_BLANK = b" \t\r\n"
_GUESSES = 4
_STEP = np.zeros(256, dtype=np.int8)
_STEP[[ord("["), ord("{")]] = 1
_STEP[[ord("]"), ord("}")]] = -1
_MARK = _STEP != 0
_MARK[ord(",")] = True
_REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # what a decoder raises
_RAW = msgspec.json.Decoder(list[msgspec.Raw])


class JsonError(ValueError):
    """The file is no json of this form; `offset` is the byte where the error was found."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(f"{message} (byte {offset})")
        self.offset = offset


class Piece(NamedTuple):
    """Some elements of a list, decoded by the caller's decoder, or as plain values if they do not fit it."""

    values: list[Any]
    typed: bool  # whether the caller's decoder took them
    text: bytes  # of the list
    offset: int  # of its first element


class JsonStream:
    """The members of the json object in a file.

    For each name that `members` gives, the caller takes the value with `elements` or `skip`.
    """

    def __init__(self, path: Path, chunk: int = CHUNK, progress: Meter | None = None) -> None:
        self._file = open_file(path)
        self._total = path.stat().st_size
        self._chunk = chunk
        self._progress = progress
        self._buffer = b""
        self._base = 0  # offset of the buffer in the file
        self._ended = False

    def __enter__(self) -> JsonStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def members(self) -> Iterator[str]:
        """The names of the members, in the order of the file.

        Raises:
            JsonError: where the file stops being one json object in UTF-8.
        """
        while len(self._buffer) < 4 and not self._ended:
            self._read()
        encoding = encoding_of(self._buffer)
        if encoding not in (None, "utf-8-sig"):
            raise JsonError(f"it is {encoding.upper()}; save it as UTF-8", 0)
        self._drop(3 if self._buffer.startswith(b"\xef\xbb\xbf") else 0)
        self._expect(b"{", "a json object starts with {")
        if self._peek() == b"}":
            self._drop(1)
        else:
            while True:
                yield self._name()
                if self._expect(b",}", "after a member comes a comma or }") == b"}":
                    break
        if self._peek():
            raise JsonError("there is something after the end of the json object", self._base)

    def elements(self, decoder: msgspec.json.Decoder[Any]) -> Iterator[Piece]:
        """The elements of the list that is the value, in pieces.

        Args:
            decoder: of a list; pieces that are json but not of its type come as plain values.

        Raises:
            JsonError: if the value is no list, or where it stops being json.
        """
        if self._peek() != b"[":
            raise JsonError("expected a list", self._base)
        self._drop(1)
        if self._peek() == b"]":
            self._drop(1)
            return
        last = False
        while not last:
            piece, last = self._piece(decoder)
            yield piece

    def skip(self) -> None:
        """Skips the value, which must be valid json nevertheless."""
        if self._peek() == b"[":
            for _ in self.elements(_RAW):
                pass
            return
        while True:
            commas, end = outline(self._buffer)
            stop = int(commas[0]) if len(commas) else end
            if stop >= 0:
                break
            self._grow("the file ends within a value")
        decode(self._buffer[:stop], self._base)
        self._drop(stop)

    # ------------------------------------------------------------------ pieces

    def _piece(self, decoder: msgspec.json.Decoder[Any]) -> tuple[Piece, bool]:
        if not self._ended and len(self._buffer) < self._chunk:
            self._read()
        cut, following = self._guess()
        if cut > 0:
            text = b"[" + self._buffer[:cut] + b"]"
            try:
                piece = Piece(decoder.decode(text), True, text, self._base)
            except _REFUSED:
                pass
            else:
                self._drop(following)
                return piece, False
        cut, last = self._boundary()
        text = b"[" + self._buffer[:cut] + b"]"
        if not text[1:-1].strip(_BLANK):
            raise JsonError("expected an element of the list", self._base)
        try:
            piece = Piece(decoder.decode(text), True, text, self._base)
        except _REFUSED:
            piece = Piece(decode(text, self._base - 1), False, text, self._base)
        self._drop(cut + 1)
        return piece, last

    def _guess(self) -> tuple[int, int]:
        """A guess at (end of the last element that an object follows, start of that object)."""
        position = len(self._buffer)
        for _ in range(_GUESSES):
            position = self._buffer.rfind(b"}", 0, position)
            if position < 0:
                break
            between = _BETWEEN.match(self._buffer, position + 1)
            if between:
                return position + 1, between.end()
        return 0, 0

    def _boundary(self) -> tuple[int, bool]:
        """(position of the last comma between elements, or of the list's end; whether it is the end)."""
        while True:
            commas, end = outline(self._buffer)
            if end >= 0:
                if self._buffer[end : end + 1] != b"]":
                    raise JsonError("a list is closed by }", self._base + end)
                return end, True
            if len(commas):
                return int(commas[-1]), False
            self._grow("the file ends within a list")

    # ------------------------------------------------------------------ bytes

    def _read(self) -> None:
        more = self._file.read(
            max(self._chunk, len(self._buffer))
        )  # doubling: a long element is not quadratic
        self._ended = not more
        self._buffer += more
        if self._progress is not None:
            self._progress(self._base + len(self._buffer), self._total)

    def _grow(self, complaint: str) -> None:
        if len(self._buffer) > LONGEST:
            raise JsonError(f"what starts here is not closed within {LONGEST >> 20} MiB", self._base)
        before = len(self._buffer)
        self._read()
        if len(self._buffer) == before:
            raise JsonError(f"{complaint}; it is cut off", self._base + before)

    def _drop(self, number: int) -> None:
        self._buffer = self._buffer[number:]
        self._base += number

    def _peek(self) -> bytes:
        """The next character that is no blank; empty at the end of the file."""
        while True:
            self._drop(len(self._buffer) - len(self._buffer.lstrip(_BLANK)))
            if self._buffer or self._ended:
                return self._buffer[:1]
            self._read()

    def _expect(self, characters: bytes, rule: str) -> bytes:
        found = self._peek()
        if not found:
            raise JsonError(f"the file ends too early; {rule}; it is cut off", self._base)
        if found not in characters:
            raise JsonError(f"found {found.decode('latin-1')!r}; {rule}", self._base)
        self._drop(1)
        return found

    def _name(self) -> str:
        if self._peek() not in (b'"', b""):
            raise JsonError("a member starts with its name in quotes", self._base)
        while not (match := _STRING.match(self._buffer)):
            self._grow("the file ends within a name")
        name = decode(match.group(), self._base)
        self._drop(match.end())
        self._expect(b":", "after a name comes a colon")
        return str(name)


def converted(piece: Piece, type: Any) -> list[Any]:
    """The plain values of a piece as structs of `type`, a list.

    Raises:
        JsonError: if an element is no object.
    """
    try:
        return list(msgspec.convert(piece.values, type))
    except msgspec.ValidationError as error:
        raise JsonError(f"{error} in the elements that start here", piece.offset) from error


def decode(text: bytes, offset: int) -> Any:
    """The value of a json text, with the bare NaN and Infinity that some tools write.

    Raises:
        JsonError: naming the byte; `offset` is that of the text.
    """
    try:
        return json.loads(text.decode("utf-8"))
    except json.JSONDecodeError as error:
        at = offset + len(error.doc[: error.pos].encode("utf-8", "surrogatepass"))
        raise JsonError(f"no json: {error.msg}", at) from error
    except UnicodeDecodeError as error:
        raise JsonError(f"no UTF-8 ({error.reason}); save it as UTF-8", offset + error.start) from error
    except RecursionError as error:
        raise JsonError("a value is nested too deeply", offset) from error
    except ValueError as error:  # Python's own message advises to change a setting of Python
        raise JsonError("a number of thousands of digits", offset) from error


def outline(text: bytes) -> tuple[np.ndarray, int]:
    """(positions of the commas between the elements, position of the bracket that closes the whole or -1)."""
    clean = _ESCAPE.sub(b"  ", text) if b"\\" in text else text
    data = np.frombuffer(clean, dtype=np.uint8)
    marks = np.flatnonzero(_MARK[data])
    quotes = np.flatnonzero(data == ord('"'))
    marks = marks[np.searchsorted(quotes, marks) % 2 == 0]  # an odd number of quotes before: within a string
    depth = np.cumsum(_STEP[data[marks]], dtype=np.int64)
    closed = np.flatnonzero(depth < 0)
    count = int(closed[0]) if len(closed) else len(marks)
    commas = marks[:count][(depth[:count] == 0) & (data[marks[:count]] == ord(","))]
    return commas, int(marks[count]) if len(closed) else -1
