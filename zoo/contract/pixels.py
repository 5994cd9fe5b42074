"""How an image file becomes 8-bit RGB: which files are opened, and one rule for the grey levels of all modes.

Training, the check of a data set, a cleaned copy and prediction all read through here, so that they see the same
image. No torch, so that a process that only looks at files starts at once.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Pixels in memory only: PIL hands EPS to Ghostscript, and others may start programs or follow paths.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
# The longest side of a JPEG. An image of one by 80 million pixels is small in memory and takes 200 GB to resize.
LONGEST_SIDE = 65_535
# PIL's own limit, 537 MB as RGB; a whole tile of Sentinel-2 has 120 million pixels (10980 x 10980).
MOST_PIXELS = 178_956_970
_DEPTHS = (8, 10, 12, 16)  # bits per sample that cameras, scanners and programs write
_OVERSHOOT = 1.1  # by which a resampled float image may pass the white of its range
_BITS_PER_SAMPLE, _MAX_SAMPLE, _SAMPLE_FORMAT = 258, 281, 339  # tags of TIFF
_UNSIGNED = 1


class Reading(NamedTuple):
    """How the levels of an image of more than 8 bits were interpreted.

    Attributes:
        range: in words, e.g. `12 bits`.
        declared: whether the file says so; else the largest value does.
        largest: value in the file, of the finite ones.
        lost: share of values that are negative or NaN, and become black.
    """

    range: str
    declared: bool
    largest: float
    lost: float


class TooManyPixels(ValueError):
    """An image that is never read, however much memory there is."""


def open_image(source: BinaryIO | Path | str, formats: tuple[str, ...] = ()) -> Image.Image:
    """Opens an image without decoding it; its size is checked before memory is taken for it.

    Args:
        source: a path, or the bytes as a stream.
        formats: PIL's names of those to try, of `FORMATS`; all by default.

    Raises:
        OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError: if it is no regular file, is in no known
            format, or is too large.
    """
    if isinstance(source, (str, Path)) and os.path.exists(source) and not os.path.isfile(source):
        raise OSError("it is no regular file (a folder, pipe, socket or device)")
    opened = Image.open(source, formats=formats or _readable())
    width, height = opened.size
    if max(width, height) > LONGEST_SIDE or width * height > MOST_PIXELS:
        opened.close()
        raise TooManyPixels(
            f"it has {width}x{height} pixels; at most {LONGEST_SIDE} a side and {MOST_PIXELS} in all are read; "
            "cut it into tiles"
        )
    return opened


@cache
def _readable() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def to_rgb(image: Image.Image, bits: int | None = None) -> Image.Image:
    """Any PIL mode to RGB; alpha is dropped, not blended; more than 8 bits by `levels`.

    Args:
        image: as decoded.
        bits: of a pixel, if its file declares them, see `declared_bits`.
    """
    if is_deep(image):
        image = levels(image, bits)[0]
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns when a transparent palette goes to RGB directly
    return image if image.mode == "RGB" else image.convert("RGB")


def is_deep(image: Image.Image) -> bool:
    """Whether its pixels are whole numbers of more than 8 bits, or floats."""
    return image.mode.startswith("I") or image.mode == "F"


def has_wide_samples(image: Image.Image) -> bool:
    """Whether the file of an image just opened has 16 bits a sample, also where PIL gives 8 of them, as of colours."""
    return any(";16" in str(part) for part in getattr(image, "tile", ()))


def declared_bits(image: Image.Image) -> int | None:
    """Bits of a grey pixel by the tags of a TIFF just opened; None where 16 or 32 only say how they are stored.

    Negative for 32 bits without a sign, which PIL hands out as if they had one.
    """
    tags = getattr(image, "tag_v2", None)
    if tags is None or not image.mode.startswith("I"):
        return None
    stored, most, form = (tags.get(tag) for tag in (_BITS_PER_SAMPLE, _MAX_SAMPLE, _SAMPLE_FORMAT))
    first = (stored[0] if isinstance(stored, tuple) and stored else stored) or 1
    white = (most[0] if isinstance(most, tuple) and most else most) or 0
    if isinstance(white, int) and 255 < white < 1 << 32:
        return white.bit_length()
    if first not in (16, 32):
        return int(first) if 8 < first < 32 else None
    kind = form[0] if isinstance(form, tuple) and form else form
    return -32 if first == 32 and kind in (None, _UNSIGNED) else None


def levels(image: Image.Image, bits: int | None = None) -> tuple[Image.Image, Reading]:
    """Grey levels 0..255 of whole numbers of more than 8 bits or of floats, and how they were read.

    A file of 16 bits seldom says how many of them its camera used, and its values alone do not distinguish a dark image
    of 16 bits from a bright one of 12. The rule takes the depth that the file declares; else the smallest of 8, 10,
    12 and 16 bits that holds the largest value, and beyond them the bits of that value. Steps, and not a stretch to
    the darkest and brightest pixel: images of one camera keep their relation to each other as long as they fall
    into one step, and of an image that uses its 16 bits the upper byte is read. One of 16 bits whose values need no
    more than 12 would have at most 16 levels and be black, so no useful image is read wrongly.
    `zoo data check` reports the step, and warns if the images of a set fall into several.

    Floats up to 1 are shares of white, up to 255 levels, in both cases with a tenth for the overshoot of resampling,
    which is clipped; above that they are cut to whole numbers. Negative values and NaN are black.
    """
    values = np.asarray(image)
    if image.mode == "F":
        return _of_floats(values)
    whole = values.astype(np.int64)
    if bits == -32:
        whole, bits = whole & 0xFFFFFFFF, None
    largest = int(whole.max(initial=0))
    lost = float((whole < 0).mean()) if whole.size else 0.0
    return _of_whole(whole, largest, lost, bits)


def _of_whole(
    whole: NDArray[np.int64], largest: int, lost: float, bits: int | None
) -> tuple[Image.Image, Reading]:
    taken = bits or next((b for b in _DEPTHS if largest < 1 << b), largest.bit_length())
    grey = (whole.clip(0, (1 << taken) - 1) >> (taken - 8)).astype(np.uint8)
    return Image.fromarray(grey), Reading(f"{taken} bits", bits is not None, largest, lost)


def _of_floats(values: NDArray[np.floating]) -> tuple[Image.Image, Reading]:
    finite = np.isfinite(values)
    lost = float((~finite | (values < 0)).mean()) if values.size else 0.0
    largest = float(values.max(initial=0.0, where=finite))
    known = np.where(np.isnan(values), 0, values)
    if largest <= _OVERSHOOT:
        grey = np.rint(known.clip(0, 1) * 255)
        return Image.fromarray(grey.astype(np.uint8)), Reading("0 to 1", False, largest, lost)
    if largest <= 255 * _OVERSHOOT:
        return Image.fromarray(known.clip(0, 255).astype(np.uint8)), Reading("0 to 255", False, largest, lost)
    top = min(largest, float(1 << 62))
    return _of_whole(known.clip(0, top).astype(np.int64), int(top), lost, None)
