"""The image that goes back to a browser is the one that the network saw."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from zoo.contract.preprocess import InputContract
from zoo.serving.seen import picture_of

RGB = InputContract(resize="stretch", size=(64, 64))
BANDS = InputContract(resize="stretch", size=(64, 64), channels=2, scale=((0.0, 4000.0),))


def seen(content: bytes, contract: InputContract) -> np.ndarray:
    start, _, text = picture_of(content, contract).partition(",")
    assert start == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        assert (image.format, image.mode, image.getexif().get(0x0112, 1)) == ("JPEG", "RGB", 1)
        return np.asarray(image).astype(int)


def encoded(image: Image.Image, kind: str, **given) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **given)
    return buffer.getvalue()


@pytest.mark.parametrize(("size", "expected"), [((40, 30), (30, 40)), ((4096, 1024), (512, 2048))])
def test_it_is_upright_and_no_larger_than_a_screen(size, expected):
    upright = Image.new("RGB", size, (20, 20, 20))
    upright.paste((220, 40, 40), (0, 0, size[0] // 2, size[1] // 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = seen(encoded(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif), RGB)
    height, width = found.shape[:2]
    assert (height, width) == expected
    assert np.abs(found[height // 4, width // 4] - [220, 40, 40]).max() < 12
    assert np.abs(found[3 * height // 4, width // 4] - [20, 20, 20]).max() < 12


def test_of_other_channels_than_colours_levels_are_seen():
    values = np.zeros((20, 30, 2), np.uint16)
    values[..., 0] = 4000
    buffer = io.BytesIO()
    np.save(buffer, values)
    found = seen(buffer.getvalue(), BANDS)
    assert found.shape == (20, 30, 3)
    assert np.abs(found[10, 10] - [255, 0, 0]).max() < 12
