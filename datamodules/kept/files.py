"""A data set as a folder of files: columns (Arrow) and faults of each split, and a json that names them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from datamodules.index.annotation_index import AnnotationIndex
from datamodules.index.arrow import open_columns, write_columns
from datamodules.index.faults import Fault
from datamodules.index.plain_json import decode, encode
from datamodules.index.source import Source
from zoo.storage.durable import write_atomically

_PAGE = 4096
_PAGES = 64  # of a large file, covered by its check
_NAME = "source.json"


class _Split(msgspec.Struct):
    root: str
    file: str
    size: int
    check: int
    faults: str


class _Stored(msgspec.Struct):
    format: str
    root: str
    classes: list[tuple[int, str]]
    notes: list[Fault]
    splits: dict[str, _Split]


class StoredFaults(Sequence[Fault]):
    """Faults in a file, read when they are asked for; workers get its path."""

    def __init__(self, path: str) -> None:
        self._path = path

    @cached_property
    def _faults(self) -> list[Fault]:
        return decode(Path(self._path).read_bytes(), list[Fault])

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredFaults, (self._path,)

    def __len__(self) -> int:
        return len(self._faults)

    def __getitem__(self, number: Any) -> Any:
        return self._faults[number]


def write_source(source: Source, folder: Path) -> None:
    """Writes the data set into a new folder and waits until the disk has it."""
    folder.mkdir()
    splits = {}
    for number, (name, index) in enumerate(source.splits.items()):
        columns = index.columns if index.rows is None else index.columns.take(index.rows)
        file, faults = folder / f"{number}.arrow", folder / f"{number}.faults.json"
        write_columns(columns, file)
        write_atomically(faults, encode(list(index.faults)))
        splits[name] = _Split(index.root, file.name, file.stat().st_size, check_of(file), faults.name)
    stored = _Stored(
        source.format, str(source.root), list(source.classes.items()), list(source.notes), splits
    )
    write_atomically(folder / _NAME, encode(stored))


def open_source(folder: Path) -> Source:
    """The data set of a folder, its columns mapped.

    Raises:
        OSError: if a file is not there.
        ValueError: if one is damaged: its size or check is not that of the file as it was written.
    """
    try:
        stored = decode((folder / _NAME).read_bytes(), _Stored)
    except ValueError as error:
        raise ValueError(f"{folder / _NAME} is damaged: {error}") from error
    splits = {}
    for name, split in stored.splits.items():
        file = folder / split.file
        if file.stat().st_size != split.size or check_of(file) != split.check:
            raise ValueError(f"{file} is damaged: it is not as it was written")
        faults = StoredFaults(str(folder / split.faults))
        try:
            len(faults)
        except ValueError as error:
            raise ValueError(f"{folder / split.faults} is damaged: {error}") from error
        splits[name] = AnnotationIndex(split.root, open_columns(str(file)), faults=faults)
    return Source(stored.format, Path(stored.root), dict(stored.classes), splits, tuple(stored.notes))


def check_of(file: Path) -> int:
    """crc32 of a small file, or of pages spread evenly over a large one, its first and last among them.

    Finds what an interrupted or partial copy leaves; a single changed bit between the pages it does not.
    """
    size = file.stat().st_size
    pages = range(0, size, _PAGE)
    chosen = (
        pages
        if len(pages) <= _PAGES
        else [pages[i * (len(pages) - 1) // (_PAGES - 1)] for i in range(_PAGES)]
    )
    check = 0
    with file.open("rb", buffering=0) as stream:
        for start in chosen:
            stream.seek(start)
            check = zlib.crc32(stream.read(_PAGE), check)
    return check
