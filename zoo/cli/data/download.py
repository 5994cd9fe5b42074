"""`zoo data download`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.options import Json
from zoo.runs.console import Console, quoted


def download(
    name: Annotated[str, typer.Argument(help="coco or objects365.")],
    output: Annotated[Path, typer.Option("--output", help="Folder of the data set; archives in .downloads.")],
    parts: Annotated[
        str | None,
        typer.Option(
            "--parts", help="Of train,val,annotations; coco also has panoptic. Default: those three."
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source", help="Mirror with the same files: the beginning of its addresses, or a folder."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=16, help="Files at a time.")] = 4,
    remove_archives: Annotated[
        bool, typer.Option("--remove-archives", help="Remove each archive when it is unpacked.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fetch a published data set: resumed, checked, unpacked; running it again does what is left."""
    from datamodules.published.download import download as run

    console = Console(as_json)
    chosen = None if parts is None else [part.strip() for part in parts.split(",")]
    done = run(
        name, output, parts=chosen, source=source, jobs=jobs, remove_archives=remove_archives, say=console.say
    )
    following = [
        f"zoo data check {quoted(done.output)}",
        f"zoo fit --config {done.publication.recipe} --data.root {quoted(done.output)}",
    ]
    for line in ("next:", *following):
        console.say(line)
    console.result({
        "name": done.publication.name, "output": str(done.output), "fetched": done.fetched, "files": done.files,
        "licence": done.publication.licence, "next": following,
    })  # fmt: skip
