from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from datamodules.doctor import check
from datamodules.shapes import CLASSES, MAX_OBJECTS, MIN_CONTRAST, generate_shapes, paint_image


def test_is_a_clean_coco_folder(tmp_path):
    seen = []
    summary = check(
        generate_shapes(tmp_path, 40, 10, seed=0, size=64),
        progress=lambda done, all: seen.append((done, all)),
    )
    assert summary.format == "coco"
    assert [(s.images, s.empty) for s in summary.splits.values()] == [(40, 0), (10, 0)]
    assert [c.name for c in summary.classes] == list(CLASSES)
    assert all(c.counts["train"] > 5 for c in summary.classes)
    assert summary.faults == []
    assert seen[-1] == (50, 50)
    assert json.loads(json.dumps(summary.to_dict()))["classes"][0]["name"] == "circle"


def test_is_a_function_of_the_seed(tmp_path):
    folders = [generate_shapes(tmp_path / name, 3, 1, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    files = [[p.read_bytes() for p in sorted(f.rglob("*")) if p.is_file()] for f in folders]
    assert files[0] == files[1]
    assert files[0] != files[2]
    assert (folders[0] / "train/00000.png").read_bytes() != (folders[0] / "val/00000.png").read_bytes()


def test_more_images_do_not_change_the_first(tmp_path):
    few, many = generate_shapes(tmp_path / "a", 2, 1, 0), generate_shapes(tmp_path / "b", 4, 1, 0)
    assert (few / "train/00001.png").read_bytes() == (many / "train/00001.png").read_bytes()


def test_boxes_are_tight_around_what_stands_out():
    tight = 0
    for seed in range(60):
        image, objects = paint_image(np.random.default_rng(seed), 128)
        assert 1 <= len(objects) <= MAX_OBJECTS
        pixels = np.asarray(image).astype(int)
        background = np.median(pixels.reshape(-1, 3), axis=0)
        stands_out = np.abs(pixels - background).max(axis=-1) >= MIN_CONTRAST / 2
        for _, (x0, y0, x1, y1) in objects:
            assert 0 <= x0 < x1 <= 128
            assert 0 <= y0 < y1 <= 128
        if len(objects) == 1:
            rows, columns = np.flatnonzero(stands_out.any(1)), np.flatnonzero(stands_out.any(0))
            found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert np.abs(found - np.array(objects[0][1])).max() <= 1.5
            tight += 1
        outside = np.ones((128, 128), dtype=bool)
        for _, (x0, y0, x1, y1) in objects:
            outside[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = False
        assert not stands_out[outside].any()
    assert tight >= 5


def test_refuses_what_cannot_be_drawn(tmp_path):
    with pytest.raises(ValueError, match="0 training"):
        generate_shapes(tmp_path, 0, 1, 0)


def test_images_are_rgb(tmp_path):
    root = generate_shapes(tmp_path, 1, 1, 0, size=32)
    with Image.open(root / "train/00000.png") as image:
        assert (image.mode, image.size) == ("RGB", (32, 32))
