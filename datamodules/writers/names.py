"""New names for the images of a copied data set, so that no two files ever overwrite each other."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from itertools import chain, count
from pathlib import PurePosixPath

from datamodules.index import AnnotationIndex

# of Unicode: control, half pairs (bytes that are no text), ends of lines and paragraphs
_NO_NAME = frozenset({"Cc", "Cs", "Zl", "Zp"})
_NO_LETTERS = ("\\", "\ufeff")  # readers remove a byte order mark at the start


def new_names(splits: Mapping[str, AnnotationIndex], *, flat: bool) -> dict[str, list[str]]:
    """Per split, for each image its path below the folder of the split.

    Folders that all images of a split share are left out. No two images of a folder get names that differ
    by case or suffix only: some file systems ignore the case, and label files beside images ignore the suffix.

    Args:
        splits: the data set.
        flat: one folder for all splits, without folders in it.
    """
    taken: set[str] = set()
    names: dict[str, list[str]] = {}
    for split, index in splits.items():
        files = index.files.tolist()
        place = "" if flat else split  # where a name must be unique: everywhere or in its split
        shared = os.path.commonpath([os.path.dirname(f) or "." for f in files]) if files else "."
        names[split] = []
        for file in files:
            below = _safe(os.path.relpath(file, shared))
            name = _free(below.replace("/", "_") if flat else below, split, place, taken)
            taken.add(_key(place, name))
            names[split].append(name)
    return names


def renamed(splits: Mapping[str, AnnotationIndex], names: Mapping[str, list[str]]) -> dict[str, str]:
    """File -> new name, of those whose new name is not the end of their path."""
    return {
        file: name
        for split, index in splits.items()
        for file, name in zip(index.files.tolist(), names[split], strict=True)
        if not f"/{file}".endswith(f"/{name}")
    }


def _safe(name: str) -> str:
    """The path without hidden parts, which readers skip, and without folders called `images`.

    YOLO's tools put labels/ for the last images/ of a path. What a line of a list or a cell of a table cannot hold is
    written as `_`: control characters, bytes that are no text, backslashes, spaces at an end, a comment's mark.
    """
    parts = [_plain(p) for p in name.replace(os.sep, "/").split("/") if p not in ("", "..")]
    folders = [f"{p}_" if p.lower() == "images" else p for p in parts[:-1]]
    return "/".join(f"_{p}" if p.startswith((".", "#")) else p for p in (*folders, parts[-1]))


def _plain(part: str) -> str:
    """One folder or file name with `_` for what a list or table cannot hold."""
    kept = "".join("_" if c in _NO_LETTERS or unicodedata.category(c) in _NO_NAME else c for c in part)
    stem, suffix = os.path.splitext(kept)
    return _edged(stem) + suffix.strip()


def _edged(text: str) -> str:
    """The text with `_` for spaces at its ends."""
    left, right = len(text) - len(text.lstrip()), len(text) - len(text.rstrip())
    return "_" * len(text) if left == len(text) else "_" * left + text.strip() + "_" * right


def _free(name: str, split: str, place: str, taken: set[str]) -> str:
    path = PurePosixPath(name)
    numbered = (f"{path.stem}_{number}{path.suffix}" for number in count(2))
    candidates = chain([path.name, f"{split}_{path.name}"], numbered)
    names = (str(path.with_name(candidate)) for candidate in candidates)
    return next(n for n in names if _key(place, n) not in taken)


def _key(place: str, name: str) -> str:
    stem = unicodedata.normalize("NFC", os.path.splitext(name)[0])
    return f"{place}/{stem}".casefold()
