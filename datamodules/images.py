"""Image files: finding them by the name an annotation file gives, their size, their RGB pixels."""

from __future__ import annotations

import io
import os
import unicodedata
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from datamodules.stores import Folder, ImageStore, StoreError
from zoo.preprocess import image_to_tensor, to_rgb

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # torchvision 0.29 says that a later one is without; PIL's pixels are the same
    decode_jpeg = None

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
_LISTED_AT_MOST = 400_000  # names of files in subfolders that are kept in memory, some 60 MB
_ORIENTATION = 0x0112  # EXIF tag
_END_OF_JPEG = b"\xff\xd9"
_SIDEWAYS = frozenset({5, 6, 7, 8})  # orientations that swap width and height
# what PIL raises on damaged, cut, foreign or absurdly large files
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class FrameSize(NamedTuple):
    """The frame of the boxes: (h, w), or None and the fault if it cannot be known."""

    size: tuple[int, int] | None
    kind: str = ""  # of the fault; empty if there is none
    message: str = ""


def walk(folder: Path | str) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` through links, but not through one to a folder above it, which would give its files again."""
    for here, below, names in os.walk(folder, followlinks=True):
        linked = {d for d in below if os.path.islink(os.path.join(here, d))}
        if linked:
            own = os.path.realpath(here) + os.sep
            around = {d for d in linked if own.startswith(os.path.realpath(os.path.join(here, d)) + os.sep)}
            below[:] = [d for d in below if d not in around]
        yield here, below, names


def list_images(folder: Path) -> list[Path]:
    """Image files directly in `folder`, by name; hidden files (.DS_Store, ._x.jpg) are none."""
    files = (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    return sorted(p for p in files if p.is_file())


def header_size(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """(h, w) as displayed, after the EXIF rotation, and (h, w) of the raw pixels; decodes nothing.

    Raises:
        ValueError: naming the file, if it is no readable image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            sideways = image.getexif().get(_ORIENTATION) in _SIDEWAYS
    except _UNREADABLE as error:
        raise ValueError(f"{path} is no readable image: {error}") from error
    return ((width, height) if sideways else (height, width)), (height, width)


def frame_size(path: Path, declared: tuple[int, int] | None) -> FrameSize:
    """Reconciles the (h, w) that an annotation file declares with that of the image file."""
    try:
        displayed, raw = header_size(path)
    except ValueError as error:
        reason = error.__cause__
        if isinstance(reason, UnidentifiedImageError):
            reason = ValueError("its bytes are no image that is known here")
        message = f"it is no readable image: {reason}; the image is left out; replace or remove it"
        return FrameSize(None, "unreadable_image", message)
    if declared is None or declared == displayed:
        return FrameSize(displayed)
    if declared == raw:
        return FrameSize(
            raw,
            "rotation_ignored",
            "the annotation gives the size before the photograph's EXIF rotation, so its boxes are taken "
            "to be in that frame; check them in a picture",
        )
    if declared == displayed[::-1]:
        return FrameSize(
            displayed,
            "swapped_size",
            f"the annotation gives {declared[1]}x{declared[0]} (width x height), the image has "
            f"{displayed[1]}x{displayed[0]}; taken as the image has it",
        )
    return FrameSize(
        None,
        "wrong_size",
        f"the annotation gives {declared[1]}x{declared[0]} (width x height), the image has "
        f"{displayed[1]}x{displayed[0]}, so its boxes fit another version of it; the image is left out; "
        "export the annotations again for this image",
    )


def open_image(path: Path, image_id: int, size: tuple[int, int]) -> Image.Image:
    """`decode` of a plain file."""
    return decode(Folder(str(path.parent)), path.name, image_id, size)


def decode(store: ImageStore, name: str, image_id: int, size: tuple[int, int]) -> Image.Image:
    """Decodes to RGB in the frame of the boxes, whose (h, w) is `size`.

    Raises:
        ValueError: naming file and id, if the file cannot be decoded or has another size.
        StoreError: the store cannot hand out the file, or not as it was stored.
    """
    return _decoded(_bytes(store, name, image_id), store.where(name), image_id, size)


def decode_tensor(store: ImageStore, name: str, image_id: int, size: tuple[int, int]) -> Tensor:
    """The pixels of `decode`, and its errors, as a [3, h, w] uint8 view on HWC memory.

    An ordinary JPEG goes through torchvision's decoder, which is quicker and gives the same pixels;
    everything else, and whatever that decoder refuses, through PIL.
    """
    data = _bytes(store, name, image_id)
    if decode_jpeg is not None and _is_ordinary_jpeg(data, size):
        try:
            return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
        except RuntimeError:
            pass  # damaged: PIL says in which way, or can still read it
    return image_to_tensor(_decoded(data, store.where(name), image_id, size))


def _bytes(store: ImageStore, name: str, image_id: int) -> bytes:
    try:
        return store.read(name)
    except StoreError:
        raise  # not the file is at fault but the way to it, and the message says so
    except OSError as error:
        raise _undecodable(store.where(name), image_id, error) from error


def _is_ordinary_jpeg(data: bytes, size: tuple[int, int]) -> bool:
    """RGB or grey, whole to the end marker, in the frame of its boxes without turning. Reads the header only."""
    if not data.endswith(_END_OF_JPEG):
        return False
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as header:
            return (
                header.format == "JPEG"  # not MPO, a series of pictures
                and header.mode in ("RGB", "L")
                and (header.height, header.width) == size
                and header.getexif().get(_ORIENTATION, 1) == 1
            )
    except _UNREADABLE:
        return False


def _decoded(data: bytes, path: str, image_id: int, size: tuple[int, int]) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            image = in_frame(opened, size)
            if image is not None:
                return to_rgb(image)
            found = opened.size
    except _UNREADABLE as error:
        raise _undecodable(path, image_id, error) from error
    raise ValueError(
        f"{path} (image id {image_id}) is {found[0]}x{found[1]} but its annotations are for "
        f"{size[1]}x{size[0]} (width x height); correct the annotations; `zoo data check` lists all such "
        "files"
    )


def _undecodable(path: str, image_id: int, error: Exception) -> ValueError:
    # PIL's own message shows the address of the buffer
    reason = "it is of no known image format" if isinstance(error, UnidentifiedImageError) else error
    return ValueError(
        f"{path} (image id {image_id}) cannot be decoded: {reason}; replace the file or remove it from "
        "the annotations; `zoo data check` lists all such files"
    )


def in_frame(image: Image.Image, size: tuple[int, int]) -> Image.Image | None:
    """The image in the frame of its boxes, whose (h, w) is `size`: turned by its EXIF, as it is, or None."""
    if image.getexif().get(_ORIENTATION, 1) != 1:
        turned = ImageOps.exif_transpose(image)
        if (turned.height, turned.width) == size:
            return turned
    return image if (image.height, image.width) == size else None


def _spelling(name: str) -> str:
    """What names have in common that differ by case, or by how Unicode writes their accents (macOS does)."""
    return unicodedata.normalize("NFC", name).casefold()


class ImageFolder:
    """Finds images by the names an annotation file gives them, also where the spelling is a little off."""

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
            own = {e.name for e in os.scandir(place) if e.is_file()} if place.is_dir() else set()
            self._below[head] = own
            self._listed += len(own)
        return tail in own

    def find(self, name: str) -> tuple[Path | None, str]:
        """The file, and a remark if it is not spelled as `name`; (None, "") if there is none."""
        if self.holds(name):
            return self.folder / name, ""
        forward = name.replace("\\", "/")
        for guess in (forward, forward.rsplit("/", 1)[-1]):
            if not guess.startswith("/") and guess and (self.folder / guess).is_file():
                return self.folder / guess, f"found as {guess}"
        on_disk = self._by_spelling.get(_spelling(forward.rsplit("/", 1)[-1]))
        if on_disk is None:
            return None, ""
        return self.folder / on_disk, f"found as {on_disk}"
