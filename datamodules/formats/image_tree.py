"""Finds images anywhere below a folder by whatever path an annotation file gives them."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

from datamodules.images import SUFFIXES, ImageFolder


class ImageTree(ImageFolder):
    """All images below a folder, found by the longest common end of their path and a given one.

    Annotation tools write absolute paths of another machine, `../images/x.jpg`, back slashes or a bare
    file name. What they share with the file here is the end of the path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_name: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        self._by_stem: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        self._paths: set[tuple[str, ...]] = set()
        for here, below, names in os.walk(folder, followlinks=True):
            below[:] = sorted(d for d in below if not d.startswith("."))
            parents = Path(here).relative_to(folder).parts
            for name in sorted(names):
                if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("."):
                    self._paths.add((*parents, name))
                    self._by_name[name.casefold()].append((*parents, name))
                    self._by_stem[os.path.splitext(name)[0].casefold()].append((*parents, name))

    def __len__(self) -> int:
        return len(self._paths)

    def candidates(self, name: str) -> list[str]:
        """The files that fit `name` best, relative to the folder; several if the name does not decide.

        A name without the suffix of an image fits any image of that stem.
        """
        wanted = [p for p in name.replace("\\", "/").split("/") if p not in ("", ".", "..")]
        if not wanted:
            return []
        if tuple(wanted) in self._paths:
            return ["/".join(wanted)]
        table = self._by_name if os.path.splitext(wanted[-1])[1].lower() in SUFFIXES else self._by_stem
        found = table.get(wanted[-1].casefold(), [])
        scores = [(_common_end(parts, wanted), parts[-1] == wanted[-1]) for parts in found]
        best = max(scores, default=None)
        return ["/".join(p) for p, score in zip(found, scores, strict=True) if score == best]

    def find(self, name: str) -> tuple[Path | None, str]:
        """The file if exactly one fits best, and a remark if its name is spelled differently."""
        found = self.candidates(name)
        if len(found) != 1:
            return None, ""
        given = name.replace("\\", "/").rsplit("/", 1)[-1]
        actual = found[0].rsplit("/", 1)[-1]
        same = given == actual or given == os.path.splitext(actual)[0]
        return self.folder / found[0], "" if same else f"found as {found[0]}"

    def all(self) -> list[str]:
        """Every image, relative to the folder."""
        return ["/".join(parts) for parts in sorted(self._paths)]


def _common_end(parts: tuple[str, ...], wanted: list[str]) -> int:
    """How many folders before the file name are equal, from the end."""
    count = 0
    for ours, theirs in zip(reversed(parts[:-1]), reversed(wanted[:-1]), strict=False):
        if ours.casefold() != theirs.casefold():
            break
        count += 1
    return count
