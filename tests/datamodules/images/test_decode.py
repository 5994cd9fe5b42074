"""The tensor decoder gives PIL's pixels and PIL's errors, whatever the file."""

from __future__ import annotations

import io
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images import decoding
from datamodules.images.decoding import decode, decode_tensor


class OneFile:
    """A store of one file."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, name: str) -> bytes:
        return self.data

    def where(self, name: str) -> str:
        return f"/set/{name}"


def picture(size: tuple[int, int] = (61, 83)) -> Image.Image:
    coarse = np.random.default_rng(size[0]).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def outcome(read: Any, data: bytes, size: tuple[int, int]) -> Any:
    try:
        found = read(OneFile(data), "a.jpg", 7, size)
    except ValueError as error:
        return str(error)
    return found.permute(1, 2, 0).numpy() if isinstance(found, torch.Tensor) else np.asarray(found)


def assert_same(data: bytes, size: tuple[int, int]) -> None:
    by_pil, as_tensor = outcome(decode, data, size), outcome(decode_tensor, data, size)
    if isinstance(by_pil, str):
        assert as_tensor == by_pil
    else:
        np.testing.assert_array_equal(as_tensor, by_pil)


@pytest.fixture
def decoders(monkeypatch):
    """Counts what goes through simplejpeg."""
    calls = []
    decoder = decoding.decode_jpeg
    monkeypatch.setattr(decoding, "decode_jpeg", lambda *given: calls.append(1) or decoder(*given))
    return calls


@pytest.mark.parametrize("size", [(61, 83), (1, 1), (7, 200)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_ordinary_jpegs(decoders, size, mode, progressive, subsampling):
    data = saved(picture(size).convert(mode), "JPEG", progressive=progressive, subsampling=subsampling)
    assert_same(data, size)
    assert decoders == [1]
    tensor = decode_tensor(OneFile(data), "a.jpg", 7, size)
    assert tensor.shape == (3, *size)
    assert tensor.stride(0) == 1  # HWC memory: the resize is three times quicker on it


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (saved(picture(), "JPEG", exif=exif(6)), (83, 61)),
        (saved(picture(), "JPEG", exif=exif(6)), (61, 83)),
        (saved(picture(), "JPEG", exif=exif(3)), (61, 83)),
        (saved(picture().convert("CMYK"), "JPEG"), (61, 83)),
        (saved(picture(), "JPEG"), (60, 83)),
        (saved(picture(), "JPEG") + b"behind the end", (61, 83)),
        (saved(picture(), "MPO", save_all=True, append_images=[picture()]), (61, 83)),
        (saved(picture().convert("P"), "PNG"), (61, 83)),
        (saved(picture().convert("LA"), "PNG"), (61, 83)),
        (saved(Image.fromarray(np.arange(61 * 83, dtype=np.uint16).reshape(61, 83) * 9), "PNG"), (61, 83)),
        (saved(picture(), "BMP"), (61, 83)),
        (saved(picture(), "WEBP"), (61, 83)),
        (b"", (61, 83)),
        (b"\xff\xd8\xff\xd9", (61, 83)),
    ],
    ids=[
        *(
            "exif_turned",
            "exif_ignored",
            "upside_down",
            "cmyk",
            "other_size",
            "trailing_bytes",
            "mpo",
            "palette",
        ),
        *("grey_alpha", "sixteen_bit", "bmp", "webp", "empty", "markers_only"),
    ],
)
def test_everything_else_is_left_to_pil(decoders, data, size):
    assert_same(data, size)
    assert decoders == []


def test_an_upright_exif_tag_is_ordinary(decoders):
    assert_same(saved(picture(), "JPEG", exif=exif(1)), (61, 83))
    assert decoders == [1]


def test_damaged_files_give_what_pil_gives(capfd):
    """Cut, overwritten, shortened or lengthened at random: the same pixels or the same error."""
    random, refused = Random(5), 0
    files = [
        saved(picture(), "JPEG", progressive=progressive, subsampling=subsampling)
        for progressive in (False, True)
        for subsampling in (0, 2)
    ]
    for turn in range(300):
        data = bytearray(random.choice(files))
        if turn % 3 == 0:
            data = data[: random.randrange(len(data))] + (b"\xff\xd9" if turn % 2 else b"")
        elif turn % 3 == 1:
            for _ in range(random.choice([1, 2, 20])):
                data[random.randrange(len(data))] = random.randrange(256)
        else:
            at = random.randrange(2, len(data) - 40)
            data[at : at + random.randrange(30)] = bytes(
                random.randrange(256) for _ in range(random.randrange(30))
            )
        assert_same(bytes(data), (61, 83))
        refused += isinstance(outcome(decode, bytes(data), (61, 83)), str)
    assert 60 < refused < 240
    capfd.readouterr()  # libjpeg's remarks


def test_a_file_that_cannot_be_read_is_named():
    class Missing(OneFile):
        def read(self, name: str) -> bytes:
            raise FileNotFoundError(f"no {name}")

    with pytest.raises(ValueError, match=r"/set/a.jpg \(image id 7\) cannot be decoded: no a.jpg"):
        decode_tensor(Missing(b""), "a.jpg", 7, (1, 1))
