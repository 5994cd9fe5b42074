"""Finds the label file of an image, and tells label files from other txt files."""

from __future__ import annotations

import os
from pathlib import Path

from datamodules.images.files import ImageFolder, list_images
from datamodules.index.source import split_of
from datamodules.reading.parsing import is_number
from datamodules.reading.places import IMAGE_WORDS
from datamodules.reading.text import as_utf8
from zoo.storage.opening import open_file

_LABEL_FOLDERS = ("labels", "Labels", "Annotations", "annotations")
_SHORTEST_ROW = 5  # class cx cy w h
_HEAD = 1 << 16  # bytes that are read to find the first row


def text_files(folder: Path) -> list[Path]:
    """Text files of a folder, their suffix in any letter case; no hidden ones."""
    if not folder.is_dir():
        return []
    found = (e for e in os.scandir(folder) if e.name.lower().endswith(".txt") and not e.name.startswith("."))
    return sorted(folder / e.name for e in found if e.is_file())


def is_listing(file: Path) -> bool:
    """Whether a txt lists files and not boxes, by its first line."""
    row = _first_row(file)
    return split_of(file.stem) is not None and bool(row) and not all(map(is_number, row))


def labels_beside(folder: Path) -> bool:
    """Whether a folder has a txt of the name of an image in it."""
    if not folder.is_dir():
        return False
    stems = {p.stem for p in list_images(folder)}
    return any(f.stem in stems for f in folder.glob("*.txt"))


def is_label(file: Path) -> bool | None:
    """Whether the first row of a txt is a box; None if it has none."""
    row = _first_row(file)
    return (all(map(is_number, row)) and len(row) >= _SHORTEST_ROW) if row else None


def _first_row(file: Path) -> list[str]:
    if not file.is_file():
        return []
    with open_file(file) as stream:
        head = as_utf8(stream.read(_HEAD)).decode("utf-8-sig", errors="replace")
    return next((line.replace(",", " ").split() for line in head.splitlines() if line.strip()), [])


class LabelFiles:
    """Finds the label file of an image; lists every folder once."""

    def __init__(self) -> None:
        self._folders: dict[Path, ImageFolder] = {}

    def folder(self, image: Path) -> Path:
        """Where the labels of the image's folder lie."""
        return self._of(image.parent).folder

    def find(self, image: Path) -> Path | None:
        """The txt of an image; None if there is none, or it is no regular file."""
        file = self._of(image.parent).find(f"{image.stem}.txt")[0]
        return file if file is not None and (file.is_file() or file.is_dir()) else None

    def any_in(self, folder: Path) -> bool:
        """Whether an image of the folder has a txt of its name with rows of numbers."""
        for image in list_images(folder):
            file = self.find(image)
            if file is not None and (has_rows := is_label(file)) is not None:
                return has_rows
        return False

    def _of(self, folder: Path) -> ImageFolder:
        if folder not in self._folders:
            places = label_folders(folder)
            chosen = next((p for p in places if text_files(p)), places[0])
            self._folders[folder] = ImageFolder(chosen)
        return self._folders[folder]


def label_folders(images: Path) -> list[Path]:
    """Where labels of an image folder may lie: the last `images` in its path becomes `labels`; or beside."""
    parts = list(images.parts)
    position = next((i for i in range(len(parts) - 1, -1, -1) if parts[i].lower() == "images"), None)
    replaced = (
        [] if position is None
        else [Path(*parts[:position], word, *parts[position + 1 :]) for word in _LABEL_FOLDERS]
    )  # fmt: skip
    beside = []
    if images.name.lower() in IMAGE_WORDS and position is None:  # imgs/ and labels/
        beside = [images.parent / word for word in _LABEL_FOLDERS]
    return [*replaced, images, images / "labels", *beside]
