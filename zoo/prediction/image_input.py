"""What a user may give as an image, and how each kind becomes RGB."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from zoo.contract.bands import read_bands, to_levels
from zoo.contract.pixels import LONGEST_SIDE, MOST_PIXELS, declared_bits, open_image, to_rgb
from zoo.contract.preprocess import InputContract
from zoo.storage.image_fetch import decode_data_uri, fetch, scheme_of

ImageInput = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray | Tensor
KINDS = (
    "a path or address, encoded bytes, a PIL image, a numpy array of uint8 [h, w, 3] in RGB order or [h, w], or a "
    "tensor of uint8 [3, h, w]"
)


def read_rgb(image: ImageInput, allow_private: bool = False) -> Image.Image | Tensor:
    """An upright RGB PIL image, or the tensor itself once it is known to be uint8 [3, h, w].

    A camera's orientation tag is applied, so boxes are those of the image as viewers show it. Alpha is dropped.

    Args:
        image: see `KINDS`. Arrays are RGB; OpenCV reads BGR, so give it `image[:, :, ::-1]`.
        allow_private: whether addresses may be of this machine, of its network, and with any port.

    Raises:
        FileNotFoundError: no such file.
        ConnectionError: an address that does not answer.
        ValueError: it is not an image, or has another shape or type.
    """
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
            raise ValueError(
                f"an image as a tensor is uint8 of shape [3, h, w], not {image.dtype} {list(image.shape)}"
            )
        _check_size(int(image.shape[1]), int(image.shape[2]))
        return image
    if isinstance(image, np.ndarray):
        return _of_array(image)
    if isinstance(image, Image.Image):
        _check_size(image.height, image.width)
        try:
            return to_rgb(ImageOps.exif_transpose(image))
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"the PIL image cannot be decoded: {error}") from error
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _decoded(io.BytesIO(image), "the data")
    if isinstance(image, (str, os.PathLike)):
        return _of_place(image, allow_private)
    raise ValueError(f"a {type(image).__name__} is not an image; give {KINDS}")


def size_of(image: Image.Image | Tensor) -> tuple[int, int]:
    """(h, w) of a PIL image or a tensor [C, h, w]."""
    if isinstance(image, Tensor):
        return int(image.shape[1]), int(image.shape[2])
    return image.height, image.width


def read_input(
    image: ImageInput, contract: InputContract, allow_private: bool = False
) -> Image.Image | Tensor:
    """`read_rgb`, or for a contract with `channels` or `scale` a tensor [channels, h, w] uint8 of its levels.

    There an array is [h, w] or [h, w, C] of any numbers, a tensor [C, h, w], both in the units of the scale.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: as `read_rgb`; also for another number of channels.
    """
    if contract.is_rgb:
        return read_rgb(image, allow_private)
    values, name = _values_of(image, contract.channels == 4, allow_private)
    if values.ndim != 3 or values.size == 0 or values.dtype.kind not in "uifb":
        raise ValueError(
            f"{name} is {values.dtype} of shape {list(values.shape)}; it is [h, w, {contract.channels}]"
        )
    _check_size(values.shape[0], values.shape[1])
    levels = np.require(to_levels(values, contract.channels, contract.scale, name), requirements=["C", "W"])
    return torch.from_numpy(levels).permute(2, 0, 1)


def _values_of(image: ImageInput, alpha: bool, allow_private: bool) -> tuple[np.ndarray[Any, Any], str]:
    if isinstance(image, Tensor):
        if image.ndim != 3:
            raise ValueError(f"an image as a tensor is [channels, h, w], not {list(image.shape)}")
        return image.detach().cpu().permute(1, 2, 0).numpy(), "the tensor"
    if isinstance(image, np.ndarray):
        return (image[..., None] if image.ndim == 2 else image), "the array"
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, "TIFF")
        return read_bands(buffer.getvalue(), alpha), "the PIL image"
    name, data = _bytes_of(image, allow_private)
    try:
        return read_bands(data, alpha), name
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is not an image that can be read: {error}") from error


def _bytes_of(image: Any, allow_private: bool) -> tuple[str, bytes]:
    if isinstance(image, (bytes, bytearray, memoryview)):
        return "the data", bytes(image)
    if not isinstance(image, (str, os.PathLike)):
        raise ValueError(f"a {type(image).__name__} is not an image; give {KINDS}")
    scheme = scheme_of(image) if isinstance(image, str) else ""
    if scheme in ("http", "https"):
        return str(image)[:200], fetch(str(image), private=allow_private)
    if scheme == "data":
        return "the data URI", decode_data_uri(str(image))
    if not os.path.isfile(image):
        raise FileNotFoundError(f"image {str(image)[:200]} does not exist, or is no file")
    return str(image), Path(image).read_bytes()


def _of_place(image: str | os.PathLike[str], allow_private: bool) -> Image.Image:
    scheme = scheme_of(image) if isinstance(image, str) else ""
    if scheme in ("http", "https"):
        return _decoded(io.BytesIO(fetch(str(image), private=allow_private)), str(image)[:200])
    if scheme == "data":
        return _decoded(io.BytesIO(decode_data_uri(str(image))), "the data URI")
    path = Path(image)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"image {str(path)[:200]} does not exist, or is no file")
    return _decoded(path, str(path))


def _decoded(source: io.BytesIO | Path, name: str) -> Image.Image:
    try:
        with open_image(source) as opened:
            return to_rgb(ImageOps.exif_transpose(opened), declared_bits(opened))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is not an image that can be read: {error}") from error
    except Exception as error:  # PIL's decoders raise struct.error, KeyError, IndexError, ... on damaged data
        raise ValueError(f"{name} is not an image that can be read: it is damaged ({error!r})") from error


def _of_array(values: np.ndarray[Any, Any]) -> Image.Image:
    shape = values.shape
    if values.dtype != np.uint8:
        raise ValueError(
            f"an image as a numpy array is uint8 with levels 0 to 255, not {values.dtype}; of shares of white, "
            "give (255 * image).round().astype('uint8')"
        )
    if not (values.ndim == 2 or (values.ndim == 3 and shape[2] in (1, 3, 4))) or values.size == 0:
        hint = (
            "; this looks like [3, h, w], which a tensor may be" if values.ndim == 3 and shape[0] == 3 else ""
        )
        raise ValueError(
            f"an image as a numpy array is [h, w, 3] in RGB order, [h, w, 4] or [h, w], not {list(shape)}{hint}"
        )
    _check_size(shape[0], shape[1])
    grey = values.ndim == 2 or shape[2] == 1
    pixels = values.reshape(shape[:2]) if grey else values[:, :, :3]
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def _check_size(height: int, width: int) -> None:
    if min(height, width) < 1:
        raise ValueError(f"the image is {width}x{height}; it has no pixel")
    if max(height, width) > LONGEST_SIDE or height * width > MOST_PIXELS:
        raise ValueError(
            f"the image has {width}x{height} pixels; at most {LONGEST_SIDE} a side and {MOST_PIXELS} in all are "
            "read; cut it into tiles"
        )
