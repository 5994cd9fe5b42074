"""`zoo compare`: which of two models is better on the same images, and where they disagree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.report.given import Given
from zoo.report.versus import write_comparison
from zoo.runs.console import Console, Silent
from zoo.runs.evaluate import Split
from zoo.runs.reports.of_model import of_model, of_predictions, refuse_split
from zoo.runs.reports.scores_folder import scores_folder


def compare(
    first: str,
    second: str,
    data: str | Path,
    *,
    split: Split = "val",
    skip_broken: bool = False,
    output: Path | None = None,
    registry: str | Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Scores two models on the same images and writes the page of their differences.

    Args:
        first: name in the registry, checkpoint, run folder or exported file; or COCO results, a .json file.
        second: likewise; differences are its scores less those of the first.
        data: folder or address.
        split: `val` or `test`.
        skip_broken: images and objects at fault are left out; else they are errors.
        output: folder of compare.html and compare.json; None: mlruns/scores/FIRST.and.SECOND.SPLIT.
        registry: folder; ZOO_REGISTRY or ./mlruns/registry by default.
        console: prints the verdict; None: on stdout.

    Returns:
        what compare.json holds.

    Raises:
        ValueError, OSError: a model or the data cannot be read, or do not fit.
    """
    console = console or Console()
    refuse_split(split)
    ours, theirs = (_side(name, data, split, registry, console, skip_broken) for name in (first, second))
    if output is None:
        output = scores_folder([ours.model, theirs.model], split)
    written = write_comparison(ours, theirs, output)
    for sentence in written.numbers["verdict"]:
        console.say(sentence)
    console.say(f"report      {written.page}")
    console.say(f"numbers     {written.file}")
    return written.numbers


def _side(
    name: str,
    data: str | Path,
    split: Split,
    registry: str | Path | None,
    console: Console,
    skip_broken: bool,
) -> Given:
    console.say(f"evaluating  {name}")
    if name.endswith(".json"):
        return of_predictions(Path(name), data, split, None, Silent(), look=False, skip_broken=skip_broken)
    return of_model(name, data, split, None, registry, Silent(), look=False, skip_broken=skip_broken)
