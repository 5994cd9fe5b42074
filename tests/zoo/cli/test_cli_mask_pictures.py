"""Masks and segments in the pictures of `zoo data show` and of a training's report."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mask_case import INPUT, LABELS, mask_module, scripted
from PIL import Image

from datamodules.formats.detect import read
from zoo.cli.main import run_command
from zoo.contract.batch import Annotations, Sample, collate
from zoo.contract.preprocess import InputContract
from zoo.contract.segments import PanopticSegmentation, Segment, png_of_ids
from zoo.pictures.detections import GAP
from zoo.pictures.painting import LEGIBLE
from zoo.runs.report import write_gallery
from zoo.runs.show import painted, painted_segments

SIZE = (60, 80)


def image_file(root: Path) -> dict:
    root.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1], (100, 100, 100)).save(root / "a.jpg", quality=100)
    return {"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}


def test_show_draws_polygons_as_masks(tmp_path):
    triangle = [10.0, 10.0, 50.0, 10.0, 10.0, 50.0]
    rows = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40], "area": 800, "iscrowd": 0,
         "segmentation": [triangle]},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [60, 40, 10, 10], "area": 100, "iscrowd": 0},
    ]  # fmt: skip
    document = {
        "images": [image_file(tmp_path / "set" / "train2017")],
        "annotations": rows,
        "categories": [{"id": 1, "name": "flag"}],
    }
    (tmp_path / "set" / "annotations").mkdir()
    (tmp_path / "set" / "annotations" / "instances_train2017.json").write_text(json.dumps(document))
    source = read(tmp_path / "set")
    image = Image.new("RGB", SIZE[::-1], (100, 100, 100))
    picture = np.asarray(painted(source.splits["train"], 0, image, source.label_map())).astype(int)
    scale = picture.shape[1] / SIZE[1]
    tinted = np.abs(picture - 100).max(axis=2) > 10
    assert tinted[round(20 * scale), round(20 * scale)]
    assert not tinted[round(45 * scale), round(45 * scale)]
    assert not tinted[round(45 * scale), round(65 * scale)]  # a box without an outline stays a box


def test_show_draws_panoptic_segments(tmp_path, capsys):
    root = tmp_path / "set"
    ids = np.zeros(SIZE, dtype=np.int32)
    ids[:30], ids[30:, :40] = 5, 300
    segments = [
        {"id": 5, "category_id": 8, "area": 2400, "bbox": [0, 0, 80, 30], "iscrowd": 0},
        {"id": 300, "category_id": 2, "area": 1200, "bbox": [0, 30, 40, 30], "iscrowd": 0},
    ]
    document = {
        "images": [image_file(root / "val2017")],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
        "categories": [
            {"id": 2, "name": "cat", "isthing": 1, "color": [220, 20, 60]},
            {"id": 8, "name": "sky", "isthing": 0, "color": [70, 130, 180]},
        ],
    }
    folder = root / "annotations" / "panoptic_val2017"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(png_of_ids(ids))
    folder.with_suffix(".json").write_text(json.dumps(document))
    source = read(root)
    image = Image.new("RGB", SIZE[::-1], (100, 100, 100))
    picture = np.asarray(painted_segments(source, "val", 0, image)).astype(int)
    scale = picture.shape[1] / SIZE[1]
    cat = picture[round(34 * scale), round(4 * scale)]
    assert np.abs(cat - (50 + np.array([220, 20, 60]) / 2)).max() <= 1
    assert (picture[round(45 * scale), round(60 * scale)] == 100).all()
    assert run_command(["data", "show", str(root), "--output", "g.png"]) == 0
    assert "1 of 1 images of val (coco_panoptic)" in capsys.readouterr().out


def batch():
    ids = torch.ones(SIZE, dtype=torch.int32)
    truth = PanopticSegmentation(ids, (Segment(1, 7, False, ids.numel()),))
    none = Annotations(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0).bool(), (0,)
    )
    labels, boxes = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)
    images = (torch.full((3, *size), 100, dtype=torch.uint8) for size in ((60, 80), (30, 40)))
    return collate([Sample(i, labels, boxes, n, SIZE, none, panoptic=truth) for n, i in enumerate(images)])


@pytest.mark.parametrize("panoptic", [True, False])
def test_the_gallery_of_a_report_shows_masks(tmp_path, monkeypatch, panoptic):
    module = mask_module() if panoptic else mask_module(None)
    module.adopt(LABELS, InputContract.from_dict(INPUT))
    monkeypatch.setattr(module, "predictions", scripted)
    data = SimpleNamespace(label_map=LABELS, input=module.input, val_dataloader=lambda: [batch()])
    path = write_gallery(SimpleNamespace(data=data, module=module, folder=tmp_path))
    with Image.open(path) as opened:
        sheet = np.asarray(opened).astype(int)
    scale = (sheet.shape[1] - 3 * GAP) / 2 / (2 * LEGIBLE + 3 * GAP)  # of one image's pair in the sheet

    def prediction(number, x, y):
        """The pixel at (x, y), in [0, 1] of an image, of what was predicted there; the truth is right of it."""
        left = GAP + number * (GAP + scale * (2 * LEGIBLE + 3 * GAP)) + scale * (GAP + x * LEGIBLE)
        top = GAP + scale * (GAP + 24 + y * LEGIBLE * 3 / 4)
        return sheet[round(top), round(left)]

    cat = 50 + np.array([220, 20, 60]) / 2
    assert np.abs(prediction(0, 0.2, 0.65) - cat).max() <= 3
    # the second image is the upper left quarter of its batch, the rest is padding; the cat fills its lower half
    assert np.abs(prediction(1, 0.8, 0.67) - cat).max() <= 3
    # the truth is grass, painted for segments only
    grass = 0.58 * 100 + 0.42 * np.array([152, 251, 152])
    assert ((np.abs(sheet - grass) <= 2).all(axis=2).sum() > 10000) == panoptic
