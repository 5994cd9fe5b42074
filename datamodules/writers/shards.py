"""Packs a folder into tar shards: read, decoded once, packed, and read back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datamodules.formats.detect import read
from datamodules.images.decodable import corrupt_images, without
from datamodules.outputs import require_apart
from datamodules.progress import Meter, image_bar
from datamodules.shards.cache import parse_size
from datamodules.shards.files import ShardManifest
from datamodules.shards.writer import pack
from datamodules.summary import counted

_FAULTS_SHOWN = 5


@dataclass(frozen=True)
class Packed:
    """Shards that were written.

    Attributes:
        folder: of the shards, absolute.
        manifest: as it was written there.
        errors: number of errors in the data, by which images and objects were left out.
        undecodable: images that were left out with all their objects.
    """

    folder: Path
    manifest: ShardManifest
    errors: int
    undecodable: list[str]


def pack_folder(
    folder: Path,
    output: Path,
    *,
    size: str = "256M",
    format: Any = "auto",
    skip_broken: bool = False,
    bar: Callable[[str], AbstractContextManager[Meter]] = image_bar,
) -> Packed:
    """Reads a data set, decodes every image, packs it and reads the shards back.

    Args:
        folder: the data set.
        output: new folder of the shards.
        size: of one shard, e.g. `256M`.
        format: of the data set, `auto` to detect it.
        skip_broken: leave out images and objects that are at fault.
        bar: makes the meters of `decode` and of `pack and verify`.

    Raises:
        ValueError: the data has errors or images that cannot be decoded, and `skip_broken` is not set; or
            `output` exists or lies inside the data set.
    """
    shard_size = parse_size(size, "--size")
    target = output.expanduser().absolute()
    if target.exists():  # before the reading, which may take minutes
        raise ValueError(f"{output} exists; give a new folder, or remove it first")
    root = folder.expanduser().resolve()
    require_apart(root, target)
    source = read(root, format)
    errors = [fault for fault in source.faults if fault.severity == "error"]
    if errors and not skip_broken:
        shown = "\n".join(f"  {fault}" for fault in errors[:_FAULTS_SHOWN])
        raise ValueError(
            f"the data set has {counted(len(errors), 'error')}, the first:\n{shown}\nCorrect them (`zoo data check "
            "DIR` lists all), or leave the images and objects at fault out with --skip-broken"
        )
    with bar("decode") as progress:
        corrupt = corrupt_images(source.splits, progress)
    images = list(dict.fromkeys(fault.file for faults in corrupt.values() for fault in faults.values()))
    if images and not skip_broken:
        raise ValueError(
            f"{counted(len(images), 'image')} cannot be decoded: {some_of(images)}\n"
            "Replace them (`zoo data check DIR` says why of each), or leave them and their objects out with "
            "--skip-broken"
        )
    with bar("pack and verify") as progress:
        manifest = pack(replace(source, splits=without(source.splits, corrupt)), target, shard_size, progress)
    return Packed(target, manifest, len(errors), images)


def some_of(names: list[str]) -> str:
    """The first names and how many more there are."""
    more = len(names) - _FAULTS_SHOWN
    return ", ".join(names[:_FAULTS_SHOWN]) + (f" and {more} more" if more > 0 else "")
