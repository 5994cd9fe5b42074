"""Every mode and depth becomes the same sensible 8 bits, and what cannot be opened is refused at once."""

from __future__ import annotations

import io
import os
import struct

import numpy as np
import pytest
from PIL import Image

from datamodules.images.decoding import decode
from datamodules.images.files import header_size
from datamodules.images.probe import probe
from datamodules.index.image_store import Folder
from zoo.contract.pixels import LONGEST_SIDE, declared_bits, levels, open_image, to_rgb
from zoo.detector import read_rgb

# a scene whose brightest part is well below white, as scenes are
SCENE = np.tile(np.linspace(20, 200, 24).astype(np.uint8), (16, 1))
FLOAT, WIDE = np.float32, np.int64


def tiff(
    values: np.ndarray, bits: int, form: int, packed: bytes | None = None, most: int | None = None
) -> bytes:
    """An uncompressed grey TIFF with these tags, little-endian."""
    height, width = values.shape
    data = values.astype(values.dtype.newbyteorder("<")).tobytes() if packed is None else packed
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, height),
            (279, len(data)), *([] if most is None else [(281, most)]), (339, form)]  # fmt: skip
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + table + bytes(4)


def packed_12(values: np.ndarray) -> bytes:
    """Two values in three bytes, the high bits first."""
    first, second = values.reshape(-1, 2).astype(np.uint32).T
    whole = first << 12 | second
    return np.stack([whole >> 16, whole >> 8 & 255, whole & 255], axis=1).astype(np.uint8).tobytes()


def saved(image: Image.Image, kind: str = "TIFF") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def grey(data: bytes, tmp_path) -> np.ndarray:
    """The levels as training, prediction and the check see them, which must be the same."""
    (tmp_path / "x").write_bytes(data)
    size = header_size(tmp_path / "x")[0]
    trained = np.asarray(decode(Folder(str(tmp_path)), "x", 1, size))
    assert np.array_equal(trained, np.asarray(read_rgb(tmp_path / "x")))
    assert np.array_equal(trained, np.asarray(read_rgb(data)))
    seen = probe(data)
    assert not seen.error
    checked = np.frombuffer(seen.thumbnail, np.uint8)
    assert abs(float(checked.mean()) - float(np.asarray(Image.fromarray(trained).convert("L")).mean())) < 3
    return trained[..., 0].astype(int)


@pytest.mark.parametrize(
    ("values", "exact"),
    [
        (SCENE.astype(np.uint16) * 257, True),
        (SCENE.astype(np.uint16) * 16, True),  # 12 bits
        (SCENE.astype(np.uint16) * 4, True),  # 10 bits
        (SCENE.astype(np.uint16), True),  # 8 bits that were saved as 16
        (SCENE.astype(np.int32), True),
        (SCENE.astype(np.int32) * 16, True),
        (SCENE.astype(np.int32) * 1000, False),
        (SCENE.astype(np.int32) * 9_000_000, False),
        (SCENE.astype(FLOAT) / 255, True),
        (SCENE.astype(FLOAT) / 255 + np.where(SCENE > 190, FLOAT(0.3), 0), False),  # past 1 by resampling
        (SCENE.astype(FLOAT), True),
        (SCENE.astype(FLOAT) * 16 + FLOAT(0.4), True),
        (SCENE.astype(FLOAT) * 257, True),
        (SCENE.astype(FLOAT) * 1e15, False),
    ],
)
def test_every_depth_shows_the_scene(values, exact, tmp_path):
    shown = grey(saved(Image.fromarray(values)), tmp_path)
    if exact:
        assert np.array_equal(shown, SCENE)
    else:  # the step above may be up to twice as far
        assert shown.max() >= 95
        assert np.corrcoef(shown.ravel(), SCENE.ravel())[0, 1] > 0.95
    assert shown.max() >= 32
    assert shown.min() <= 223


@pytest.mark.parametrize(
    ("data", "told"),
    [
        # a dark picture of a camera that says that it has 12 bits stays dark
        (tiff(SCENE.astype(np.uint16), 12, 1, packed_12(SCENE)), SCENE >> 4),
        (tiff(SCENE.astype(np.uint16), 16, 1, most=1023), SCENE >> 2),
        (tiff(SCENE.astype(np.uint32) << 24, 32, 1), SCENE),  # half of the values have the bit of the sign
        (tiff(SCENE.astype(np.int16) * 16, 16, 2), SCENE),
    ],
    ids=["twelve", "most", "unsigned", "signed"],
)
def test_a_tiff_that_says_its_depth_is_believed(data, told, tmp_path):
    assert np.array_equal(grey(data, tmp_path), told)


def test_full_range_is_read_by_its_upper_byte():
    """As ever, to the bit: also a picture of 13 bits, which would look better stretched."""
    draw = np.random.default_rng(0)
    for most in (4096, 8191, 65535):
        values = draw.integers(0, most + 1, (31, 17), dtype=np.uint16)
        values[0, 0] = most
        assert np.array_equal(np.asarray(to_rgb(Image.fromarray(values)))[..., 1], values >> 8)
    floats = draw.uniform(0, 255, (31, 17)).astype(FLOAT)
    assert np.array_equal(np.asarray(to_rgb(Image.fromarray(floats)))[..., 2], floats.astype(np.uint8))


def test_what_is_no_number_is_black_and_counted():
    values = SCENE.astype(FLOAT) / 255
    values[0, :3], values[1, :2] = (np.nan, np.inf, -np.inf), (-5, -0.1)
    picture, reading = levels(Image.fromarray(values))
    assert np.asarray(picture)[0, :3].tolist() == [0, 255, 0]
    assert reading.lost == pytest.approx(5 / SCENE.size)
    assert np.asarray(levels(Image.fromarray(np.full((2, 2), np.nan, FLOAT)))[0]).max() == 0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"])
def test_modes_of_8_bits_are_seen_alike_by_all(mode, tmp_path):
    colours = Image.fromarray(SCENE).convert("RGB")
    flat = "P" if mode == "PA" else mode
    picture = colours.convert(flat, palette=Image.Palette.ADAPTIVE).convert(mode)
    if mode in ("HSV", "PA"):  # no file holds them
        shown = np.asarray(to_rgb(picture))[..., 0].astype(int)
    else:
        shown = grey(saved(picture), tmp_path)
    assert np.abs(shown - SCENE).max() < (256 if mode == "1" else 6)
    assert set(np.unique(shown)) == {0, 255} or mode != "1"


def test_a_transparent_palette_and_a_turned_picture_keep_their_colours(tmp_path):
    palette = Image.fromarray(SCENE).convert("P")
    palette.info["transparency"] = 0
    assert np.abs(grey(saved(palette, "PNG"), tmp_path) - SCENE).max() < 6
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(SCENE.astype(np.uint16) * 16).save(buffer, "PNG", exif=exif)
    assert np.array_equal(grey(buffer.getvalue(), tmp_path), np.rot90(SCENE, -1))


def bare_png(width: int, height: int) -> bytes:
    """The header of a grey PNG and nothing behind it."""
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(1, 80_000_000), (LONGEST_SIDE + 1, 1), (14_000, 14_000), (60_000, 60_000)])
def test_a_size_that_no_picture_has_is_refused_before_decoding(size, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "bomb.png").write_bytes(bare_png(*size))
    for read in (lambda: header_size(tmp_path / "bomb.png"), lambda: read_rgb(tmp_path / "bomb.png"),
                 lambda: decode(Folder(str(tmp_path)), "bomb.png", 1, size[::-1])):  # fmt: skip
        with pytest.raises(ValueError, match=rf"bomb\.png.*{size[0]}x{size[1]}"):
            read()
    assert f"{size[0]}x{size[1]}" in probe((tmp_path / "bomb.png").read_bytes()).error


def test_a_tile_of_a_satellite_is_opened():
    assert open_image(io.BytesIO(bare_png(10_980, 10_980))).size == (10_980, 10_980)


def test_only_pixels_are_opened(tmp_path):
    """EPS under the name of a PNG would start Ghostscript."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    (tmp_path / "a.png").write_bytes(eps)
    with Image.open(tmp_path / "a.png") as known:
        assert known.format == "EPS"  # PIL alone would take it
    for read in (
        lambda: header_size(tmp_path / "a.png"),
        lambda: read_rgb(tmp_path / "a.png"),
        lambda: read_rgb(eps),
    ):
        with pytest.raises(ValueError, match=r"no readable image|not an image"):
            read()
    assert "in no image format" in probe(eps).error


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_no_picture_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg is no readable image: it is no regular file"):
        header_size(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg.*no regular file"):
        decode(Folder(str(tmp_path)), "a.jpg", 1, (1, 1))


def test_depths_come_from_the_file_alone():
    with open_image(io.BytesIO(saved(Image.fromarray(SCENE.astype(np.uint16))))) as image:
        assert declared_bits(image) is None
    with open_image(io.BytesIO(saved(Image.fromarray(SCENE)))) as image:
        assert declared_bits(image) is None
