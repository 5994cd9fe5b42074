"""Tar shards with their index, as `zoo data shard` writes them; also at an address."""

from __future__ import annotations

from pathlib import Path

from datamodules.index.source import Source
from datamodules.reading.reader import Reader, laid_out
from datamodules.shards.files import FORMAT as MARK
from datamodules.shards.files import IMAGES, MANIFEST
from datamodules.shards.reader import open_shards


def read(root: Path | str, *, verify_sizes: bool = True) -> Source:
    """The splits of a folder of shards or of an address; sizes were verified when it was packed."""
    if isinstance(root, Path):
        refuse_missing_manifest(root)
    data = open_shards(str(root))
    return Source("shards", root, dict(data.manifest.classes), data.splits, tuple(data.manifest.faults))


def is_sharded(root: Path) -> bool:
    """Whether the folder has a manifest of shards, and not one of another format."""
    manifest = root / MANIFEST
    if not manifest.is_file():
        return False
    with open(manifest, "rb") as file:
        return MARK.encode() in file.read()


def refuse_missing_manifest(root: Path) -> None:
    """Refuses shards that were copied without the file that lists them.

    Raises:
        ValueError: naming it.
    """
    if (root / IMAGES).is_file() and not (root / MANIFEST).exists():
        raise ValueError(
            f"{root} has shards but {MANIFEST} is missing; copy it there from where `zoo data shard` wrote it"
        )


FORMAT = Reader(
    name="shards",
    look=laid_out(lambda root: [root / MANIFEST] if is_sharded(root) else []),
    read=read,
    title="Shards",
    places="manifest.json, 00000.tar, ... as `zoo data shard` writes them; also at an address",
)
