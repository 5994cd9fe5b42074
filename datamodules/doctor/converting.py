"""Image files that other programs would read differently, written anew as upright RGB."""

from __future__ import annotations

import io
from pathlib import PurePosixPath
from typing import NamedTuple

from datamodules.images.files import in_frame
from datamodules.images.probe import Probe
from zoo.contract.pixels import declared_bits, open_image, to_rgb

_SUFFIX = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "BMP": ".bmp"}
_QUALITY = 95  # of a photograph that has to be written anew; colour is not subsampled


class Converted(NamedTuple):
    """The bytes of an image in another encoding, and what was changed."""

    data: bytes
    suffix: str
    before: str
    after: str
    why: str


def suffix_of(probe: Probe | None, name: str) -> str:
    """The suffix that a file is copied under: its own, unless its bytes are something else."""
    own = PurePosixPath(name).suffix
    usual = _SUFFIX.get(probe.format, own) if probe is not None else own
    same = {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".dib": ".bmp", ".mpo": ".jpg"}
    return own if same.get(own.lower(), own.lower()) == usual else usual


def converted(data: bytes, probe: Probe, size: tuple[int, int]) -> Converted | None:
    """The image as upright 8-bit RGB in the frame (h, w) of its boxes; None if it is fine as it is."""
    reasons = []
    if probe.orientation in range(2, 9):
        upright = probe.orientation >= 5 and size == probe.size != probe.size[::-1]
        done = "dropped: the boxes are in the frame without it" if upright else "applied, as for the boxes"
        reasons.append(f"EXIF orientation {probe.orientation} {done}")
    if probe.format not in _SUFFIX:
        reasons.append(f"{probe.format} is not read everywhere")
    if probe.mode not in ("RGB", "L", "1"):
        reasons.append(f"{probe.mode} pixels made RGB")
    elif probe.transparent:
        reasons.append("transparency dropped")
    if not reasons:
        return None
    with open_image(io.BytesIO(data)) as opened:
        opened.load()
        image = in_frame(opened, size)
        assert image is not None, "the reader has checked the size"
        photograph = probe.format in ("JPEG", "MPO")
        rgb = to_rgb(image, declared_bits(opened))
    buffer = io.BytesIO()
    if photograph:
        rgb.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    else:
        rgb.save(buffer, "PNG")
    kind = f"JPEG of quality {_QUALITY}" if photograph else "PNG"
    before = f"{probe.format} {probe.mode}"
    return Converted(buffer.getvalue(), ".jpg" if photograph else ".png", before, kind, "; ".join(reasons))
