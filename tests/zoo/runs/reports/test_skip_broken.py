"""Data with errors: refused by what scores models, with a way out that works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from blob_detector import blob_module, painted

import zoo
from zoo.cli.main import run_command
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.detector import Detector
from zoo.runs import recipes
from zoo.runs.subject import with_data

LABELS = LabelMap.contiguous(["red", "green", "blue"], [1, 2, 3])
INPUT = InputContract(resize="stretch", size=(64, 64))


@pytest.fixture
def root(tmp_path) -> Path:
    """Two images of a val split, and one that is not there."""
    (tmp_path / "set" / "val").mkdir(parents=True)
    for number in range(2):
        painted((64, 64), []).save(tmp_path / "set" / "val" / f"{number}.png")
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 64} for n in range(3)],
        "annotations": [
            {"id": n + 1, "image_id": n, "category_id": 1, "bbox": [8, 8, 20, 20], "area": 400, "iscrowd": 0}
            for n in range(3)
        ],
        "categories": [{"id": k, "name": LABELS.name_of_head[k - 1]} for k in (1, 2, 3)],
    }
    (tmp_path / "set" / "instances_val.json").write_text(json.dumps(content))
    (tmp_path / "results.json").write_text("[]")
    return tmp_path / "set"


@pytest.mark.parametrize("command", ["validate blobs", "evaluate blobs", "evaluate --predictions RESULTS",
                                     "compare blobs blobs", "compare blobs RESULTS"])  # fmt: skip
def test_the_way_out_is_one(root, monkeypatch, capsys, command):
    detector = Detector(blob_module(INPUT, LABELS), "blobs")
    monkeypatch.setattr(zoo.runs.evaluate, "load", lambda model, registry: detector)
    words = command.replace("RESULTS", str(root.parent / "results.json")).split()
    words += ["--data", str(root), "--output", str(root.parent / "out")]
    assert run_command(words) == 2
    told = capsys.readouterr().err
    assert "2.png" in told
    assert f"--skip-broken of zoo validate, test, {'evaluate and compare'}" in told
    assert run_command([*words, "--skip-broken"]) == 0
    [written] = sorted((root.parent / "out").glob("*.json"))
    numbers = json.loads(written.read_text())
    assert 2 in (numbers.get("images"), numbers.get("images_scored"), numbers.get("val", {}).get("images"))


def test_a_recipe_keeps_it_when_its_data_are_replaced(root):
    recipe = recipes.read("rt_detr/tiny", {"data.skip_broken": True})
    assert with_data(recipe, root)["data"]["init_args"]["skip_broken"] is True
    assert "skip_broken" not in with_data(recipes.read("rt_detr/tiny"), root)["data"]["init_args"]
