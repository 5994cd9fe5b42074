"""Divides a data set into train, val and test anew; identical and augmented copies of an image stay together."""

from __future__ import annotations

from dataclasses import dataclass, replace

from datamodules.images.identical import identical_files
from datamodules.index import AnnotationIndex, concatenate
from datamodules.index.source import Source
from datamodules.splits import Rows, divide, group_keys, grouped, joined


@dataclass(frozen=True)
class Division:
    """A data set that was divided.

    Attributes:
        source: the data set with its new splits.
        whole: all images, in the order that `rows` counts.
        rows: new split -> its rows of `whole`.
        groups: rows of each group of several images that were kept together, the largest first.
        copies: rows of each group of byte-identical files.
    """

    source: Source
    whole: AnnotationIndex
    rows: dict[str, Rows]
    groups: list[Rows]
    copies: list[Rows]


def divide_source(
    source: Source, shares: dict[str, float], seed: int, *, stratify: bool = False, group_by: str = "stem"
) -> Division:
    """Joins the splits that there are and divides them anew.

    Args:
        source: as read.
        shares: of the images, by split; train gets the rest. See `shares_of`.
        seed: of the drawing.
        stratify: give each split its share of every class.
        group_by: see `group_keys`; with `none`, byte-identical files are not kept together either.

    Raises:
        ValueError: the groups cannot be divided so.
    """
    indices = list(source.splits.values())
    whole = replace(indices[0] if len(indices) == 1 else concatenate(indices), faults=())
    copies = [] if group_by == "none" else identical_files(whole)
    rows = divide(whole, shares, seed, stratify=stratify, group_by=group_by, copies=copies)
    groups = joined(grouped(group_keys(whole.files.tolist(), group_by)), copies)
    kept = sorted((own for own in groups if len(own) > 1), key=len, reverse=True)
    new = replace(source, splits={name: whole.take(own) for name, own in rows.items()})
    return Division(new, whole, rows, kept, copies)


def shares_of(val: float, test: float) -> dict[str, float]:
    """Split -> share of the images; 0 makes no such split.

    Raises:
        ValueError: naming the options, if no such split can be made.
    """
    for option, share in (("--val", val), ("--test", test)):
        if not 0 <= share < 1:
            meant = f" ({share:g} % is {share / 100:g})" if 1 < share < 100 else ""
            raise ValueError(f"{option} {share:g} is no share of the images; give one from 0 to 1{meant}")
    if val + test == 0:
        raise ValueError("--val 0 with --test 0 divides nothing; give one of them a share, e.g. --val 0.2")
    if val + test >= 1:
        raise ValueError(
            f"--val {val:g} and --test {test:g} together are {val + test:g}, which leaves nothing to train on; "
            "their sum must be below 1"
        )
    return {name: share for name, share in (("val", val), ("test", test)) if share}
