"""Images of any number of channels and any depth: grey, 16 bits, floats, bands of a TIFF, arrays in .npy files.

An input contract with `channels` or `scale` reads through here: the values of a file become 8-bit levels by the scale
of each channel, (value - lowest) / (highest - lowest), cut to 0..1, in 256 steps; NaN is black. No torch.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from zoo.contract.pixels import (
    LONGEST_SIDE,
    MOST_PIXELS,
    declared_bits,
    has_wide_samples,
    is_deep,
    levels,
    open_image,
)

MOST_CHANNELS = 64
INSTALL = "pip install 'detr-zoo[geo]'"
_NPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG = b"\x89PNG"
_SAMPLES = 277  # tag of TIFF
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # PIL's, of RGB to L

Values = NDArray[Any]
Scale = Sequence[Sequence[float]]


def is_npy(data: bytes) -> bool:
    """Whether these are the first bytes of an array file."""
    return data[:6] == _NPY


def may_be_bands(data: bytes) -> bool:
    """Whether `read_bands` may read a file that PIL does not know: an array, or a TIFF of other bands."""
    return is_npy(data) or data.startswith(TIFF)


def read_bands(data: bytes, alpha: bool = False) -> Values:
    """[h, w, C]: the values of an image file as it has them, upright.

    Args:
        data: of a .npy file ([h, w] or [h, w, C]), or of an image.
        alpha: whether the fourth channel of an image of four is one, and not dropped.

    Raises:
        ValueError, OSError: it is no image, or one that only rasterio reads, which is not installed.
    """
    if is_npy(data):
        return _of_npy(data)
    try:
        with open_image(io.BytesIO(data)) as opened:
            if not _needs_gdal(opened, data):
                upright = ImageOps.exif_transpose(opened)
                return _of_pil(upright, alpha, declared_bits(opened))
    except UnidentifiedImageError:
        if not data.startswith(TIFF):
            raise
    return _of_gdal(data)


def size_of(data: bytes) -> tuple[int, int]:
    """(h, w) of a .npy file or of a TIFF that PIL does not know; their values are not kept."""
    if is_npy(data):
        height, width, *_ = _npy_header(data)
        return height, width
    with _gdal(data) as opened:
        return opened.height, opened.width


def to_levels(values: Values, channels: int, scale: Scale, name: str) -> NDArray[np.uint8]:
    """[h, w, C] values to [h, w, channels] levels.

    One channel is repeated for a network of three, and three become one by luma.

    Raises:
        ValueError: another number of channels, or values of more than 8 bits without a scale.
    """
    found = values.shape[2]
    if found == 3 and channels == 1:
        values = (values.astype(np.float32) @ _LUMA)[..., None]
        values = np.rint(values).astype(np.uint8) if not scale else values
    elif found != channels and not (found == 1 and channels == 3):
        word = "channel" if found == 1 else "channels"
        raise ValueError(
            f"{name} has {found} {word}, and the network takes {channels}; give images with {channels}"
        )
    if scale:
        out = _scaled(values, scale, name)
    elif values.dtype == np.uint8:
        out = values
    elif values.shape[2] == 1:
        out = np.asarray(levels(_as_pil(values[..., 0]))[0])[..., None]
    else:
        raise ValueError(
            f"{name} has values of {values.dtype}; say what is black and what is white in each channel: "
            f"--data.input.scale '[[{_low(values):g}, {_high(values):g}]]'"
        )
    return np.repeat(out, channels, axis=2) if out.shape[2] < channels else out


def _scaled(values: Values, scale: Scale, name: str) -> NDArray[np.uint8]:
    if len(scale) not in (1, values.shape[2]):
        raise ValueError(
            f"{name} has {values.shape[2]} channels, and input.scale {len(scale)} pairs; give one for all"
        )
    pairs = np.asarray(scale, dtype=np.float32)
    shares = (values.astype(np.float32) - pairs[:, 0]) / (pairs[:, 1] - pairs[:, 0])
    return np.rint(np.nan_to_num(shares, nan=0.0).clip(0, 1) * 255).astype(np.uint8)


def _as_pil(grey: Values) -> Image.Image:
    floats = np.issubdtype(grey.dtype, np.floating)
    return Image.fromarray(grey.astype(np.float32 if floats else np.int32))


def _low(values: Values) -> float:
    return float(np.nanmin(values))


def _high(values: Values) -> float:
    return float(np.nanmax(values))


def _of_pil(image: Image.Image, alpha: bool, bits: int | None) -> Values:
    if is_deep(image):
        values = np.asarray(image)
        # unsigned 32 bits, which PIL hands out with a sign
        return (values.view(np.uint32) if bits == -32 and values.dtype == np.int32 else values)[..., None]
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"))[..., None]
    if image.mode in ("RGBA", "CMYK", "RGBX") and alpha:
        return np.asarray(image)
    return np.asarray(image.convert("RGBA").convert("RGB") if image.mode == "P" else image.convert("RGB"))


def _needs_gdal(image: Image.Image, data: bytes) -> bool:
    """Whether PIL would give 8 of 16 bits, or some of the bands."""
    if is_deep(image):
        return False
    tags = getattr(image, "tag_v2", None)
    samples = int(tags.get(_SAMPLES, 1)) if tags is not None else len(image.getbands())
    return data.startswith((*TIFF, _PNG)) and (has_wide_samples(image) or samples > 4)


def _of_gdal(data: bytes) -> Values:
    with _gdal(data) as opened:
        _refuse_size(opened.height, opened.width, opened.count)
        try:
            return np.moveaxis(opened.read(), 0, 2)
        except Exception as error:  # RasterioError, or one of GDAL's own
            raise ValueError(f"it is damaged: {' '.join(str(error).split())[:200]}") from error


def _gdal(data: bytes) -> Any:
    try:
        from rasterio import MemoryFile
        from rasterio.errors import NotGeoreferencedWarning, RasterioError
    except ImportError:
        raise ValueError(
            f"images of more than 8 bits in several channels, or of more than four, need {INSTALL}"
        ) from None
    try:
        # the driver is named: others of GDAL's follow paths and addresses inside a file
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return MemoryFile(data).open(driver="PNG" if data.startswith(_PNG) else "GTiff")
    except RasterioError as error:
        raise ValueError(f"it is no image that can be read: {' '.join(str(error).split())[:200]}") from error


def _npy_header(data: bytes) -> tuple[int, ...]:
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(stream)
    if len(shape) not in (2, 3) or kind.kind not in "uifb":
        raise ValueError(
            f"the array is {kind} of shape {list(shape)}; an image is numbers [h, w] or [h, w, channels]"
        )
    _refuse_size(shape[0], shape[1], shape[2] if len(shape) == 3 else 1)
    return tuple(shape)


def _of_npy(data: bytes) -> Values:
    _npy_header(data)
    values = np.load(io.BytesIO(data), allow_pickle=False)
    return values[..., None] if values.ndim == 2 else values


def _refuse_size(height: int, width: int, channels: int) -> None:
    if min(height, width, channels) < 1 or max(height, width) > LONGEST_SIDE or height * width > MOST_PIXELS:
        raise ValueError(
            f"it has {width}x{height} pixels; 1 to {LONGEST_SIDE} a side and {MOST_PIXELS} in all are read"
        )
    if channels > MOST_CHANNELS:
        raise ValueError(
            f"it has {channels} channels; at most {MOST_CHANNELS} are read, and an array is [h, w, channels]"
        )
