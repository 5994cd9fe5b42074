"""`zoo data shard`: packs a data set into tar shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.cli.console import Console, is_rank_zero

_FAULTS_SHOWN = 5


def shard(folder: Path, output: Path, size: str, format: str, skip_broken: bool, console: Console) -> None:
    """Reads, packs, verifies, and says how to train on the result.

    Raises:
        ValueError: the data has errors and `skip_broken` is not set, or `output` exists.
    """
    from datamodules.formats.detect import read
    from datamodules.shard_cache import parse_size
    from datamodules.shard_writer import pack

    shard_size = parse_size(size, "--size")
    target = output.expanduser().absolute()
    if target.exists():  # before the reading, which may take minutes
        raise ValueError(f"{output} exists; give a new folder, or remove it first")
    source = read(folder.expanduser().resolve(), format)  # type: ignore[arg-type]
    errors = [fault for fault in source.faults if fault.severity == "error"]
    if errors and not skip_broken:
        shown = "\n".join(f"  {fault}" for fault in errors[:_FAULTS_SHOWN])
        raise ValueError(
            f"the data set has {len(errors)} errors, the first of them:\n{shown}\nCorrect them (`zoo data check "
            "DIR` lists all), or leave the images and objects at fault out with --skip-broken"
        )
    with _Bar(console) as bar:
        manifest = pack(source, target, shard_size, bar)
    size_in_all = sum(entry.size for entry in manifest.shards)
    console.result(
        {
            "folder": str(target),
            "format": manifest.source_format,
            "splits": {name: split.images for name, split in manifest.splits.items()},
            "left_out_errors": len(errors),
            "shards": len(manifest.shards),
            "bytes": size_in_all,
        }
    )
    if not console.as_json:
        counts = ", ".join(f"{split.images} images in {name}" for name, split in manifest.splits.items())
        console.say(
            f"{counts}; {len(manifest.shards)} shards, {size_in_all / 2**20:.1f} MiB, read back whole"
        )
        if errors:
            console.say(f"{len(errors)} errors of the data were left out")
        console.say(
            f"train on it with --data {output}, or --data.root with its address (s3://, https://, ...)"
        )


class _Bar:
    """A progress bar of images on stderr, where that is a terminal; packing first, then verifying."""

    def __init__(self, console: Console) -> None:
        self._on = is_rank_zero() and not console.as_json
        self._bar: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int, total: int) -> None:
        if not self._on:
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=2 * total, unit="image", desc="pack and verify", disable=None)
        self._bar.update(1)
