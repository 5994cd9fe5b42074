"""Image files: finding them by the name an annotation file gives, and their size. Imports no torch."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

from zoo.contract.bands import TIFF, size_of
from zoo.contract.pixels import open_image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
ARRAYS = ".npy"  # images too, where an annotation names them or no picture of their name lies beside them
_LISTED_AT_MOST = 400_000  # names of files in subfolders that are held in memory, some 60 MB
_MOST_LINKED = 10_000  # folders that links lead to
ORIENTATION = 0x0112  # EXIF tag
_SIDEWAYS = frozenset({5, 6, 7, 8})  # orientations that swap width and height
# what PIL raises on damaged, cut, foreign or absurdly large files
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class FrameSize(NamedTuple):
    """The frame of the boxes: (h, w), or None and the fault if it cannot be known."""

    size: tuple[int, int] | None
    kind: str = ""  # of the fault; empty if there is none
    message: str = ""


def walk(folder: Path | str) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` that follows links, except a link to a folder above it, which would give the same files again.

    Raises:
        ValueError: links lead to more folders than a data set has, as links to one another do.
    """
    way = [(os.fspath(folder), os.path.realpath(folder))]  # from the top to here, as named and without links
    behind_links = 0
    for here, below, names in os.walk(folder, followlinks=True):
        if here != way[0][0]:
            while not here.startswith(os.path.join(way[-1][0], "")):
                way.pop()
            real = os.path.join(way[-1][1], os.path.basename(here))
            way.append((here, os.path.realpath(real) if os.path.islink(real) else real))
        own = way[-1][1]
        behind_links += own != os.path.join(way[0][1], here[len(way[0][0]) :].strip(os.sep)).rstrip(os.sep)
        if behind_links > _MOST_LINKED:
            raise ValueError(f"{folder}: its links lead to more than {_MOST_LINKED} folders; remove them")
        linked = {
            d: os.path.realpath(os.path.join(own, d)) for d in below if os.path.islink(os.path.join(own, d))
        }
        if linked:
            around = {d for d, place in linked.items() if any(_holds(place, real) for _, real in way)}
            below[:] = [d for d in below if d not in around]
        yield here, below, names


def _holds(folder: str, path: str) -> bool:
    """Whether `path` is the folder, or below it; both without links."""
    return os.path.join(path, "").startswith(os.path.join(folder, ""))


def list_images(folder: Path) -> list[Path]:
    """Image files directly in `folder`, by name; hidden files (.DS_Store, ._x.jpg) are none."""
    known = {*SUFFIXES, ARRAYS}
    files = (p for p in folder.iterdir() if p.suffix.lower() in known and not p.name.startswith("."))
    found = sorted(p for p in files if p.is_file())
    # Ultralytics keeps the decoded pixels of an image beside it
    pictures = {p.stem for p in found if p.suffix.lower() != ARRAYS}
    return [p for p in found if p.suffix.lower() != ARRAYS or p.stem not in pictures]


def header_size(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """(h, w) as displayed, after the EXIF rotation, and (h, w) of the raw pixels; decodes nothing.

    Raises:
        ValueError: naming the file, if it is no readable image.
    """
    try:
        if path.suffix.lower() == ARRAYS:
            size = size_of(path.read_bytes())
            return size, size
        try:
            with open_image(path) as image:
                width, height = image.size
                sideways = image.getexif().get(ORIENTATION) in _SIDEWAYS
        except UnidentifiedImageError:
            data = path.read_bytes() if path.suffix.lower() in (".tif", ".tiff") else b""
            if not data.startswith(TIFF):
                raise
            size = size_of(data)  # bands that PIL has no mode for
            return size, size
    except UNREADABLE as error:
        raise ValueError(f"{path} is no readable image: {error}") from error
    return ((width, height) if sideways else (height, width)), (height, width)


def frame_size(path: Path, declared: tuple[int, int] | None) -> FrameSize:
    """Reconciles the (h, w) that an annotation file declares with that of the image file."""
    try:
        displayed, raw = header_size(path)
    except ValueError as error:
        reason = error.__cause__
        if isinstance(reason, UnidentifiedImageError):
            reason = ValueError("its bytes are in no image format that can be read")
        message = f"it is no readable image: {reason}; the image is left out; replace or remove it"
        return FrameSize(None, "unreadable_image", message)
    if declared is None or declared == displayed:
        return FrameSize(displayed)
    if declared == raw:
        message = (
            "the annotation gives the size before the photograph's EXIF rotation, so its boxes are taken "
            "to be in that frame; check them with `zoo data show`"
        )
        return FrameSize(raw, "rotation_ignored", message)
    if declared == displayed[::-1]:
        message = (
            f"the annotation gives {declared[1]}x{declared[0]} (width x height), the image has "
            f"{displayed[1]}x{displayed[0]}; taken as the image has it"
        )
        return FrameSize(displayed, "swapped_size", message)
    message = (
        f"the annotation gives {declared[1]}x{declared[0]} (width x height), the image has "
        f"{displayed[1]}x{displayed[0]}, so its boxes fit another version of it; the image is left out; "
        "export the annotations again for this image"
    )
    return FrameSize(None, "wrong_size", message)


def _spelling(name: str) -> str:
    """The same text for names that differ only by case, or by how Unicode writes accents (macOS does)."""
    return unicodedata.normalize("NFC", name).casefold()


class ImageFolder:
    """Finds images by the names an annotation file gives them, also if case, accents or suffix differ."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # one listing instead of one system call an image
        self._names = {e.name for e in os.scandir(folder)} if folder.is_dir() else set()
        self._below: dict[str, set[str]] = {}  # the same of the folders in it, those that were asked for
        self._listed = 0

    @cached_property
    def _by_spelling(self) -> dict[str, str]:
        return {_spelling(name): name for name in sorted(self._names)}

    def holds(self, name: str) -> bool:
        """Whether there is a file of exactly this name."""
        head, slash, tail = name.rpartition("/")
        if not slash:
            return name in self._names
        if name.startswith("/"):
            return False
        own = self._below.get(head)
        if own is None:
            if self._listed > _LISTED_AT_MOST:
                return os.path.isfile(f"{self.folder}/{name}")
            place = self.folder / head
            own = {e.name for e in os.scandir(place) if e.is_file()} if os.path.isdir(place) else set()
            self._below[head] = own
            self._listed += len(own)
        return tail in own

    def find(self, name: str) -> tuple[Path | None, str]:
        """The file, and a remark if it is not spelled as `name`; (None, "") if there is none."""
        if self.holds(name):
            return self.folder / name, ""
        forward = name.replace("\\", "/")
        for guess in (forward, forward.rsplit("/", 1)[-1]):
            if not guess.startswith("/") and guess and os.path.isfile(self.folder / guess):
                return self.folder / guess, f"found as {guess}"
        on_disk = self._by_spelling.get(_spelling(forward.rsplit("/", 1)[-1]))
        if on_disk is None:
            return None, ""
        return self.folder / on_disk, f"found as {on_disk}"


def in_frame(image: Image.Image, size: tuple[int, int]) -> Image.Image | None:
    """The image in the frame of its boxes, whose (h, w) is `size`: turned by its EXIF, as it is, or None."""
    if image.getexif().get(ORIENTATION, 1) != 1:
        turned = ImageOps.exif_transpose(image)
        if (turned.height, turned.width) == size:
            return turned
    return image if (image.height, image.width) == size else None
