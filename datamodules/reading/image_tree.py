"""Finds images anywhere below a folder by whatever path an annotation file gives them."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path

from datamodules.images.files import SUFFIXES, ImageFolder, walk


class ImageTree(ImageFolder):
    """All images below a folder, found by the longest common end of their path and a given one.

    Annotation tools write absolute paths of another machine, `../images/x.jpg`, backslashes or a bare
    file name. What they share with the file here is the end of the path.
    """

    def __init__(self, folder: Path, within: Collection[Path] = ()) -> None:
        """All below `folder`, or only what is in or below the folders `within` it, if any are given."""
        self.folder = folder
        self._files: list[str] = []
        starts = tuple(
            {"" if f == folder else f"{f.relative_to(folder).as_posix()}/" for f in within} or {""}
        )
        for here, below, names in walk(folder):
            below[:] = sorted(d for d in below if not d.startswith("."))
            parent = Path(here).relative_to(folder).as_posix()
            start = "" if parent == "." else f"{parent}/"
            images = [n for n in sorted(names) if not n.startswith(".") and _suffix(n) in SUFFIXES]
            if start.startswith(starts):
                self._files += [start + name for name in images]

    def __len__(self) -> int:
        return len(self._files)

    # each of these tables is made when a name first needs it, for there may be millions of images

    @cached_property
    def _all(self) -> set[str]:
        return set(self._files)

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for file in self._files:
            found.setdefault(file.rsplit("/", 1)[-1].casefold(), []).append(file)
        return found

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for file in self._files:
            stem = os.path.splitext(file.rsplit("/", 1)[-1])[0]
            found.setdefault(stem.casefold(), []).append(file)
        return found

    def holds(self, name: str) -> bool:
        """Whether there is an image of exactly this path below the folder."""
        return name in self._all

    def candidates(self, name: str) -> list[str]:
        """The files that fit `name` best, relative to the folder; several if the name fits them equally.

        A name without the suffix of an image fits any image of that stem.
        """
        wanted = [p for p in name.replace("\\", "/").split("/") if p not in ("", ".", "..")]
        if not wanted:
            return []
        if (exact := "/".join(wanted)) in self._all:
            return [exact]
        table = self._by_name if _suffix(wanted[-1]) in SUFFIXES else self._by_stem
        found = table.get(wanted[-1].casefold(), [])
        scores = [_likeness(file, wanted) for file in found]
        best = max(scores, default=None)
        return [file for file, score in zip(found, scores, strict=True) if score == best]

    def find(self, name: str) -> tuple[Path | None, str]:
        """The file if exactly one fits best, and a remark if its name is spelled differently."""
        found = self.candidates(name)
        if len(found) != 1:
            return None, ""
        given = name.replace("\\", "/").rsplit("/", 1)[-1]
        actual = found[0].rsplit("/", 1)[-1]
        same = given == actual or given == os.path.splitext(actual)[0]
        return self.folder / found[0], "" if same else f"found as {found[0]}"

    def place(self, base: str, folders: Sequence[str], stem: str) -> str:
        """The image of this stem in the first of some folders of `base` that has it; else where it should be."""
        start = "" if base == "." else f"{base}/"
        places = [f"{start}{folder}/{stem}" if folder else f"{start}{stem}" for folder in folders]
        held = (
            place + suffix for place in places for suffix in self._suffixes if place + suffix in self._all
        )
        return next(held, places[0])

    def inside(self, folder: str) -> list[str]:
        """The images of a folder itself, by name."""
        return self._by_folder.get(folder, [])

    @cached_property
    def _by_folder(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for file in self._files:
            found.setdefault(file.rpartition("/")[0], []).append(file)
        return found

    @cached_property
    def _suffixes(self) -> list[str]:
        """The suffixes of the images, as they are spelled."""
        return sorted({os.path.splitext(file)[1] for file in self._files})

    def all(self) -> list[str]:
        """Every image, relative to the folder."""
        return list(self._files)


def _likeness(file: str, wanted: list[str]) -> tuple[int, bool]:
    """How many folders before the file name are equal, from the end; whether the name is equal letter by letter."""
    *folders, name = file.split("/")
    count = 0
    for ours, theirs in zip(reversed(folders), reversed(wanted[:-1]), strict=False):
        if ours.casefold() != theirs.casefold():
            break
        count += 1
    return count, name == wanted[-1]


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
