"""`zoo data show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli.options import DataFormat, DataSet, Json
from zoo.runs import signals
from zoo.runs.console import Console, quoted


def show(
    folder: DataSet,
    split: Annotated[str | None, typer.Option("--split", help="Default: the first with images.")] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Images.")] = 16,
    output: Annotated[
        Path | None, typer.Option("--output", help="The picture; default mlruns/pictures/FOLDER.png.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the choice of images.")] = 0,
    format: DataFormat = "auto",
    as_json: Json = False,
) -> None:
    """Draw images with their boxes as they were understood: one look tells whether they sit right."""
    from datamodules.shards.reader import place_of
    from zoo.runs.show import show as run
    from zoo.storage.durable import written

    console = Console(as_json)
    known: Any = format  # refused by the reader if it is unknown
    if output is None:
        output = Path("mlruns", "pictures", f"{place_of(folder).rstrip('/').rpartition('/')[2]}.png")
    with signals.leaving_nothing(output):
        shown = run(folder, split=split, count=count, seed=seed, format=known)
        for reason in shown.broken.values():
            console.say(reason)
        output.parent.mkdir(parents=True, exist_ok=True)
        with written(output):
            shown.picture.save(output)
    console.result({
        "output": str(output), "format": shown.format, "split": shown.split, "images": shown.files,
        "broken": list(shown.broken),
    })  # fmt: skip
    number = len(shown.files)
    console.say(f"{number} of {shown.total} images of {shown.split} ({shown.format}) in {output}")
    if shown.broken:
        console.say(
            f"{len(shown.broken)} of them cannot be decoded and are grey; `zoo data check {quoted(folder)}` lists "
            "every such image"
        )
