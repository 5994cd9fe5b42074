"""What is wrong with a data set, as a list of faults."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
_OBEYED = frozenset({"Cc", "Zl", "Zp"})  # of Unicode: control, ends of lines and paragraphs
_TURNS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_RANK: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}


# each fault of one of these kinds leaves out one image when its split is read
NOT_READ = frozenset({
    "missing_image", "unreadable_image", "wrong_size", "duplicate_image_id", "malformed_xml", "unsafe_xml",
    "foreign_xml", "missing_annotation", "invalid_image",
})  # fmt: skip


# what the number of a fault is the id of, by its kind; of the others it is an image
_OF_CLASS = frozenset({
    "class_list", "duplicate_category", "invalid_category", "similar_classes", "class_spelling",
    "placeholder_category", "class_only_in_val", "class_only_in_test",
})  # fmt: skip
_OF_ANNOTATION = frozenset({
    "unknown_image", "unknown_category", "invalid_annotation_id", "duplicate_annotation_id", "invalid_box", "zero_area",
    "outside", "partly_outside", "invalid_area", "invalid_segmentation", "segmentation_outside_box",
    "segmentation_size", "crowd_polygon", "crowd_without_mask", "no_outline",
})  # fmt: skip

_LONG = 200  # letters of a message from which on it is looked at
_WORD = re.compile(r"\S{240,}")


@dataclass(frozen=True)
class Fault:
    """One thing wrong with the data, and what to do about it.

    Attributes:
        severity: `error`: training is refused unless `skip_broken` is set; `warning`: counted and named when a
            training starts; `note`: an oddity that is read as it is meant, listed only by `zoo data check`.
        kind: short machine-readable name, e.g. `zero_area`.
        file: image or annotation file, relative to the data set's folder where it lies inside.
        id: annotation, image or category id, or line; None where the file is enough.
        message: what is wrong, what was done, and what to do.
        box: x, y, width, height of the object, where that is known, to be painted in a report.
    """

    severity: Severity
    kind: str
    file: str
    id: int | str | None
    message: str
    box: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        if len(self.message) > _LONG:
            object.__setattr__(self, "message", brief(self.message))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @property
    def leaves_out(self) -> bool:
        """Whether an image or object was left out because of it; every reader then says `left out` in the message."""
        return "left out" in self.message or self.kind in NOT_READ

    @property
    def where(self) -> str:
        """File and id: a number as `image 3`; an id in words, such as `object 3`, as it is."""
        if self.id is None:
            return visible(brief(self.file))
        given = self.id if " " in str(self.id) else f"{self.of} {self.id}"
        return visible(brief(f"{self.file} ({given})"))

    @property
    def of(self) -> str:
        """What the id is one of."""
        if self.kind in _OF_CLASS:
            return "class"
        if isinstance(self.id, str):
            return "split" if self.id in ("train", "val", "test") else "id"
        if self.file.endswith(".txt"):  # of YOLO's labels the number is the row's
            return "line"
        if self.box is not None or self.kind in _OF_ANNOTATION:
            return "annotation"
        return "segment" if self.kind == "wrong_area" else "image"

    def __str__(self) -> str:
        return f"{self.severity} {self.kind}: {self.where}: {visible(self.message)}"


def brief(text: str, most: int = 1200) -> str:
    """The text with its middle replaced by `...` if it is too long to be read, and so for each of its words."""
    text = _WORD.sub(lambda word: f"{word[0][:100]}...{word[0][-20:]}", text)
    return text if len(text) <= most else f"{text[: 2 * most // 3]} ... {text[-most // 4 :]}"


def visible(text: str, keep: str = "") -> str:
    """The text with control characters, which a terminal would obey, written as `\\x1b`, except those in `keep`.

    Marks that reverse the direction of writing are written so too: with them a name can look like another.
    """
    if text.isprintable():
        return text
    return "".join(
        ascii(c)[1:-1] if c not in keep and (unicodedata.category(c) in _OBEYED or c in _TURNS) else c
        for c in text
    )


def by_severity(fault: Fault) -> int:
    """Sort key: errors first, notes last."""
    return _RANK[fault.severity]


def by_kind(faults: Iterable[Fault]) -> list[list[Fault]]:
    """Faults of one severity and kind together, errors first, the commonest kind of a severity first."""
    groups: dict[tuple[Severity, str], list[Fault]] = defaultdict(list)
    for fault in faults:
        groups[(fault.severity, fault.kind)].append(fault)
    return sorted(groups.values(), key=lambda group: (by_severity(group[0]), -len(group)))


def relative(path: Path | str, root: Path) -> str:
    """`path` relative to `root` with forward slashes, also if it lies outside `root`."""
    return Path(os.path.relpath(path, root)).as_posix()


def shown_path(path: Path | str, root: Path) -> str:
    """`path` for a message: relative to `root` if it lies inside, else as it is."""
    if not os.path.isabs(path):
        return str(path)
    inside = relative(path, root)
    return str(path) if inside.startswith("..") else inside
