"""`zoo data shard`: packs a data set into tar shards."""

from __future__ import annotations

from pathlib import Path

from zoo.runs.console import Console, counted, image_bar, is_rank_zero

_FAULTS_SHOWN = 5


def shard(folder: Path, output: Path, size: str, format: str, skip_broken: bool, console: Console) -> None:
    """Reads, packs, verifies, and says how to train on the result.

    Raises:
        ValueError: the data has errors or images that cannot be decoded, and `skip_broken` is not set; or
            `output` exists or lies inside the data set.
    """
    from datamodules.formats.detect import read
    from datamodules.images.decodable import corrupt_images, without
    from datamodules.outputs import require_apart
    from datamodules.shards.cache import parse_size
    from datamodules.shards.writer import pack

    shard_size = parse_size(size, "--size")
    target = output.expanduser().absolute()
    if target.exists():  # before the reading, which may take minutes
        raise ValueError(f"{output} exists; give a new folder, or remove it first")
    root = folder.expanduser().resolve()
    require_apart(root, target)
    source = read(root, format)  # type: ignore[arg-type]
    errors = [fault for fault in source.faults if fault.severity == "error"]
    if errors and not skip_broken:
        shown = "\n".join(f"  {fault}" for fault in errors[:_FAULTS_SHOWN])
        raise ValueError(
            f"the data set has {counted(len(errors), 'error')}, the first:\n{shown}\nCorrect them (`zoo data check "
            "DIR` lists all), or leave the images and objects at fault out with --skip-broken"
        )
    watched = is_rank_zero() and not console.as_json
    with image_bar("decode", shown=watched, leave=True) as bar:
        corrupt = corrupt_images(source.splits, bar)
    images = list(dict.fromkeys(fault.file for faults in corrupt.values() for fault in faults.values()))
    if images and not skip_broken:
        raise ValueError(
            f"{counted(len(images), 'image')} cannot be decoded: {_named(images)}\n"
            "Replace them (`zoo data check DIR` says why of each), or leave them and their objects out with "
            "--skip-broken"
        )
    with image_bar("pack and verify", shown=watched, leave=True) as bar:
        manifest = pack(without(source, corrupt), target, shard_size, bar)
    size_in_all = sum(entry.size for entry in manifest.shards)
    console.result(
        {
            "folder": str(target),
            "format": manifest.source_format,
            "splits": {name: split.images for name, split in manifest.splits.items()},
            "left_out_errors": len(errors),
            "left_out_undecodable": images,
            "shards": len(manifest.shards),
            "bytes": size_in_all,
        }
    )
    if not console.as_json:
        counts = ", ".join(
            f"{counted(split.images, 'image')} in {name}" for name, split in manifest.splits.items()
        )
        console.say(
            f"{counts}; {counted(len(manifest.shards), 'shard')}, {size_in_all / 2**20:.1f} MiB, read back whole"
        )
        if errors:
            console.say(
                f"{counted(len(errors), 'error')} of the data: images and objects at fault were left out"
            )
        if images:
            console.say(
                f"{counted(len(images), 'image')} that cannot be decoded: left out, with all objects: {_named(images)}"
            )
        console.say(
            f"train on it with --data {output}, or --data.root with its address (s3://, https://, ...)"
        )


def _named(images: list[str]) -> str:
    more = len(images) - _FAULTS_SHOWN
    return ", ".join(images[:_FAULTS_SHOWN]) + (f" and {more} more" if more > 0 else "")
