"""The part that readers of formats with named classes share: they yield images and objects, the rest is done here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from datamodules.index import Fault
from datamodules.index.source import Source
from datamodules.reading.image_tree import ImageTree
from datamodules.reading.parsing import MALFORMED
from datamodules.reading.reader import Evidence, Reader, Signs
from datamodules.reading.records import ImageRecord, Remarks, assemble, split_of_image


@dataclass
class AnnotationFolder:
    """A folder while its annotation files are read.

    Attributes:
        root: the folder.
        files: its annotation files.
        names: class names in the order of the tool, which a reader adds; others follow by alphabet.
        ids: class ids, for a format that has them.
        notes: faults of the folder as a whole, which a reader adds.
        remarks: collects faults that repeat.
    """

    root: Path
    files: Sequence[Path]
    names: Sequence[str] = ()
    ids: Mapping[str, int] | None = None
    notes: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.remarks = Remarks(self.root)

    @cached_property
    def tree(self) -> ImageTree:
        """The images."""
        return ImageTree(self.root)

    def with_split(self, record: ImageRecord) -> ImageRecord:
        """The record with the split of its annotation file, else of the folder of its image."""
        record.split = split_of_image(record, self.root, self.tree)
        return record

    @contextmanager
    def left_out(self, file: Path, message: str, where: str) -> Iterator[None]:
        """An entry of which a value has an unexpected type becomes a remark; `{error}` in it stands for the reason."""
        try:
            yield
        except MALFORMED as error:
            self.remarks.add("error", "malformed_labels", file, message.format(error=error), where)


def named_classes(
    *, name: str, find: Callable[[Path], list[Path]], records: Callable[[AnnotationFolder], Iterable[ImageRecord]],
    lacks: str | Callable[[Path], str], title: str, places: str, unlisted: str = "",
    layout: bool | Callable[[Sequence[Path]], bool] = False,
) -> Reader:  # fmt: skip
    """A format whose classes have names and no numbers, or numbers in the same files.

    Args:
        name: of the format.
        find: the annotation files of a folder.
        records: the images and their objects; raises ValueError if a file cannot be parsed at all.
        lacks: what a folder without such files lacks, in words, or a function that tells it.
        title: of the format, as people call it.
        places: where its files lie.
        unlisted: the message about images that no annotation file names; empty: none.
        layout: whether the files count as a layout, see `Signs`; or a function that tells it.
    """

    def look(root: Path, _: Sequence[Evidence]) -> Signs:
        files = find(root)
        return Signs(files, layout(files) if callable(layout) else layout)

    def read(root: Path, *, verify_sizes: bool = True) -> Source:
        if not (files := find(root)):
            raise ValueError(f"{root} has no {lacks(root) if callable(lacks) else lacks}")
        folder = AnnotationFolder(root, files)
        every = list(records(folder))
        return assemble(
            name, root, every, folder.tree, names=folder.names, ids=folder.ids, unlisted=unlisted,
            notes=[*folder.notes, *folder.remarks.faults()], verify_sizes=verify_sizes,
        )  # fmt: skip

    return Reader(name, look, read, title, places)
