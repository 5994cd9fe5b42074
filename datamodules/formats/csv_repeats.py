"""Tables of one folder that repeat each other, such as one of all images beside those of the splits: read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.index import Fault, shown_path
from datamodules.reading.records import ImageRecord, Mark

Row = tuple[str, str, str, tuple[float, ...]]  # split, image, class, box


@dataclass
class Table:
    """A table as read.

    Attributes:
        file: the table.
        divided: whether its name or a column gives splits.
        records: (split, image) -> its objects.
        notes: notes about it.
    """

    file: Path
    divided: bool
    records: dict[tuple[str, str], ImageRecord] = field(default_factory=dict)
    notes: list[Fault] = field(default_factory=list)

    def rows(self, divided: bool) -> set[Row]:
        """Its rows; with their split if `divided`, else with an empty one."""
        return {
            (split if divided else "", _name(image), mark.name, _rounded(mark))
            for (split, image), record in self.records.items()
            for mark in record.marks or [Mark("", None)]
        }


def _name(image: str) -> str:
    return image.replace("\\", "/").rsplit("/", 1)[-1].casefold()


def _rounded(mark: Mark) -> tuple[float, ...]:
    return () if mark.box is None else tuple(round(v, 4) for v in mark.box)


def read_once(root: Path, tables: Sequence[Table]) -> tuple[list[Table], list[Fault]]:
    """The tables without those all of whose rows are in others too, and a note for each of these.

    Raises:
        ValueError: if a table of no split repeats images of tables of splits and has others of its own: the
            rest may be training or held out.
    """
    kept = list(tables)
    notes: list[Fault] = []
    if len(tables) < 2:
        return kept, notes
    for table in sorted(
        tables, key=lambda t: -sum(len(p.marks) for p in t.records.values())
    ):  # the whole first
        others = [other for other in kept if other is not table and (other.divided or not table.divided)]
        own = table.rows(table.divided)
        known = [other.rows(table.divided) for other in others]
        if others and own <= set().union(*known):
            kept.remove(table)
            names = [shown_path(o.file, root) for o, rows in zip(others, known, strict=True) if rows & own]
            message = f"its {len(own)} rows are in {' and '.join(names)} too; not read again"
            notes.append(Fault("note", "repeated_annotations", shown_path(table.file, root), None, message))
        elif not table.divided and (split := [other for other in others if other.divided]):
            _refuse_overlap(root, table, split)
    return kept, notes


def _refuse_overlap(root: Path, table: Table, others: Sequence[Table]) -> None:
    listed = {_name(image) for other in others for _, image in other.records}
    own = {_name(image) for _, image in table.records}
    if own & listed:
        raise ValueError(
            f"{root}: {shown_path(table.file, root)} has {len(own & listed)} images that are also in "
            f"{' and '.join(shown_path(o.file, root) for o in others)}, and {len(own - listed)} others whose split is "
            "not known: move it out of the folder, or give it a column split"
        )
