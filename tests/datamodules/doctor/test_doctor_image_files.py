"""What the check says of image files that become hard to see, are no files, or have no sensible shape."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from datamodules.doctor import examine
from datamodules.doctor.fix import mend
from datamodules.index import Fault
from datamodules.transforms.draws import draw_detr
from zoo.contract.pixels import MOST_PIXELS

RAMP = np.tile(np.linspace(10, 240, 32), (24, 1))


def coco(root: Path, files: dict[str, Image.Image | np.ndarray]) -> Path:
    """A set of one split with these images and a box in each."""
    (root / "train").mkdir(parents=True)
    (root / "annotations").mkdir()
    images, objects = [], []
    for number, (name, made) in enumerate(files.items(), start=1):
        image = made if isinstance(made, Image.Image) else Image.fromarray(made)
        image.save(root / "train" / name)
        images.append({"id": number, "file_name": name, "width": image.width, "height": image.height})
        box = [0, 0, min(8, image.width), min(8, image.height)]
        objects.append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": box, "area": box[2] * box[3]}
        )
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cell"}]}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return root


def told(root: Path, *kinds: str) -> list[Fault]:
    return [f for f in examine(root, workers=0).faults if f.kind in kinds]


def noise(levels: tuple[int, int], dtype: type = np.uint16) -> np.ndarray:
    return np.random.default_rng(1).integers(*levels, (24, 32)).astype(dtype)


def test_pictures_that_become_black_white_or_flat_are_named(tmp_path):
    bright = noise((60_000, 65_535))
    dark = noise((100, 5000))
    dark[0, 0] = 65_535  # one hot pixel
    flat = noise((30_000, 31_000))  # as radiometric thermal cameras write
    files = {
        "fine.png": (RAMP * 257).astype(np.uint16),
        "white.png": bright,
        "dark.tif": dark,
        "flat.tif": flat,
    }
    found = told(coco(tmp_path / "set", files), "few_levels")
    assert {(f.severity, f.file) for f in found} == {
        ("warning", f"train/{name}") for name in ("white.png", "dark.tif", "flat.tif")
    }
    for name, word in (("white", "nearly white"), ("dark", "nearly black"), ("flat", "hardly any contrast")):
        assert word in next(f.message for f in found if name in f.file)


def test_colours_of_16_bits_that_use_12_are_told_as_black(tmp_path):
    """PIL hands out the upper byte of such colours; what is below is gone before we see it."""
    root = coco(tmp_path / "set", {"a.png": Image.new("RGB", (32, 24))})

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    pixels = np.repeat((RAMP * 16).astype(">u2")[..., None], 3, axis=2)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", 32, 24, 16, 2, 0, 0, 0)
    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    (root / "train" / "a.png").write_bytes(png)
    [fault] = told(root, "few_levels")
    assert "nearly black" in fault.message


def test_depths_that_differ_in_one_set_are_told_once(tmp_path):
    twelve, sixteen = (RAMP * 16).astype(np.uint16), (RAMP * 257).astype(np.uint16)
    files = {"a.png": twelve, "b.png": twelve + 1, "c.png": sixteen}
    [fault] = told(coco(tmp_path / "mixed", files), "mixed_bit_depth")
    assert fault.severity == "warning"
    assert "2 as 12 bits (e.g. train/a.png), 1 as 16 bits (e.g. train/c.png)" in fault.message
    assert told(coco(tmp_path / "alike", {"a.png": twelve, "b.png": twelve + 1}), "mixed_bit_depth") == []


def test_values_below_0_are_told(tmp_path):
    hounsfield = (RAMP * 10 - 1000).astype(np.int32)
    [fault] = told(coco(tmp_path / "set", {"ct.tif": hounsfield}), "lost_levels")
    assert "% of its values are negative" in fault.message


def test_a_cleaned_copy_keeps_every_mode_as_training_sees_it(tmp_path):
    lab = Image.fromarray(RAMP.astype(np.uint8)).convert("RGB").convert("LAB")
    files = {
        "lab.tif": lab,
        "deep.tif": (RAMP * 16).astype(np.uint16),
        "share.tif": (RAMP / 255).astype(np.float32),
    }
    root = coco(tmp_path / "set", files)
    found = examine(root, workers=0)
    assert [f for f in found.faults if f.severity == "error"] == []
    mend(found, tmp_path / "out")
    for name in ("lab.png", "deep.png", "share.png"):
        with Image.open(tmp_path / "out" / "train" / name) as image:
            assert np.abs(np.asarray(image.convert("L")).astype(int) - RAMP.astype(int)).max() < 6


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_among_the_images_is_told_and_not_read(tmp_path):
    root = coco(tmp_path / "set", {"a.png": RAMP.astype(np.uint8), "b.png": RAMP.astype(np.uint8)})
    (root / "train" / "b.png").unlink()
    os.mkfifo(root / "train" / "b.png")
    faults = [f for f in examine(root, workers=0).faults if f.severity == "error"]
    assert [f.file for f in faults] == ["train/b.png"]
    assert "no regular file" in faults[0].message


def test_long_strips_are_named(tmp_path):
    found = told(coco(tmp_path / "set", {"a.png": Image.new("RGB", (1200, 5))}), "extreme_aspect")
    assert [(f.severity, f.file) for f in found] == [("warning", "train/a.png")]


def test_a_strip_is_not_made_huge_to_cut_a_piece_from_it():
    """DETR's second branch resizes the shorter side to 400 and more whatever the longer one becomes."""
    for seed in range(12):
        size = (1, 60_000)
        for step in draw_detr(Random(seed), size, 1333):
            size = step.size_after(size)
            assert size[0] * size[1] <= MOST_PIXELS
            assert min(size) >= 1
