"""The RGB pixels of image files, in the frame of their boxes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from simplejpeg import decode_jpeg
from torch import Tensor

from datamodules.images.files import ORIENTATION, UNREADABLE, in_frame
from datamodules.index.image_store import Folder, ImageStore, StoreError
from zoo.contract.bands import Values, may_be_bands, read_bands, to_levels
from zoo.contract.pixels import declared_bits, open_image, to_rgb
from zoo.contract.preprocess import InputContract, image_to_tensor

_NO_RGB = (
    "its values are no 8-bit RGB: train with --data.input.channels and --data.input.scale, as the note of `zoo data "
    "check` says for these images, or save it as 8-bit RGB"
)
_END_OF_JPEG = b"\xff\xd9"


def decode_file(path: Path, image_id: int, size: tuple[int, int]) -> Image.Image:
    """`decode` of a plain file."""
    return decode(Folder(str(path.parent)), path.name, image_id, size)


def decode(store: ImageStore, name: str, image_id: int, size: tuple[int, int]) -> Image.Image:
    """Decodes to RGB in the frame of the boxes, whose (h, w) is `size`.

    Raises:
        ValueError: naming file and id, if the file cannot be decoded or has another size.
        StoreError: the store cannot hand out the file, or not as it was stored.
    """
    return _decoded(_bytes(store, name, image_id), store.where(name), image_id, size)


def decode_tensor(store: ImageStore, name: str, image_id: int, size: tuple[int, int]) -> Tensor:
    """The pixels of `decode`, and its errors, as a [3, h, w] uint8 view on HWC memory.

    An ordinary JPEG goes through simplejpeg, which is quicker and gives the same pixels; everything else, and whatever
    that decoder warns of, through PIL.
    """
    data = _bytes(store, name, image_id)
    if _is_ordinary_jpeg(data, size):
        try:
            return torch.from_numpy(decode_jpeg(data, "RGB")).permute(2, 0, 1)
        except ValueError:
            pass  # damaged: PIL can still read it, or its error says what is wrong
    return image_to_tensor(_decoded(data, store.where(name), image_id, size))


def decode_seen(store: ImageStore, name: str, image_id: int, size: tuple[int, int]) -> Image.Image:
    """`decode`; of bands that are no colours a picture for the eye: their first three, from lowest to highest."""
    data, where = _bytes(store, name, image_id), store.where(name)
    try:
        return _decoded(data, where, image_id, size)
    except ValueError:
        if not may_be_bands(data):
            raise
    values = _bands(data, where, image_id, size)[..., :3].astype(np.float32)
    known = values[np.isfinite(values)]
    pair = (float(known.min()), float(known.max()) + 1e-6) if known.size else (0.0, 1.0)
    levels = to_levels(values, values.shape[2], (pair,), name)
    return Image.fromarray(np.repeat(levels[..., :1], 3, axis=2) if levels.shape[2] < 3 else levels)


def decode_bands(
    store: ImageStore, name: str, image_id: int, size: tuple[int, int], contract: InputContract
) -> Tensor:
    """[C, h, w] uint8: the levels of a contract that does not read RGB; a view on HWC memory.

    Raises:
        ValueError: as `decode`; also for another number of channels than the contract's.
    """
    data, where = _bytes(store, name, image_id), store.where(name)
    values = _bands(data, where, image_id, size, alpha=contract.channels == 4)
    levels = to_levels(values, contract.channels, contract.scale, where)
    return torch.from_numpy(np.require(levels, requirements=["C", "W"])).permute(2, 0, 1)


def _bytes(store: ImageStore, name: str, image_id: int) -> bytes:
    try:
        return store.read(name)
    except StoreError:
        raise  # the store is at fault, not the file, and the message says so
    except OSError as error:
        raise _undecodable(store.where(name), image_id, error) from error


def _is_ordinary_jpeg(data: bytes, size: tuple[int, int]) -> bool:
    """RGB or grey, whole to the end marker, in the frame of its boxes without turning. Reads the header only."""
    if not data.endswith(_END_OF_JPEG):
        return False
    try:
        with open_image(io.BytesIO(data), ("JPEG",)) as header:
            return (
                header.format == "JPEG"  # not MPO, a series of pictures
                and header.mode in ("RGB", "L")
                and (header.height, header.width) == size
                and header.getexif().get(ORIENTATION, 1) == 1
            )
    except UNREADABLE:
        return False


def _decoded(data: bytes, path: str, image_id: int, size: tuple[int, int]) -> Image.Image:
    try:
        with open_image(io.BytesIO(data)) as opened:
            opened.load()
            image = in_frame(opened, size)
            if image is not None:
                return to_rgb(image, declared_bits(opened))
            found = opened.size
    except UnidentifiedImageError as error:
        refusal = _no_rgb(path, image_id) if may_be_bands(data) else _undecodable(path, image_id, error)
        raise refusal from error
    except UNREADABLE as error:
        raise _undecodable(path, image_id, error) from error
    raise _other_size(path, image_id, found, size)


def _bands(data: bytes, path: str, image_id: int, size: tuple[int, int], alpha: bool = False) -> Values:
    try:
        values = read_bands(data, alpha)
    except UNREADABLE as error:
        raise _undecodable(path, image_id, error) from error
    if values.shape[:2] != size:
        raise _other_size(path, image_id, (values.shape[1], values.shape[0]), size)
    return values


def _other_size(path: str, image_id: int, found: tuple[int, int], size: tuple[int, int]) -> ValueError:
    return ValueError(
        f"{path} (image id {image_id}) is {found[0]}x{found[1]} but its annotations are for "
        f"{size[1]}x{size[0]} (width x height); correct the annotations; `zoo data check` lists all such "
        "files"
    )


def _no_rgb(path: str, image_id: int) -> ValueError:
    return ValueError(f"{path} (image id {image_id}) cannot be decoded: {_NO_RGB}")


def _undecodable(path: str, image_id: int, error: Exception) -> ValueError:
    # PIL's own message shows the address of the buffer
    reason = "its format is none that can be read" if isinstance(error, UnidentifiedImageError) else error
    return ValueError(
        f"{path} (image id {image_id}) cannot be decoded: {reason}; replace the file or remove it from "
        "the annotations; `zoo data check` lists all such files"
    )
