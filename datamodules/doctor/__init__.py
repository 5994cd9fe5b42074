"""The check behind `zoo data check DIR`: reads all annotations and decodes every image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.doctor.boxes import box_faults, class_faults, limit_faults
from datamodules.doctor.duplicates import Pair, augmented_leaks, leak_faults, leaks, twins
from datamodules.doctor.image_files import SplitProbes, depth_faults, file_faults, probe_split, shape_faults
from datamodules.doctor.ownership import reassigned
from datamodules.doctor.statistics import Statistics, ViewSize, measure, statistics_faults, view_size
from datamodules.doctor.strays import stray_faults, unread_folders
from datamodules.doctor.tile_advice import TileAdvice, tile_advice
from datamodules.formats.detect import OWN_IDS, Format, read
from datamodules.images.decodable import FEW_IMAGES, usable_cores
from datamodules.index import AnnotationIndex, Fault, by_severity
from datamodules.index.source import Source
from datamodules.progress import Meter
from datamodules.shards.reader import is_address, place_of
from datamodules.summary import DataSummary, summarize
from zoo.contract.labels import LabelMap

TOO_FEW = "too_few_images"
NO_TRAIN = "no_train_split"
QUERIES = 300  # of RT-DETR and Deformable DETR; DETR has 100
IMAGE_SIZE = "640"  # RT-DETR


@dataclass(frozen=True)
class Examination:
    """Everything a check found, for the report and for the cleaned copy."""

    source: Source
    faults: list[Fault]
    statistics: Statistics
    view: ViewSize  # how the model that is to be trained resizes images
    probes: dict[str, SplitProbes] = field(default_factory=dict)  # split -> its images; empty if not decoded
    pairs: dict[tuple[str, str], list[Pair]] = field(default_factory=dict)  # (earlier, later split)
    tiles: TileAdvice | None = None  # that would show many small objects; None where they would not

    @property
    def summary(self) -> DataSummary:
        """Format, splits, classes, faults."""
        source = self.source
        label_map = source.label_map() if source.classes else LabelMap.contiguous([], [])
        return summarize(source.format, source.splits, label_map, self.faults)


def check(
    root: str | Path, decode_images: bool = True, progress: Meter | None = None, format: Format = "auto"
) -> DataSummary:
    """Format, splits, classes and faults of a folder: `examine` with its defaults."""
    return examine(root, quick=not decode_images, progress=progress, format=format).summary


def examine(
    root: str | Path,
    *,
    quick: bool = False,
    queries: int = QUERIES,
    image_size: str = IMAGE_SIZE,
    workers: int | None = None,
    progress: Meter | None = None,
    format: Format = "auto",
) -> Examination:
    """Reads a folder and checks everything in it.

    Args:
        root: folder of the data set; shards also by their address.
        quick: headers and annotations only; no image is decoded, so damaged files and copies are not found.
        queries: of the model that is to be trained.
        image_size: how it resizes images, see `statistics.view_size`.
        workers: processes that decode; None: as many as there are cores, 0 or 1: this process alone.
        progress: called after each decoded image.
        format: `auto` detects it.

    Raises:
        ValueError: if the layout is unknown, an annotation file cannot be parsed at all, or `queries`,
            `workers` or `image_size` is out of range.
    """
    if queries < 1:
        raise ValueError(f"queries is {queries}; a model has at least 1")
    if workers is not None and workers < 0:
        raise ValueError(f"workers is {workers}; it must be 0 or more (0 or 1: no process but this one)")
    view = view_size(image_size)
    place = place_of(root)
    source = read(place if is_address(place) else Path(place), format)
    faults = reassigned(source.faults, source.splits)
    statistics = measure(source.splits, view, queries)
    probes: dict[str, SplitProbes] = {}
    pairs: dict[tuple[str, str], list[Pair]] = {}
    tiles = tile_advice(source.splits, view)
    faults += quick_faults(source.splits, source.classes, statistics, source.format, tiles)
    if not quick:
        probes = probe_splits(source.splits, workers, progress)
        found, pairs = image_faults(source.splits, probes)
        faults += found
    faults += stray_faults(source, faults)
    unread = list(unread_folders(source, faults))
    faults += [*unread, *no_train(source.splits, unread), *too_few(source.splits)]
    return Examination(source, sorted(faults, key=by_severity), statistics, view, probes, pairs, tiles)


def quick_faults(
    splits: Mapping[str, AnnotationIndex], classes: Mapping[int, str], statistics: Statistics, format: str,
    tiles: TileAdvice | None = None,
) -> Iterator[Fault]:  # fmt: skip
    """Faults that the annotations alone show: boxes, classes, sizes; with `tiles` also that these would help."""
    if not classes:
        yield Fault("error", "no_class", ".", None, "the data set has no class; annotate at least one object")
    for index in splits.values():
        yield from box_faults(index, statistics.queries, classes, format in OWN_IDS)
        yield from shape_faults(index)
    yield from limit_faults(splits, classes)
    yield from class_faults(splits, classes)
    yield from augmented_leaks(splits)
    yield from statistics_faults(statistics)
    if tiles is not None:
        yield tiles.fault(statistics.image_size)


def no_train(splits: Mapping[str, AnnotationIndex], unread: Iterable[Fault] = ()) -> Iterator[Fault]:
    """An error for a data set without a train split, with the folders of images that are not read."""
    if "train" in splits:
        return
    there = ", ".join(f"{name} ({len(index)} images)" for name, index in splits.items()) or "no split at all"
    places = ", ".join(fault.file for fault in unread)
    left = f"; images that are not read lie in {places}" if places else ""
    yield Fault(
        "error", NO_TRAIN, ".", None,
        f"there is no train split to learn from; there is {there}{left}; "
        "call a folder, a list or an annotation file train, or use the set to score a model: zoo validate MODEL "
        "--data DIR",
    )  # fmt: skip


def too_few(splits: Mapping[str, AnnotationIndex]) -> Iterator[Fault]:
    """An error for a train split of one image that is the only split: no image can be held out to score on."""
    if any(len(index) for name, index in splits.items() if name in ("val", "test")) or "train" not in splits:
        return
    # augmented copies of one photograph, which share the name before `.rf.`, are held out together
    photographs = {file.split(".rf.")[0] for file in splits["train"].files.tolist()}
    if len(photographs) < 2:
        yield Fault(
            "warning", TOO_FEW, ".", None,
            f"the data set has {len(photographs)} image and no other split, so none can be held out to score on and "
            "zoo finetune refuses it; add images, or a val split",
        )  # fmt: skip


def image_faults(
    splits: Mapping[str, AnnotationIndex], probes: Mapping[str, SplitProbes]
) -> tuple[list[Fault], dict[tuple[str, str], list[Pair]]]:
    """Faults that the pixels show: damage, odd files, copies; and the pairs of images that are in two splits."""
    pairs = _pairs(probes)
    faults = [*depth_faults(splits, probes), *leak_faults(splits, pairs)]
    for split, seen in probes.items():
        faults += [*file_faults(splits[split], seen), *twins(splits[split], seen)]
    return faults, pairs


def probe_splits(
    splits: Mapping[str, AnnotationIndex], workers: int | None, progress: Meter | None
) -> dict[str, SplitProbes]:
    """Decodes every image; see `examine` for the arguments."""
    total, done = sum(len(index) for index in splits.values()), 0
    number = usable_cores() if workers is None else workers

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    given = workers is not None  # then it is taken as it is
    return {
        name: probe_split(index, number if given else min(number, len(index) // FEW_IMAGES), step)
        for name, index in splits.items()
    }


def _pairs(probes: Mapping[str, SplitProbes]) -> dict[tuple[str, str], list[Pair]]:
    order: Iterable[str] = [s for s in ("train", "val", "test") if s in probes]
    names = [*order, *(s for s in probes if s not in order)]
    return {
        (first, second): leaks(probes[first], probes[second])
        for k, first in enumerate(names)
        for second in names[k + 1 :]
    }
