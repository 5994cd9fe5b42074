"""The images of a job: a split of a data set, in any format that is read, or all images below a folder."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from datamodules.formats.detect import is_without_annotations, read
from datamodules.images.files import SUFFIXES, list_images, walk
from datamodules.index import AnnotationIndex
from datamodules.index.faults import NOT_READ
from datamodules.index.source import Source
from datamodules.loading.pictures import Pixels, read_image
from datamodules.shards.reader import is_address, local_path
from zoo.contract.preprocess import InputContract
from zoo.prediction.image_input import read_input

PLAIN = "images"  # the format of a folder whose annotations, if it has any, are not read


class LeftOut(NamedTuple):
    """An image that no detection was made in, and why."""

    image_id: int | None  # None: its data set could not be read that far
    file_name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Images(ABC):
    """Numbered images. The pickle is what a worker needs to read them.

    Attributes:
        place: folder or address.
        split: of the data set; None of plain images.
        format: of the data set; `PLAIN` of plain images.
        left_out: images of the split that its reader has refused.
        classes: of the data set by their ids; None of plain images.
    """

    place: str
    split: str | None = None
    format: str = PLAIN
    left_out: tuple[LeftOut, ...] = ()
    classes: Mapping[int, str] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image_id(self, number: int) -> int:
        """Of the annotation file; of plain images 1, 2, ..."""

    @abstractmethod
    def file_name(self, number: int) -> str:
        """As the annotation file has it, or below the folder."""

    @abstractmethod
    def read(self, number: int, contract: InputContract) -> Pixels:
        """The decoded image.

        Raises:
            ValueError, OSError: it cannot be read.
        """

    @abstractmethod
    def digest(self) -> str:
        """Other images have another one, by their names, sizes in bytes and times, and their annotations."""


@dataclass(frozen=True, kw_only=True)
class PlainImages(Images):
    """Image files below a folder, by their names."""

    files: Sequence[str]

    def __len__(self) -> int:
        return len(self.files)

    def image_id(self, number: int) -> int:
        """1, 2, ..."""
        return number + 1

    def file_name(self, number: int) -> str:
        """Below the folder."""
        return self.files[number]

    def read(self, number: int, contract: InputContract) -> Pixels:
        """The image as `zoo predict FILE` reads it."""
        return read_input(Path(self.place, self.files[number]), contract)

    def digest(self) -> str:
        """Of the files."""
        digest = hashlib.sha256()
        _update_with_files(digest, self.place, self.files)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class IndexedImages(Images):
    """The images of a split."""

    index: AnnotationIndex

    def __len__(self) -> int:
        return len(self.index)

    def image_id(self, number: int) -> int:
        """As the annotation file has it."""
        return self.index.image_id(number)

    def file_name(self, number: int) -> str:
        """As the annotation file has it."""
        return self.index.files[number]

    def read(self, number: int, contract: InputContract) -> Pixels:
        """The image in the frame of its boxes, as `zoo validate` reads it."""
        return read_image(self.index, number, contract)

    def digest(self) -> str:
        """Of the annotations, and of the files unless they are in shards, whose manifest has checked them."""
        digest = hashlib.sha256()
        self.index.update_digest(digest)
        if self.index.store is None:
            _update_with_files(digest, str(self.index.root), self.index.files)
        return digest.hexdigest()


def _update_with_files(digest: hashlib._Hash, root: str, files: Iterable[str]) -> None:
    """With names, sizes in bytes and times of change; a million contents would take too long."""
    for name in files:
        try:
            status = os.stat(os.path.join(root, name))
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:  # it is told of when it is read
            state = "-"
        digest.update(f"{name}\0{state}\n".encode("utf-8", "surrogateescape"))


def open_images(place: str, split: str | None, format: str) -> Images:
    """The images of a folder or an address of shards.

    Args:
        place: the folder or address.
        split: of a data set; None for the only one, else `val`, else `test`.
        format: of `datamodules.formats.detect.FORMATS`, `PLAIN`, or `auto`, which detects it: a folder of images
            without annotations that are read is plain.

    Raises:
        ValueError, OSError: there are none, the data set cannot be read, or has no such split.
    """
    if not is_address(place):
        folder = local_path(place)
        if format == PLAIN or (format == "auto" and folder.is_dir() and is_without_annotations(folder)):
            if split is not None:
                raise ValueError(
                    f"--split {split}: {place} has images without annotations, and no splits; leave it out"
                )
            return _plain(folder)
    elif format == PLAIN:
        raise ValueError(
            f"{place}: of an address only shards are read, which zoo data shard writes; leave --format out"
        )
    return _indexed(place, read(place, format), split)  # type: ignore[arg-type]


def _plain(folder: Path) -> PlainImages:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the folder of the images")
    found: list[str] = []
    for here, below, _ in walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [path.relative_to(folder).as_posix() for path in list_images(Path(here))]
    if not found:
        raise FileNotFoundError(f"folder {folder} holds no image ({', '.join(sorted(SUFFIXES))})")
    return PlainImages(place=str(folder), files=sorted(found))


def _indexed(place: str, source: Source, split: str | None) -> IndexedImages:
    filled = [name for name, index in source.splits.items() if len(index)]
    if split is None:
        split = next((name for name in ("val", "test") if name in filled), None)
        split = filled[0] if len(filled) == 1 else split
    if split is None or split not in source.splits:
        problem = "which split?" if split is None else f"there is no split {split!r} with images:"
        raise ValueError(
            f"{problem} {place} has {', '.join(filled) or 'no image in any'}; choose by --split NAME"
        )
    index = source.splits[split]
    if not len(index):
        raise ValueError(f"split {split} of {place} has no image; zoo data check tells why")
    left_out = tuple(
        LeftOut(fault.id if isinstance(fault.id, int) else None, fault.file, fault.message)
        for fault in index.faults
        if fault.kind in NOT_READ
    )
    return IndexedImages(
        place=str(source.root),
        split=split,
        format=source.format,
        index=index,
        left_out=left_out,
        classes=dict(source.classes) or None,
    )
