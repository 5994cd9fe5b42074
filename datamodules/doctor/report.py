"""The page of a data check: one HTML file that holds its pictures."""

from __future__ import annotations

import os
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from datamodules.doctor import Examination
from datamodules.doctor.gallery import leaked, worst
from datamodules.doctor.plots import plots
from datamodules.doctor.statistics import STRIDES
from datamodules.index import Fault, by_kind

_SHOWN = 20  # examples of a kind


def write_report(found: Examination, file: Path) -> None:
    """Writes the page; it holds its pictures and needs no network.

    Raises:
        OSError: if it cannot be written.
    """
    # everything from the data set is escaped
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("report.html.jinja").render(
        name=os.path.basename(str(found.source.root).rstrip("/")) or str(found.source.root),
        root=str(found.source.root),
        format=found.source.format,
        statistics=found.statistics,
        images=sum(len(index) for index in found.source.splits.values()),
        strides=STRIDES,
        tiles=_tiles(found),
        verdict=_verdict(found),
        kinds=by_kind(found.faults),
        shown=_SHOWN,
        example=_example,
        plots=plots(found),
        pairs=leaked(found),
        cards=worst(found),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    # a file name that is no UTF-8 is shown with a question mark
    file.write_bytes(page.encode("utf-8", "replace"))


def _tiles(found: Examination) -> list[tuple[str, str, str]]:
    """(what, number, colour) of the large numbers at the top."""
    splits = found.statistics.splits.values()
    crowds = sum(split.crowd for split in splits)
    counts = {s: sum(f.severity == s for f in found.faults) for s in ("error", "warning", "note")}
    return [
        ("images", f"{sum(split.images for split in splits):,}", ""),
        ("objects", f"{sum(split.objects for split in splits):,}", ""),
        *([("crowds", f"{crowds:,}", "note")] if crowds else []),
        ("classes", f"{len(found.source.classes):,}", ""),
        ("errors", f"{counts['error']:,}", "error" if counts["error"] else "fine"),
        ("warnings", f"{counts['warning']:,}", "warning" if counts["warning"] else "fine"),
        ("notes", f"{counts['note']:,}", "note"),
    ]


def _verdict(found: Examination) -> str:
    seen = "" if found.probes else " Images were not decoded (--quick): damage and copies stay unseen."
    if any(f.severity == "error" for f in found.faults):
        return (
            f"Errors would stop or spoil a training: correct them, or write a cleaned copy with --fix.{seen}"
        )
    if any(f.severity == "warning" for f in found.faults):
        return f"Ready to train; the warnings are worth a look.{seen}"
    return f"Ready to train.{seen}"


def _example(fault: Fault) -> str:
    return fault.message if fault.file == "." else f"{fault.where}: {fault.message}"
