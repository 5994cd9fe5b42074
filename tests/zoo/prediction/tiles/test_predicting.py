"""`predict` in tiles, from pixels to boxes: a module that finds blobs stands in for the network."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from blob_detector import blob_module, painted
from PIL import Image
from registry_case import LABELS

import zoo.runs.subject
from zoo.cli.main import run_command
from zoo.contract.preprocess import InputContract
from zoo.contract.tiles import Tiles
from zoo.detector import Detector

SIDE = 64
INPUT = InputContract(resize="stretch", size=(SIDE, SIDE))
SIZE = (150, 200)


def spread(size=SIZE, side=5, step=17):
    """Small objects all over the image, also on every seam; with one that is larger than a tile."""
    small = [
        (n % 2, (x, y, x + side, y + side))
        for n, (y, x) in enumerate(
            (y, x) for y in range(1, size[0] - side, step) for x in range(1, size[1] - side, step)
        )
    ]
    large = (2, (40, 30, 160, 120))
    return [*small, large]


def found_in(prediction):
    return sorted(
        (LABELS.head_of_source[i], tuple(round(v) for v in box))
        for i, box in zip(prediction.source_ids, prediction.boxes_xyxy, strict=True)
    )


@pytest.fixture
def detector():
    return Detector(blob_module(INPUT), "blobs")


@pytest.mark.parametrize("backend", ["fast", "pil"])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_every_object_is_found_once_at_its_place(backend, overlap):
    detector = Detector(blob_module(INPUT.with_backend(backend)), "blobs")
    *small, large = objects = spread()
    image = np.zeros((*SIZE, 3), dtype=np.uint8)
    for label, (x0, y0, x1, y1) in objects:
        image[y0:y1, x0:x1, label] = 255
    prediction = detector.predict(image, tiles=SIDE, tile_overlap=overlap)
    assert found_in(prediction)[:-1] == sorted(small)
    label, box = found_in(prediction)[-1]
    assert label == large[0]
    assert np.abs(np.subtract(box, large[1])).max() <= 2, "of the whole image, 3 pixels to 1"
    assert prediction.tiles == Tiles(size=(SIDE, SIDE), overlap=overlap)
    assert prediction.to_dict()["tiles"]["views"] == prediction.views == len(prediction.tiles.cut(*SIZE)) + 1


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (20, 30), (64, 64), (64, 65), (300, 40)])
@pytest.mark.parametrize("given", [64, "64", (48, 64), "33x47"])
def test_images_of_any_shape_are_cut(detector, size, given):
    width = min(6, size[1])
    objects = [(0, (size[1] - width, size[0] // 2, size[1], size[0] // 2 + 1)), (1, (0, 0, width, 1))]
    if size[0] < 3:
        objects = objects[:1]
    prediction = detector.predict(painted(size, objects), tiles=given)
    assert len(prediction) >= len(objects)
    assert prediction.size == size
    assert prediction.views == 1 or prediction.views > 2


def test_an_image_not_larger_than_a_tile_is_looked_at_once_and_as_ever(detector):
    image = painted((60, 50), [(0, (5, 5, 20, 20)), (1, (30, 40, 45, 55))])
    cut, plain = detector.predict(image, tiles=64), detector.predict(image)
    assert cut.views == 1
    assert sorted(cut.boxes_xyxy) == sorted(plain.boxes_xyxy)
    assert sorted(cut.scores) == pytest.approx(sorted(plain.scores))
    assert "tiles" not in plain.to_dict()


def test_a_photograph_with_an_orientation_is_cut_upright(detector, tmp_path):
    objects = [(0, (150, 20, 155, 25)), (1, (10, 120, 15, 125))]
    upright = painted(SIZE, objects)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    prediction = detector.predict(tmp_path / "turned.png", tiles=SIDE)
    assert found_in(prediction) == sorted(objects)
    assert prediction.size == SIZE


def test_a_tensor_a_picture_and_a_list_give_the_same(detector):
    image = painted(SIZE, [(0, (150, 20, 155, 25)), (1, (60, 60, 70, 70))])
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    one = detector.predict(image, tiles=SIDE)
    assert one == detector.predict(tensor, tiles=SIDE)
    assert [one, one] == detector.predict([image, tensor], tiles=SIDE)


def test_a_model_trained_in_tiles_predicts_in_them_unless_told_otherwise():
    tiles = Tiles(size=(SIDE, 48), overlap=0.3)
    detector = Detector(blob_module(INPUT.with_tiles(tiles)), "blobs")
    image = painted(SIZE, [(0, (150, 20, 152, 22))])
    assert detector.predict(image).tiles == tiles
    assert detector.predict(image, tile_overlap=0.5).tiles == Tiles(size=(SIDE, 48), overlap=0.5)
    assert detector.predict(image, tiles=100).tiles == Tiles(size=(100, 100), overlap=0.2)
    assert detector.predict(image, tiles="none").tiles is None


def test_what_is_no_tile_is_refused(detector):
    image = painted((20, 20), [])
    for arguments, words in (
        ({"tiles": "big"}, "as in 640"),
        ({"tiles": 8}, "at least 16"),
        ({"tiles": 64, "tile_overlap": 1.0}, "0 to 0.75"),
        ({"tiles": 64, "tile_overlap": -0.1}, "0 to 0.75"),
        ({"tile_overlap": 0.3}, "give their side too"),
        ({"tiles": "none", "tile_overlap": 0.3}, "give their side too"),
    ):
        with pytest.raises(ValueError, match=words):
            detector.predict(image, **arguments)


def test_a_model_with_masks_says_that_only_boxes_are_merged(detector):
    detector.module.instances = object()
    with pytest.raises(ValueError, match="blobs predicts masks, and over the seams of tiles only boxes"):
        detector.predict(painted((20, 20), []), tiles=64)


def test_the_command_says_how_images_are_cut(detector, tmp_path, monkeypatch, capsys):
    objects = [(0, (150, 20, 155, 25)), (1, (60, 60, 70, 70))]
    painted(SIZE, objects).save(tmp_path / "a.png")
    monkeypatch.setattr(zoo.runs.subject, "load", lambda model, registry: detector)
    command = ["predict", "blobs", str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
    assert run_command([*command, "--tiles", "64", "--tile-overlap", "0.25"]) == 0
    out = capsys.readouterr().out
    assert "tiles       64x64, overlap 0.25: 12 and the whole image" in out
    assert out.count("Detected") == 2
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert written["predictions"][0]["tiles"] == {"size": [64, 64], "overlap": 0.25, "views": 13}
    assert run_command([*command, "--tiles", "64", "--tile-overlap", "1"]) == 2
    assert capsys.readouterr().err.startswith("error: the overlap of tiles is 1")
    assert run_command(command) == 0
    assert "tiles" not in capsys.readouterr().out
