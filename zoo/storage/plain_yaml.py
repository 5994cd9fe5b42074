"""Plain YAML from untrusted files: plain values within limits, or an error of one line.

Recipes, manifests and data.yaml are read here. What PyYAML accepts without an error is refused: a key given twice,
objects made by a tag, a second document. What would cost much is refused while it is parsed: a file that is too
large or nested too deep, and aliases that unfold to more than the file could hold.
"""

from __future__ import annotations

import codecs
import copy
import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from zoo.storage.opening import open_file

MAX_BYTES = 1 << 20
_MAX_DEPTH = 32
_MAX_VALUES = 200_000  # with what aliases repeat
_LONGEST_NUMBER = 60  # characters; float64 needs 24
_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

# the numbers of YAML 1.1, as PyYAML writes them, less times (12:30), dates and octal numbers (0042)
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLS = {
    form: value
    for word, value in (("true", True), ("yes", True), ("on", True), ("false", False), ("no", False), ("off", False))
    for form in (word, word.capitalize(), word.upper())
}  # fmt: skip
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_BASED = re.compile(r"[-+]?0(x[0-9a-fA-F]+|b[01]+)")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class PlainYamlError(ValueError):
    """A text is not plain YAML; the message says where, what, and what to do."""


def read_yaml(
    path: Path, *, as_text: Collection[str] = (), aliases: bool = True, most_bytes: int = MAX_BYTES
) -> Any:
    """The values in a file, as `parse_yaml` gives them.

    Raises:
        ValueError: as `parse_yaml` and `open_file`.
        OSError: it cannot be opened.
    """
    with open_file(path) as file:
        content = file.read(most_bytes + 1)
    return parse_yaml(content, str(path), as_text=as_text, aliases=aliases, most_bytes=most_bytes)


def parse_yaml(
    content: bytes | str,
    where: str,
    *,
    as_text: Collection[str] = (),
    aliases: bool = True,
    most_bytes: int = MAX_BYTES,
) -> Any:
    """The only document of a text as dicts with keys of str, lists, str, int, float, bool and None.

    Args:
        content: bytes are UTF-8, or UTF-16 with its mark.
        where: names the text in errors.
        as_text: top-level keys whose values stay as they are written, lists and mappings below included:
            `no`, `0042`, `12:30`, `1e3`. Only `key: null` itself is still None.
        aliases: whether a value may be repeated by its anchor; each place gets a copy.
        most_bytes: of `content`.

    Raises:
        PlainYamlError: naming place, fault and way out in one line.
    """
    text = _decoded(content, where, most_bytes)
    builder = _Builder(where, frozenset(as_text), aliases)
    try:
        for event in yaml.parse(text, Loader=_PARSER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = where if mark is None else f"{where}:{mark.line + 1}"
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise PlainYamlError(f"{at}: not plain YAML: {what}; correct the line") from error
    except yaml.YAMLError as error:
        raise PlainYamlError(
            f"{where}: not plain YAML: {' '.join(str(error).split())}; write it again"
        ) from error
    return builder.root


def _decoded(content: bytes | str, where: str, most_bytes: int) -> str:
    if len(content) > most_bytes:
        raise PlainYamlError(
            f"{where} is larger than {most_bytes} bytes, the limit for such a file; check that it is the right one"
        )
    if isinstance(content, str):
        return content
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise PlainYamlError(
            f"{where}:{line}: no {encoding} text ({error.reason}); save it as UTF-8"
        ) from error


@dataclass
class _Open:
    """A mapping or list that is not yet closed."""

    value: Any
    line: int
    anchor: str | None
    text: bool  # whether the scalars inside stay as they are written
    before: int  # number of values before it was opened
    key: str | None = None  # of a mapping: the key that waits for its value
    merged: list[dict[str, Any]] = field(default_factory=list)  # mappings named by `<<`, the first one wins


class _Builder:
    """Builds values from parser events, so that parsing stops where a limit is passed."""

    def __init__(self, where: str, as_text: frozenset[str], aliases: bool) -> None:
        self.root: Any = None
        self._where = where
        self._as_text = as_text
        self._aliases = aliases
        self._open: list[_Open] = []
        self._anchored: dict[str, tuple[Any, int]] = {}  # value and how many values it is
        self._values = 0
        self._documents = 0

    def take(self, event: Any) -> None:
        """One event of `yaml.parse`."""
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise self._error(event, "a second document begins", "keep one document in the file")
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, yaml.NodeEvent):
            self._node(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            closed = self._open.pop()
            for base in closed.merged:
                closed.value.update({key: value for key, value in base.items() if key not in closed.value})
            self._anchor(closed.anchor, closed.value, closed.before)
            self._place(closed.value, closed.line)

    def _node(self, event: Any) -> None:
        if event.tag is not None and event.tag != "!":
            raise self._error(
                event, f"the tag {event.tag!r} is not plain YAML", "write the value without a tag"
            )
        if event.anchor is not None and not self._aliases:
            raise self._error(event, "anchors are not read here", "write the values out")
        before = self._values
        self._count(event, 1)
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event)
            self._anchor(event.anchor, value, before)
            self._place(value, _line(event))
            return
        if len(self._open) >= _MAX_DEPTH:
            raise self._error(event, f"nested deeper than {_MAX_DEPTH} levels", "write it flatter")
        if self._expects_key():
            raise self._error(event, "a list or mapping is used as a key", "give it a name")
        empty: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._open.append(_Open(empty, _line(event), event.anchor, self._is_text(), before))

    def _alias(self, event: Any) -> None:
        if not self._aliases:
            raise self._error(event, "aliases are not read here", "write the values out")
        if event.anchor not in self._anchored:
            raise self._error(event, f"*{event.anchor[:40]} has no value before it", "write the values out")
        value, count = self._anchored[event.anchor]
        self._count(event, count)
        if self._expects_key() and not isinstance(value, str):
            raise self._error(event, "a list or mapping is used as a key", "give it a name")
        self._place(copy.deepcopy(value), _line(event))

    def _anchor(self, anchor: str | None, value: Any, before: int) -> None:
        if anchor is not None:
            self._anchored[anchor] = value, self._values - before

    def _count(self, event: Any, more: int) -> None:
        self._values += more
        if self._values > _MAX_VALUES:
            raise self._error(
                event, f"more than {_MAX_VALUES} values, aliases unfolded", "write less, or no aliases"
            )

    def _place(self, value: Any, line: int) -> None:
        """Puts a finished value into its place: the document, an entry of a list, a key, or the value of a key."""
        if not self._open:
            self.root = value
            return
        inner = self._open[-1]
        if isinstance(inner.value, list):
            inner.value.append(value)
        elif inner.key is None:
            if value in inner.value:
                raise PlainYamlError(
                    f"{self._where}:{line}: the key {value[:60]!r} is given twice; keep one of them"
                )
            inner.key = value
        elif inner.key == "<<":
            self._merge(inner, value, line)
        else:
            inner.value[inner.key], inner.key = value, None

    def _merge(self, inner: _Open, value: Any, line: int) -> None:
        """`<<: *base` adds the keys of base that the mapping does not give itself."""
        bases = value if isinstance(value, list) else [value]
        if not all(isinstance(base, dict) for base in bases):
            raise PlainYamlError(f"{self._where}:{line}: `<<` takes mappings; write the keys out")
        inner.merged += bases
        inner.key = None

    def _expects_key(self) -> bool:
        return bool(self._open) and isinstance(self._open[-1].value, dict) and self._open[-1].key is None

    def _is_text(self) -> bool:
        """Whether a scalar at this place stays as it is written."""
        if len(self._open) == 1 and self._open[0].key is not None:
            return self._open[0].key in self._as_text
        return bool(self._open) and self._open[-1].text

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        if self._expects_key() or not event.implicit[0]:  # quoted
            return text
        if text in _NULLS and (len(self._open) <= 1 or not self._is_text()):
            return None
        if self._is_text():
            return text
        return text if (value := _plain(text)) is None else self._number(event, value)

    def _number(self, event: Any, value: Any) -> Any:
        if value is _TOO_LONG:
            raise self._error(
                event, f"a number of {len(event.value)} characters", "write it shorter, or quoted"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise self._error(event, f"{event.value} is no finite number", "write one, or quote it")
        return value

    def _error(self, event: Any, what: str, way_out: str) -> PlainYamlError:
        return PlainYamlError(f"{self._where}:{_line(event)}: {what}; {way_out}")


_TOO_LONG = object()


def _plain(text: str) -> Any:
    """The bool or number that an unquoted scalar means; None if it is a string."""
    if text in _BOOLS:
        return _BOOLS[text]
    if _NOT_FINITE.fullmatch(text):
        return math.nan
    for form, read in ((_INT, int), (_BASED, lambda digits: int(digits, 0)), (_FLOAT, float)):
        if form.fullmatch(text):
            return read(text.replace("_", "")) if len(text) <= _LONGEST_NUMBER else _TOO_LONG
    return None


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def described(value: Any) -> str:
    """What a document holds, in words."""
    words = {dict: "keys and values", list: "a list", str: "a text", type(None): "nothing"}
    return words.get(type(value), "a single value")
