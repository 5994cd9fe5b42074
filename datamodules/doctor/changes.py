"""The log of a cleaned copy: every change, with what was there before and why."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from datamodules.index.faults import visible

# what was done, in the order of the log
Action = Literal[
    "image_left_out", "object_left_out", "box_changed", "outline_left_out", "area_changed", "class_merged",
    "renumbered", "file_converted", "file_renamed", "kept_as_it_is",
]  # fmt: skip
_WORDS: dict[Action, str] = {
    "image_left_out": "Images left out",
    "object_left_out": "Objects left out",
    "box_changed": "Boxes changed",
    "outline_left_out": "Outlines left out, their objects kept",
    "area_changed": "Areas replaced by that of the box",
    "class_merged": "Classes merged",
    "renumbered": "Annotations with a new id",
    "file_converted": "Image files written anew",
    "file_renamed": "Image files with another name, byte for byte the same",
    "kept_as_it_is": "Not changed, for what is right cannot be known: check these yourself",
}
_SHOWN = 25  # entries of an action in the text for people; the jsonl has all


@dataclass(frozen=True)
class Change:
    """One change, or one fault that was left as it is."""

    action: Action
    split: str | None
    file: str  # of the source, relative to its folder
    id: int | str | None
    before: Any
    after: Any
    why: str
    of: str = "annotation"  # what the id is one of

    def line(self) -> str:
        """The change as a line of text."""
        where = self.file if self.id is None else f"{self.file} ({self.of} {self.id})"
        values = "" if self.before is None and self.after is None else f": {self.before!r} -> {self.after!r}"
        return visible(f"`{where}`{values}. {self.why}")


class ChangeLog:
    """Writes each change at once to a file of json lines and keeps what the text for people shows."""

    def __init__(self, file: Path) -> None:
        self._stream = file.open("w", encoding="utf-8", errors="backslashreplace")
        self._shown: dict[Action, list[Change]] = {action: [] for action in _WORDS}
        self.counts: Counter[Action] = Counter()

    def add(self, change: Change) -> None:
        """Logs one change."""
        self._stream.write(json.dumps(asdict(change), ensure_ascii=False) + "\n")
        self.counts[change.action] += 1
        if len(self._shown[change.action]) < _SHOWN:
            self._shown[change.action].append(change)

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()

    def text(self, source: Path) -> str:
        """The log as Markdown."""
        lines = [f"# Cleaned copy of {visible(str(source))}", ""]
        lines += [f"* {_WORDS[action]}: {self.counts[action]}" for action in _WORDS if self.counts[action]]
        if not self.counts:
            lines.append("Nothing had to be changed.")
        for action, shown in self._shown.items():
            if shown:
                lines += ["", f"## {_WORDS[action]} ({self.counts[action]})", ""]
                lines += [f"* {change.line()}" for change in shown]
                more = self.counts[action] - len(shown)
                lines += [f"* ... and {more} more in fix_log.jsonl"] if more else []
        return "\n".join(lines) + "\n"
