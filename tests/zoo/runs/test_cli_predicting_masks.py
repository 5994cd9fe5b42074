import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mask_case import LABELS, mask_checkpoint, scripted
from PIL import Image
from pycocotools import mask as coco_mask

from datamodules.formats import coco_panoptic
from zoo.cli.main import run_command
from zoo.contract.segments import PanopticSegmentation, ids_of_png
from zoo.training.module import DetectionModule


@pytest.fixture
def pictures(tmp_path) -> list[str]:
    """Two of one name, of different sizes."""
    paths = []
    for folder, size in (("x", (80, 40)), ("y", (50, 70))):
        (tmp_path / folder).mkdir()
        paths.append(str(tmp_path / folder / "pet.png"))
        Image.new("RGB", size, (90, 140, 60)).save(paths[-1])
    return paths


def run(pictures, capsys, panoptic, *options) -> dict:
    mask_checkpoint("a.ckpt", **({} if panoptic else {"panoptic": None}))
    capsys.readouterr()
    assert run_command(["predict", "a.ckpt", *pictures, "--output", "out", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)  # one document and nothing else


def test_panoptic_files_agree(pictures, capsys, monkeypatch):
    monkeypatch.setattr(DetectionModule, "predictions", lambda module, batch: scripted(batch))
    document = run(pictures, capsys, True)
    assert document["files"] == {"panoptic": "out/panoptic.json"}
    written = json.loads(Path("out/panoptic.json").read_text())
    assert [(i["id"], i["height"], i["width"]) for i in written["images"]] == [(1, 40, 80), (2, 70, 50)]
    assert [c["id"] for c in written["categories"]] == list(LABELS.source_ids)
    assert written["categories"][2] == {
        "id": 7,
        "name": "grass-merged",
        "isthing": 0,
        "color": [152, 251, 152],
    }
    assert [a["file_name"] for a in written["annotations"]] == ["pet.png", "pet_2.png"]
    for image, entry, prediction in zip(
        written["images"], written["annotations"], document["predictions"], strict=True
    ):
        assert entry["image_id"] == image["id"] == prediction["image_id"]
        png = Path("out/panoptic", entry["file_name"]).read_bytes()
        ids = ids_of_png(png)
        assert ids.shape == (image["height"], image["width"])
        listed = {row["id"]: row for row in entry["segments_info"]}
        assert set(np.unique(ids)) - {0} == set(listed) == {1, 2, 3}
        assert [row["category_id"] for row in entry["segments_info"]] == [2, 3, 8]
        for number, row in listed.items():
            rows, columns = np.nonzero(ids == number)
            assert row["area"] == len(rows)
            x, y = columns.min(), rows.min()
            assert row["bbox"] == [x, y, columns.max() - x + 1, rows.max() - y + 1]
        back = PanopticSegmentation.from_coco(png, entry["segments_info"], LABELS)
        assert torch.equal(back.ids, torch.from_numpy(ids))
        assert [s.area for s in back.segments] == [
            segment["area"] for segment in prediction["panoptic"]["segments"]
        ]
        assert Path(prediction["picture"]).name in ("pet_segments.png", "pet_2_segments.png")
        assert Image.open(prediction["picture"]).width >= image["width"]


def test_what_is_written_is_read_as_a_data_set(pictures, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(DetectionModule, "predictions", lambda module, batch: scripted(batch))
    run(pictures[:1], capsys, True)
    source = coco_panoptic.assemble(tmp_path, {"val": tmp_path / "out" / "panoptic.json"}, verify=False)
    assert len(source.splits["val"].objects(0).source_ids) == 3
    assert {fault.kind for fault in source.faults} <= {"file_name"}  # the path is that of the call


def test_a_threshold_holds_for_segments(pictures, capsys, monkeypatch):
    monkeypatch.setattr(DetectionModule, "predictions", lambda module, batch: scripted(batch))
    document = run(pictures[:1], capsys, True, "--threshold", "0.4")
    segments = document["predictions"][0]["panoptic"]
    assert segments["threshold"] == 0.4
    assert [s["label"] for s in segments["segments"]] == ["cat", "dog", "sky-other-merged", "grass-merged"]


def test_instances_are_written_as_results_of_coco(pictures, capsys, monkeypatch):
    monkeypatch.setattr(DetectionModule, "predictions", lambda module, batch: scripted(batch))
    document = run(pictures, capsys, False, "--threshold", "0.8")
    assert document["files"] == {"results": "out/results.json"}
    results = json.loads(Path("out/results.json").read_text())
    assert [(r["image_id"], r["category_id"]) for r in results] == [
        (1, 2), (1, 3), (1, 8), (2, 2), (2, 3), (2, 8)
    ]  # fmt: skip
    assert results[0]["bbox"] == pytest.approx([0, 10, 40, 20])
    mask = coco_mask.decode(results[0]["segmentation"])
    assert mask.shape == (40, 80)
    assert mask[20, 20] == 1
    assert mask[20, 60] == 0
    assert not Path("out/panoptic.json").exists()
    with Image.open("out/pet_detections.png") as drawn:
        tinted = np.asarray(drawn.resize((80, 40)))[24, 20]
    assert np.abs(tinted.astype(int) - (np.array([90, 140, 60]) + np.array([220, 20, 60])) / 2).max() < 12


def test_a_network_without_a_script_and_nothing_found(pictures, capsys):
    document = run(pictures[:1], capsys, True, "--threshold", "1")
    assert document["predictions"][0]["panoptic"] == {"threshold": 1.0, "segments": []}
    written = json.loads(Path("out/panoptic.json").read_text())
    assert written["annotations"][0]["segments_info"] == []
    assert not ids_of_png(Path("out/panoptic/pet.png").read_bytes()).any()


def test_segments_are_told_in_words(pictures, capsys, monkeypatch):
    monkeypatch.setattr(DetectionModule, "predictions", lambda module, batch: scripted(batch))
    mask_checkpoint("a.ckpt")
    assert run_command(["predict", "a.ckpt", pictures[0], "--output", "out"]) == 0
    said = capsys.readouterr().out
    share = (ids_of_png(Path("out/panoptic/pet.png").read_bytes()) == 1).mean()
    assert f"Segment 1: cat with confidence 0.950 on {100 * share:.1f} % of the image" in said
    assert "Detected" not in said
    assert "out/panoptic.json" in said
