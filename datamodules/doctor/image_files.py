"""Faults of the image files themselves, from what `datamodules.images.probe` found in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from datamodules.images.decodable import corrupt_image
from datamodules.images.probe import GRID, Probe, probe_all
from datamodules.index import AnnotationIndex, Fault, Severity
from datamodules.summary import counted
from zoo.contract.pixels import Reading

_SMALL = 8  # pixels: below this a side holds less than one cell of the finest feature map
_DARK = 32  # levels of 255
_FEW_LEVELS = 16
_LOST = 1e-3  # share of values
_ONE_CHANNEL = ", and for a network of one channel"
INPUT_SCALE = "input_scale"  # kind of the note that says what a model's input has to say
_LONG = 10.0  # longer over shorter side
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".mpo"),  # a JPEG with a second image after it, from phones
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
}
_Finding = tuple[Severity, str, str]  # severity, kind, message
_SIDEWAYS = frozenset({5, 6, 7, 8})


@dataclass(frozen=True)
class SplitProbes:
    """What the probes of all images of one split found, in columns: small enough for millions of images."""

    digests: NDArray[np.void]  # [N] 16 bytes of the file's bytes each
    thumbnails: NDArray[np.uint8]  # [N, GRID, GRID] grey levels as displayed; 0 where there are no pixels
    odd: Mapping[int, Probe]  # row -> probe, only of files that are no plain upright RGB JPEG or PNG


def probe_split(index: AnnotationIndex, workers: int, progress: Callable[[], None] | None) -> SplitProbes:
    """Decodes every image of a split."""
    number = len(index)
    digests = np.zeros(number, dtype="V16")
    thumbnails = np.zeros((number, GRID, GRID), dtype=np.uint8)
    odd = {}
    for row, probe in probe_all(index.images, index.files.tolist(), workers):
        digests[row] = np.void(probe.digest.ljust(16, b"\0"))
        if probe.thumbnail:
            thumbnails[row] = np.frombuffer(probe.thumbnail, dtype=np.uint8).reshape(GRID, GRID)
        if not _plain(probe, str(index.files[row])):
            odd[row] = probe._replace(thumbnail=b"")
        if progress is not None:
            progress()
    return SplitProbes(digests, thumbnails, odd)


def _plain(probe: Probe, name: str) -> bool:
    return (
        not (probe.error or probe.damage or probe.transparent)
        and probe.format in ("JPEG", "PNG")
        and probe.mode == "RGB"
        and (probe.orientation, probe.frames) == (1, 1)
        and not any(_levels(probe))
        and _suffix_fits(probe, name)
    )


def _suffix_fits(probe: Probe, name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in _SUFFIXES.get(probe.format, ())


def file_faults(index: AnnotationIndex, probes: SplitProbes) -> Iterator[Fault]:
    """What is odd or wrong about the files of a split."""
    for row, probe in probes.odd.items():
        if probe.error:
            yield corrupt_image(str(index.files[row]), int(index.image_ids[row]), probe.error)
            continue
        for severity, kind, message in _judged(probe, str(index.files[row]), index.size(row)):
            yield Fault(severity, kind, str(index.files[row]), int(index.image_ids[row]), message)


def _judged(probe: Probe, name: str, frame: tuple[int, int]) -> Iterable[_Finding]:
    return [*_damaged(probe), *_turned(probe, frame), *_levels(probe), *_encoded(probe, name)]


def _damaged(probe: Probe) -> Iterable[_Finding]:
    if probe.damage:
        yield (
            "warning",
            "damaged_image",
            f"it decodes, but the decoder says {probe.damage!r}: part of the image may be garbage; look at "
            "it and replace it",
        )


def _turned(probe: Probe, frame: tuple[int, int]) -> Iterable[_Finding]:
    if probe.orientation not in range(2, 9):
        return
    if probe.orientation not in _SIDEWAYS:
        yield (
            "warning",
            "rotation_unclear",
            f"EXIF orientation {probe.orientation} keeps the size, so whether the boxes were drawn on the turned "
            "image is not known; they are taken to be; look at the boxes, then save the image upright",
        )
    elif probe.size[0] != probe.size[1] and frame == probe.size[::-1]:
        yield (
            "note",
            "exif_rotation",
            f"EXIF orientation {probe.orientation}; the boxes are those of the turned image and it is read so",
        )


def _levels(probe: Probe) -> Iterable[_Finding]:
    """Images of more than 8 bits that become nearly black, white or without contrast in 8 bits."""
    low, high = probe.darkest, probe.brightest
    if high - low < _FEW_LEVELS or high < _DARK or low > 255 - _DARK:
        looks = (
            "nearly black"
            if high < _DARK
            else "nearly white"
            if low > 255 - _DARK
            else "of hardly any contrast"
        )
        yield (
            "warning",
            "few_levels",
            f"it has more than 8 bits and becomes {looks}: 98 % of its pixels are read as levels {low} to {high} of "
            "0 to 255; save it as 8 bits, or stretched to all of its bits, as it is to be seen",
        )


def _deep(probe: Probe, reading: Reading) -> Iterable[_Finding]:
    why = "as the file declares" if reading.declared else f"for its largest value is {reading.largest:g}"
    yield (
        "note",
        "high_bit_depth",
        f"pixels of more than 8 bits ({probe.mode}) are read as {reading.range}, {why}, and scaled to 8 bits",
    )
    if reading.lost > _LOST:
        yield (
            "warning",
            "lost_levels",
            f"{reading.lost:.1%} of its values are negative or no number and are read as black; save it as 8 bits, "
            "or moved to start at 0",
        )


def _scales(probes: list[Probe]) -> Iterator[Fault]:
    """What a model's input has to say of images that are no 8-bit RGB, by their number of channels."""
    ranges: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for probe in probes:
        if probe.bands:
            ranges[probe.bands].append((probe.lowest, probe.highest))
        elif probe.reading is not None:
            ranges[0].append((0.0, probe.reading.largest))
    for channels, own in sorted(ranges.items()):
        low, high = min(low for low, _ in own), max(high for _, high in own)
        scale = f"--data.input.scale '[[{low:g}, {max(high, low + 1e-6):g}]]'"
        number = counted(len(own), "image")
        if channels:
            what = f"no 8-bit RGB: {number} of {channels} channels, values from {low:g} to {high:g}; to train on them: "
            way = f"--data.input.channels {channels} {scale}"
        else:
            what = f"more than 8 bits: {number}, values up to {high:g}; to read all by one scale: "
            way = f"{scale}{_ONE_CHANNEL} --data.input.channels 1"
        yield Fault("note", INPUT_SCALE, ".", None, f"{what}{way}")


def options_of(fault: Fault) -> str:
    """The options that a note `INPUT_SCALE` gives, for a line to copy."""
    return fault.message.rpartition(": ")[2].partition(_ONE_CHANNEL)[0]


def depth_faults(splits: Mapping[str, AnnotationIndex], probes: Mapping[str, SplitProbes]) -> Iterator[Fault]:
    """Images whose files do not declare a bit depth and whose values suggest different ones, so equal values differ."""
    yield from _scales([probe for seen in probes.values() for probe in seen.odd.values()])
    found: dict[str, list[str]] = defaultdict(list)
    for split, seen in probes.items():
        for row, probe in seen.odd.items():
            if probe.reading is not None and not probe.reading.declared:
                found[probe.reading.range].append(str(splits[split].files[row]))
    if len(found) > 1:
        depths = ", ".join(f"{len(files)} as {range} (e.g. {files[0]})" for range, files in found.items())
        yield Fault(
            "warning", "mixed_bit_depth", ".", None,
            f"images of more than 8 bits are read at several depths, {depths}, each by its largest value, so that one "
            "value is another level in each; save them all as 8 bits, or stretched to all of their bits",
        )  # fmt: skip


def _encoded(probe: Probe, name: str) -> Iterable[_Finding]:
    if probe.format in _SUFFIXES and not _suffix_fits(probe, name):
        said = f"the name ends in {PurePosixPath(name).suffix!r}, the bytes are {probe.format}; it is read by its bytes"
        yield "note", "wrong_suffix", f"{said}, other programs may refuse it"
    if probe.format not in ("JPEG", "PNG", "MPO", "BMP", "NPY"):
        yield "note", "uncommon_format", f"{probe.format} is read here; other programs may not read it"
    if probe.frames > 1 and probe.format != "MPO":
        yield "warning", "animated", f"it has {probe.frames} frames; only the first is read"
    if probe.reading is not None:
        yield from _deep(probe, probe.reading)
    elif probe.mode in ("L", "1", "LA"):
        yield "note", "grayscale", "a grey image; it is read as RGB with equal channels"
    elif probe.mode in ("CMYK", "YCCK", "LAB", "HSV"):
        yield "note", "colour_space", f"{probe.mode} pixels are converted to RGB when read"
    elif probe.mode in ("P", "PA") and probe.format != "GIF":
        yield "note", "palette", "an image with a palette; it is read as RGB"
    if probe.transparent:
        yield (
            "note",
            "transparent",
            "it has transparent pixels; they are read as their colour says, not blended",
        )


def shape_faults(index: AnnotationIndex) -> Iterator[Fault]:
    """Images that are tiny or much longer than wide, or the reverse."""
    height, width = index.sizes[:, 0], index.sizes[:, 1]
    shorter, longer = np.minimum(height, width), np.maximum(height, width)
    for row in np.flatnonzero(shorter < _SMALL).tolist():
        yield _shape(index, row, "tiny_image", f"a side is below {_SMALL} pixels")
    for row in np.flatnonzero((longer > _LONG * shorter) & (longer >= _SMALL)).tolist():
        ratio = longer[row] / shorter[row]
        yield _shape(index, row, "extreme_aspect", f"one side is {ratio:.0f} times the other")


def _shape(index: AnnotationIndex, row: int, kind: str, what: str) -> Fault:
    height, width = index.size(row)
    message = f"the image is {width}x{height}: {what}; cut it or leave it out"
    return Fault("warning", kind, str(index.files[row]), int(index.image_ids[row]), message)
