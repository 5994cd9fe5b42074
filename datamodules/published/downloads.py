"""The files of published data sets: addresses, sizes, checksums, and the folders they are put into."""

from __future__ import annotations

import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

from zoo.storage.plain_yaml import parse_yaml

_IMAGES = 1.07  # bytes unpacked per byte of an archive of JPEGs: Objects365's 367 GB of 345 GB
_ARCHIVES = (".zip", ".tar.gz")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a data set.

    Attributes:
        path: below the data set's address.
        parts: of the data set that need it.
        into: folder below the data set's, where it is put or unpacked.
        size: bytes, None if it is not published.
        sha256: None if it is not published.
        unpacks_to: bytes on disk per byte of the archive, about.
        nested: archives inside the archive, unpacked beside where they lie.
    """

    path: str
    parts: tuple[str, ...]
    into: str = "."
    size: int | None = None
    sha256: str | None = None
    unpacks_to: float = _IMAGES
    nested: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file name without folders."""
        return PurePosixPath(self.path).name

    @property
    def is_archive(self) -> bool:
        """Whether the file is an archive, which is unpacked."""
        return self.name.endswith(_ARCHIVES)


@dataclass(frozen=True)
class Publication:
    """A data set as its authors publish it; the texts are for people to read."""

    name: str
    title: str
    prefix: str
    licence: str
    alternatives: str
    checksums: str
    default_parts: tuple[str, ...]
    recipe: str
    files: tuple[RemoteFile, ...] = field(repr=False)

    @property
    def parts(self) -> tuple[str, ...]:
        """All parts, the default ones first."""
        return tuple(dict.fromkeys([*self.default_parts, *(p for f in self.files for p in f.parts)]))

    def select(self, parts: Sequence[str]) -> list[RemoteFile]:
        """The files of these parts, small ones first.

        Raises:
            ValueError: if there is no such part, naming those there are.
        """
        unknown = [part for part in parts if part not in self.parts]
        if unknown or not parts:
            raise ValueError(
                f"{self.name} has no part {', '.join(map(repr, unknown)) or 'of no name'}; its parts are "
                f"{', '.join(self.parts)}"
            )
        return [file for file in self.files if set(file.parts) & set(parts)]


@cache
def publications() -> dict[str, Publication]:
    """Name -> data set."""
    text = resources.files("datamodules.published").joinpath("downloads.yaml").read_text(encoding="utf-8")
    return {name: _publication(name, entry) for name, entry in parse_yaml(text, "downloads.yaml").items()}


def _publication(name: str, entry: dict[str, Any]) -> Publication:
    files = tuple(file for row in entry.pop("files") for file in _files(row))
    default = tuple(entry.pop("default_parts"))
    return Publication(name=name, files=files, default_parts=default, **entry)


def _files(row: dict[str, Any]) -> list[RemoteFile]:
    row = {**row, "parts": tuple(row["parts"]), "nested": tuple(row.get("nested", ()))}
    if "first" not in row:
        return [RemoteFile(**row)]
    numbers = range(row.pop("first"), row.pop("last") + 1)
    return [RemoteFile(**{**row, "path": row["path"].format(number)}) for number in numbers]


def address(prefix: str, path: str) -> str:
    """Where a file below `prefix` is; letters that an address cannot have are percent-encoded, once.

    A prefix that is no http(s) address is a folder on this machine.
    """
    joined = f"{prefix.rstrip('/')}/{path}"
    parts = urllib.parse.urlsplit(joined)
    if parts.scheme not in ("http", "https"):
        return joined
    encoded = urllib.parse.quote(parts.path, safe="/%:@!$&'()*+,;=~-._")
    return urllib.parse.urlunsplit(parts._replace(path=encoded))
