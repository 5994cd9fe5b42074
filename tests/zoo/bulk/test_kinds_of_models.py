"""Many images by models with masks, panoptic ones and exported files; images are read as evaluation reads them."""

import json

import numpy as np
import pytest
import torch
from exported_case import written
from mask_case import LABELS, mask_checkpoint
from PIL import Image
from pycocotools.coco import COCO
from registry_case import tiny_checkpoint

from datamodules.formats.detect import read
from datamodules.loading.datasets import EvaluationDataset
from datamodules.shapes import generate_shapes
from zoo.bulk.batches import ReadImages
from zoo.bulk.images import open_images
from zoo.cli.main import run_command
from zoo.contract.preprocess import InputContract
from zoo.contract.segments import ids_of_png
from zoo.runs.subject import load


@pytest.fixture(autouse=True)
def _as_many_threads_as_here(monkeypatch):
    """Sums of other numbers of threads differ in their last digits."""
    monkeypatch.setenv("ZOO_THREADS", str(torch.get_num_threads()))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    drawn = np.random.default_rng(0)
    for name, size in (("a.png", (60, 80)), ("b.png", (50, 70)), ("c.png", (60, 80))):
        Image.fromarray(drawn.integers(0, 255, (*size, 3), dtype=np.uint8)).save(root / name)
    return root


def predict(model, folder, output, *options, code=0):
    words = [
        "predict",
        str(model),
        "--data",
        str(folder),
        "--output",
        str(output),
        "--workers",
        "0",
        *options,
    ]
    assert run_command(words) == code


def test_masks_are_run_lengths_of_the_image(folder, tmp_path):
    mask_checkpoint(tmp_path / "m.ckpt", panoptic=None)
    predict(tmp_path / "m.ckpt", folder, tmp_path / "r.json", "--threshold", "0.1", "--batch-size", "2")
    rows = [row for row in json.loads((tmp_path / "r.json").read_text()) if row["image_id"] == 2]
    alone = load(tmp_path / "m.ckpt").predict(folder / "b.png", 0.1)
    assert len(rows) > 1
    assert [row["score"] for row in rows] == alone.scores
    assert [row["segmentation"] for row in rows] == alone.masks
    found = COCO(str(tmp_path / "r.json.images.json")).loadRes(str(tmp_path / "r.json"))
    assert found.annToMask(found.loadAnns(found.getAnnIds(imgIds=[2]))[0]).shape == (50, 70)


def test_a_panoptic_model_gives_cocos_panoptic_form(folder, tmp_path, capsys):
    mask_checkpoint(tmp_path / "p.ckpt")
    predict(tmp_path / "p.ckpt", folder, tmp_path / "r.json", "--threshold", "0.2")
    document = json.loads((tmp_path / "r.json").read_text())
    assert [category["id"] for category in document["categories"]] == list(LABELS.source_ids)
    detector = load(tmp_path / "p.ckpt")
    for image, entry in zip(document["images"], document["annotations"], strict=True):
        found = detector.predict(folder / image["file_name"], 0.2).panoptic
        png, expected = found.to_coco(detector.label_map, image["id"], entry["file_name"])
        assert entry == expected
        ids = ids_of_png((tmp_path / "r" / entry["file_name"]).read_bytes())
        assert np.array_equal(ids, ids_of_png(png))
        assert ids.shape == (image["height"], image["width"])
    predict(tmp_path / "p.ckpt", folder, tmp_path / "r.parquet", code=2)
    assert "panoptic form alone" in capsys.readouterr().err
    predict(tmp_path / "p.ckpt", folder, tmp_path / "d.json")
    assert "threshold   0.85, of the model's panoptic rule" in capsys.readouterr().out


@pytest.mark.slow
def test_an_exported_file_is_a_model_too(folder, tmp_path):
    written(tmp_path / "x.onnx")
    predict(tmp_path / "x.onnx", folder, tmp_path / "r.json", "--threshold", "0")
    rows = json.loads((tmp_path / "r.json").read_text())
    alone = load(tmp_path / "x.onnx").predict(folder / "b.png", 0.0)
    assert [row["score"] for row in rows if row["image_id"] == 2] == alone.scores


@pytest.mark.parametrize(
    "resize", [{"resize": "stretch", "size": (32, 48)}, {"resize": "shortest", "size": (40, 60)}]
)
def test_images_are_read_as_an_evaluation_reads_them(tmp_path, resize):
    generate_shapes(tmp_path / "shapes", 1, 3, seed=0)
    contract, source = InputContract(**resize), read(tmp_path / "shapes")
    evaluated = EvaluationDataset(source.splits["val"], source.label_map(), contract)
    images = open_images(str(tmp_path / "shapes"), "val", "auto")
    mine = ReadImages(images, contract)
    assert len(images) == len(evaluated) == 3
    for number in range(3):
        sample, one = evaluated[number], mine[number].image
        assert torch.equal(one.resized, sample.image)
        assert (one.size, images.image_id(number)) == (sample.original_size, sample.image_id)


def test_a_damaged_image_in_a_shard_is_left_out(tmp_path, capsys):
    generate_shapes(tmp_path / "shapes", 1, 3, seed=0)
    assert run_command(["data", "shard", str(tmp_path / "shapes"), "--output", str(tmp_path / "shards")]) == 0
    [shard] = (tmp_path / "shards").glob("*.tar")
    content = bytearray(shard.read_bytes())
    second = content.index(b"\x89PNG", content.index(b"val/00001"))
    content[second + 60] ^= 255
    shard.write_bytes(content)
    tiny_checkpoint(tmp_path / "x.ckpt")
    predict(tmp_path / "x.ckpt", tmp_path / "shards", tmp_path / "r.json", "--threshold", "0", code=1)
    facts = json.loads((tmp_path / "r.json.images.json").read_text())
    assert len(facts["images"]) == 2
    [left_out] = facts["info"]["unreadable"]
    assert "is damaged: image val/00001" in left_out["reason"]
    assert "left out    val/00001" in capsys.readouterr().out
    shard.unlink()  # that is no fault of an image
    predict(tmp_path / "x.ckpt", tmp_path / "shards", tmp_path / "s.json", code=2)
