"""Checks the annotations of a data set before a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.runs.console import counted

if TYPE_CHECKING:
    from datamodules.base import DetectionDataModule
    from datamodules.index import Fault
    from zoo.contract.preprocess import InputContract

_SHOWN = 5  # errors


def quick_check(data: DetectionDataModule, queries: int) -> list[Fault]:
    """The faults that the annotations of a data set show, errors first; no image is read.

    Raises:
        ValueError: if boxes are wrong for certain, unless the data module skips what is broken.
    """
    from datamodules.doctor import quick_faults
    from datamodules.doctor.statistics import measure, view_size
    from datamodules.doctor.tile_advice import tile_advice
    from datamodules.index import by_severity

    read = data.read()
    classes = dict(zip(read.label_map.source_ids, read.label_map.names, strict=True))
    size = view_size(seen_as(data.input))
    statistics = measure(read.splits, size, queries)
    tiles = tile_advice(read.splits, size)
    faults = sorted(quick_faults(read.splits, classes, statistics, read.format, tiles), key=by_severity)
    errors = [f for f in faults if f.severity == "error"]
    if errors and not data.skip_broken:
        shown = "\n".join(f"  {f}" for f in errors[:_SHOWN])
        raise ValueError(
            f"the data set has {counted(len(errors), 'object')} that would be learned wrong:\n{shown}\n"
            "Correct them (`zoo data check` lists all, and with --fix CLEAN it writes a copy without them), or train "
            "all the same: --data.skip_broken true"
        )
    return faults


def seen_as(contract: InputContract) -> str:
    """How images are resized, in the form of `zoo data check --image-size`."""
    first, second = contract.size
    whole = f"{first}x{second}" if contract.resize == "stretch" else f"{first}/{second}"
    if contract.tiles is None:
        return whole
    height, width = contract.tiles.size
    return f"{whole} tiles {height}x{width}"
