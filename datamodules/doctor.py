"""The check behind `zoo data check DIR`: reads everything, decodes every image, trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from datamodules.formats.detect import Format, read
from datamodules.formats.source import Source
from datamodules.images import open_image
from datamodules.index import Fault, shown_path
from datamodules.summary import DataSummary, summarize
from zoo.labels import LabelMap

Progress = Callable[[int, int], None]  # (images done, images in all)


def check(
    root: str | Path, decode_images: bool = True, progress: Progress | None = None, format: Format = "auto"
) -> DataSummary:
    """Format, splits, classes and faults of a folder.

    Args:
        root: folder of the data set.
        decode_images: also decode every image, which finds damaged files.
        progress: called after each decoded image.
        format: `auto` detects it.

    Raises:
        ValueError: if the layout is unknown or an annotation file cannot be parsed at all.
    """
    folder = Path(root).expanduser().resolve()
    source = read(folder, format)
    faults = source.faults
    if decode_images:
        faults += _undecodable(folder, source, progress)
    label_map = source.label_map() if source.classes else LabelMap.contiguous([], [])
    if not source.classes:
        faults.append(
            Fault("error", "no_class", ".", None, "the data set has no class; annotate at least one object")
        )
    faults.sort(key=lambda f: f.severity != "error")
    return summarize(source.format, source.splits, label_map, faults)


def _undecodable(root: Path, source: Source, progress: Progress | None) -> Iterable[Fault]:
    total = sum(len(index) for index in source.splits.values())
    done = 0
    faults = []
    for index in source.splits.values():
        for row in range(len(index)):
            path, image_id = index.path(row), int(index.image_ids[row])
            try:
                open_image(path, image_id, index.size(row))
            except ValueError as error:
                faults.append(Fault("error", "corrupt_image", shown_path(path, root), image_id, str(error)))
            done += 1
            if progress is not None:
                progress(done, total)
    return faults
