"""`zoo data show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli.options import Augmentations, DataFormat, DataSet, Json
from zoo.runs import signals
from zoo.runs.console import Console, quoted


def show(
    context: typer.Context,
    folder: DataSet,
    split: Annotated[str | None, typer.Option("--split", help="Default: the first with images.")] = None,
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="Images; default 16, or 4 with --augmented.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="The picture; default mlruns/pictures/FOLDER.png.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the choice of images; with --augmented, of the training.")
    ] = None,
    format: DataFormat = "auto",
    augmented: Annotated[
        bool,
        typer.Option("--augmented", help="Training images as the network will see them, in several epochs."),
    ] = False,
    config: Annotated[
        list[str] | None,
        typer.Option("--config", "-c", help="With --augmented: the recipe; default rt_detr/finetune."),
    ] = None,
    augmentations: Augmentations = None,
    epoch: Annotated[int, typer.Option("--epoch", min=0, help="With --augmented: the first one.")] = 0,
    epochs: Annotated[int, typer.Option("--epochs", min=1, max=16, help="With --augmented: how many.")] = 4,
    as_json: Json = False,
) -> None:
    """Draw images with their boxes as they were understood: one look tells whether they sit right.

    With --augmented any key of the recipe may be given too, as in --data.min_box_side 4.
    """
    from datamodules.shards.reader import place_of
    from zoo.runs.show import show as run
    from zoo.storage.durable import written

    console = Console(as_json)
    known: Any = format  # refused by the reader if it is unknown
    if output is None:
        output = Path("mlruns", "pictures", f"{place_of(folder).rstrip('/').rpartition('/')[2]}.png")
    if augmented:
        given: dict[str, Any] = {"count": count or 4, "epoch": epoch, "epochs": epochs, "seed": seed,
                                 "overrides": context.obj}  # fmt: skip
        _show_augmented(console, folder, output, config=config, augmentations=augmentations, **given)
        return
    if config or augmentations or context.obj:
        raise ValueError(
            "--config, --augmentations and keys of the recipe say how training images are made; add --augmented"
        )
    with signals.leaving_nothing(output):
        shown = run(folder, split=split, count=count or 16, seed=seed or 0, format=known)
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


def _show_augmented(
    console: Console, folder: str, output: Path, config: list[str] | None, **given: Any
) -> None:
    from zoo.runs.show_augmented import DEFAULT_RECIPE, show_augmented
    from zoo.storage.durable import written

    with signals.leaving_nothing(output):
        shown = show_augmented(folder, config=config or DEFAULT_RECIPE, **given)
        output.parent.mkdir(parents=True, exist_ok=True)
        with written(output):
            shown.picture.save(output)
    first, last = shown.epochs
    console.result(
        {"output": str(output), "images": shown.files, "epochs": [first, last], "notes": shown.notes}
    )
    for note in shown.notes:
        console.say(note)
    console.say(
        f"{len(shown.files)} of {shown.total} training images as the network sees them in epochs {first} to {last}: "
        f"{output}"
    )
