"""`zoo data shard`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.options import Json
from zoo.runs import signals
from zoo.runs.console import Console, counted, is_rank_zero


def shard(
    folder: Path,
    output: Annotated[Path, typer.Option("--output", help="New folder of the shards.")],
    size: Annotated[str, typer.Option("--size", help="Of one shard, e.g. 256M.")] = "256M",
    format: Annotated[
        str, typer.Option("--format", help="auto, or the format that the folder has.")
    ] = "auto",
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out images and objects that are at fault.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Pack a data set into tar shards with an index, to train from a disk or an address (s3, http, gs)."""
    from datamodules.progress import image_bar
    from datamodules.writers.shards import pack_folder, some_of

    console = Console(as_json)
    bar = partial(image_bar, shown=is_rank_zero() and not as_json, leave=True)
    with signals.leaving_nothing(output):
        packed = pack_folder(folder, output, size=size, format=format, skip_broken=skip_broken, bar=bar)
    manifest, images = packed.manifest, packed.undecodable
    bytes_in_all = sum(entry.size for entry in manifest.shards)
    counts = {name: split.images for name, split in manifest.splits.items()}
    console.result({
        "folder": str(packed.folder), "format": manifest.source_format, "splits": counts,
        "left_out_errors": packed.errors, "left_out_undecodable": images, "shards": len(manifest.shards),
        "bytes": bytes_in_all,
    })  # fmt: skip
    if as_json:
        return
    words = ", ".join(f"{counted(number, 'image')} in {name}" for name, number in counts.items())
    console.say(
        f"{words}; {counted(len(manifest.shards), 'shard')}, {bytes_in_all / 2**20:.1f} MiB, read back whole"
    )
    if packed.errors:
        console.say(
            f"{counted(packed.errors, 'error')} of the data: images and objects at fault were left out"
        )
    if images:
        console.say(
            f"{counted(len(images), 'image')} that cannot be decoded: left out, with all objects: {some_of(images)}"
        )
    console.say(f"train on it with --data {output}, or --data.root with its address (s3://, https://, ...)")
