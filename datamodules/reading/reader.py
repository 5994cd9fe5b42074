"""A format as one value: its name, how a folder of it is recognised, and the function that reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from datamodules.index.source import Source


class Signs(NamedTuple):
    """The files of a folder that show that it has a format.

    Attributes:
        files: these files; none if the folder is of another format.
        layout: whether they are laid out as the format demands. Loose files of another format beside such a
            layout are taken for leftovers.
    """

    files: Sequence[Path]
    layout: bool


class Evidence(NamedTuple):
    """Why a folder may have a format.

    Attributes:
        format: the format.
        files: the files that show it.
        layout: as in `Signs`.
        what: the files in words.
    """

    format: str
    files: tuple[Path, ...]
    layout: bool
    what: str


Look = Callable[[Path, Sequence[Evidence]], Signs]


@dataclass(frozen=True)
class Reader:
    """A format, as `datamodules.formats.detect` asks for it. Each file of a reader has one, called FORMAT.

    Attributes:
        name: of the format.
        look: finds its signs in a folder; it is given what the formats before it found there, for some
            formats share files and one of them must give way.
        read: reads the folder into a `Source`: (root, *, verify_sizes), and `scratch` where it is streamed.
        title: of the format, as people call it.
        places: where its files lie.
        streamed: whether its files may be of any size: it takes a `Scratch` for its working columns.
    """

    name: str
    look: Look
    read: Callable[..., Source]
    title: str
    places: str
    streamed: bool = False


def laid_out(find: Callable[[Path], Iterable[Path]]) -> Look:
    """`look` of a format whose files always count as a layout."""
    return lambda root, _: Signs(list(find(root)), True)


def claimed(before: Sequence[Evidence], *formats: str) -> set[Path]:
    """The files that these formats found."""
    return {file for evidence in before if evidence.format in formats for file in evidence.files}
