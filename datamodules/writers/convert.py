"""Copies a data set into another format (images, boxes, classes and splits) and reports what it cannot hold."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

from PIL import ImageOps

from datamodules.formats.coco_panoptic import PanopticSource
from datamodules.formats.detect import FORMATS, OWN_IDS, Format, read
from datamodules.images.files import header_size
from datamodules.index import AnnotationIndex
from datamodules.index.source import Source
from datamodules.outputs import require_apart
from datamodules.progress import Meter
from datamodules.shards.reader import is_address, local_path
from datamodules.writers.base import LabelledImage, Writer, labelled_images
from datamodules.writers.coco import CocoWriter
from datamodules.writers.csv import CsvWriter
from datamodules.writers.names import new_names, renamed
from datamodules.writers.voc import VocWriter
from datamodules.writers.yolo import YoloWriter
from zoo.contract.pixels import open_image

Target = Literal["coco", "yolo", "voc", "csv"]
Images = Literal["copy", "link", "symlink"]
TARGETS: tuple[str, ...] = get_args(Target)

_WRITERS: dict[str, Callable[[Path, Mapping[int, str], list[str]], Writer]] = {
    "coco": CocoWriter, "yolo": YoloWriter, "voc": VocWriter, "csv": CsvWriter,
}  # fmt: skip
_KEEPS_IDS = frozenset({"coco"})
_KEEPS_FRAME = frozenset({"coco", "voc", "csv"})  # the annotations give the size, so the frame of the boxes


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        format: of the copy.
        splits: split -> (images, objects).
        losses: what the format cannot hold -> how many.
        left_out: faults of the source by which something was left out at reading and is not in the copy.
        renamed: file of the source -> its name in the copy, of those that could not keep it.
    """

    format: str
    splits: dict[str, tuple[int, int]]
    losses: dict[str, int]
    left_out: int
    renamed: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Skipped(NamedTuple):
    """Images that were left out and the objects on them, by split."""

    images: Counter[str]
    objects: Counter[str]


def convert(
    source: Source,
    target: Target,
    output: str | Path,
    images: Images = "copy",
    progress: Meter | None = None,
) -> Conversion:
    """Writes `source` as `target` into `output`, which appears only when it is complete and was read back.

    Args:
        source: as read.
        target: format of the copy.
        output: folder that does not exist or is empty.
        images: copied, or hard links or symbolic links to the files of the source.
        progress: called after each image.

    Raises:
        ValueError: if the output is not empty or lies inside the source, the source has no image, or what was
            written does not read back with the same counts.
        OSError: if a file cannot be read, linked or written; nothing is left behind.
    """
    place = Path(output).expanduser().absolute()
    require_empty(place)
    require_apart(source.root, place)
    if not any(len(index) for index in source.splits.values()):
        first = f"; the first fault: {source.faults[0]}" if source.faults else ""
        raise ValueError(f"{source.root} has no image that can be used{first}")
    place.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".part", dir=place.parent))
    try:
        writer = _WRITERS[target](part, source.classes, list(source.splits))
        names = new_names(source.splits, flat=writer.flat)
        skipped = _write(source, target, writer, names, images, progress)
        done = _read_back(source, target, part, writer, skipped)
        done = replace(done, renamed=renamed(source.splits, names))
        if place.exists():
            place.rmdir()
        part.chmod(0o755)  # a temporary folder is private to its user
        part.rename(place)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return done


def read_to_copy(folder: str, output: Path, to: str, images: str, format: str) -> Source:
    """Reads a data set that is to be copied, after everything else was checked, which is quick.

    Args:
        folder: the data set; shards also by their address.
        output: of the copy.
        to: format of the copy.
        images: how they are placed in it.
        format: of the data set, `auto` to detect it.

    Raises:
        ValueError: an unknown format or way to place images, an output with anything in it or inside the data set,
            or a data set that cannot be read.
    """
    for value, allowed, option in (
        (to, TARGETS, "--to"),
        (images, get_args(Images), "--images"),
        (format, ("auto", *FORMATS), "--format"),
    ):
        if value not in allowed:
            raise ValueError(f"{option} {value} is unknown; it is one of {', '.join(allowed)}")
    require_empty(output.expanduser().absolute())
    if not is_address(folder):
        require_apart(local_path(folder), output)
    return read(folder, cast(Format, format))


def require_empty(place: Path) -> None:
    """Refuses a folder with anything in it.

    Raises:
        ValueError: naming it.
    """
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ValueError(f"{place} exists and is not empty; nothing was written; give another --output")


def _write(
    source: Source,
    target: Target,
    writer: Writer,
    names: Mapping[str, list[str]],
    images: Images,
    progress: Meter | None,
) -> Skipped:
    """Writes all images under their new names; returns those that were left out."""
    total, done = sum(map(len, names.values())), 0
    skipped = Skipped(Counter(), Counter())
    for split, index in source.splits.items():
        for row, image in enumerate(labelled_images(index, names[split])):
            if target not in _KEEPS_FRAME and not _in_displayed_frame(index, row, image):
                writer.losses["images whose boxes ignore the photograph's EXIF rotation, left out"] += 1
                skipped.images[split] += 1
                skipped.objects[split] += len(image.objects)
            else:
                _place(index, row, writer.image_path(split, image.name), images)
                writer.add(split, image)
            done += 1
            if progress is not None:
                progress(done, total)
    writer.close()
    if isinstance(source, PanopticSource):
        writer.losses["masks of panoptic segments, and which classes are things"] = sum(
            index.num_objects for index in source.splits.values()
        )
    if target not in _KEEPS_IDS and source.format in OWN_IDS:
        writer.losses["ids of images, which are numbered anew"] = total
        writer.losses["ids of objects, which are numbered anew"] = sum(
            i.num_objects for i in source.splits.values()
        )
    return skipped


def _in_displayed_frame(index: AnnotationIndex, row: int, image: LabelledImage) -> bool:
    if index.store is None:
        return header_size(index.path(row))[0] == image.size
    with open_image(io.BytesIO(index.images.read(index.files[row]))) as opened:
        turned = ImageOps.exif_transpose(opened)
        return (turned.height, turned.width) == image.size


def _place(index: AnnotationIndex, row: int, path: Path, images: Images) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        raise ValueError(f"two images would be written to {path}; this is a fault of the converter")
    if index.store is not None:
        path.write_bytes(index.images.read(index.files[row]))
    elif images == "copy":
        shutil.copyfile(index.path(row), path)
    elif images == "symlink":
        path.symlink_to(index.path(row).resolve())
    else:
        os.link(index.path(row).resolve(), path)


def _read_back(source: Source, target: Target, part: Path, writer: Writer, skipped: Skipped) -> Conversion:
    copy = read(part, target, verify_sizes=False)
    counts: dict[str, tuple[int, int]] = {}
    for split, index in source.splits.items():
        images = len(index) - skipped.images[split]
        objects = index.num_objects - writer.dropped[split] - skipped.objects[split]
        found = copy.splits.get(split)
        counts[split] = (len(found), found.num_objects) if found is not None else (0, 0)
        if counts[split] != (images, objects):
            first = "; ".join(map(str, copy.faults[:3]))
            raise ValueError(
                f"{split} was written with {images} images and {objects} objects and reads back with "
                f"{counts[split][0]} and {counts[split][1]} ({first}); nothing is kept"
            )
    losses = {words: number for words, number in writer.losses.items() if number}
    return Conversion(target, counts, losses, sum(f.leaves_out for f in source.faults), {})
