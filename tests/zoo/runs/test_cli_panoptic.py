"""DETR panoptic through the command line: two stages, scores of boxes, masks and segments, and a user's own data.

Here for panoptic_case, beside which it lies.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from empty_store import put_empty_store
from panoptic_case import SMALL, panoptic_folder
from PIL import Image

from zoo.cli.main import run_command
from zoo.contract.preprocess import InputContract
from zoo.registry.store import LocalRegistry
from zoo.runs import mask_data, recipes
from zoo.runs.finetune import Choices, complete_recipe, fit_to_data, read_data, starting_point
from zoo.runs.subject import with_data


@pytest.fixture(autouse=True)
def _store(tmp_path):
    put_empty_store(tmp_path / "mlruns")


def instance_folder(root: Path, outlines: bool = True) -> Path:
    """COCO json with one polygon or one bare box an image."""
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        made: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
        for i in range(4):
            Image.new("RGB", (64, 64), (i * 40, 90, 200)).save(root / split / f"{split}{i}.jpg")
            made["images"].append({"id": i, "file_name": f"{split}{i}.jpg", "height": 64, "width": 64})
            row: dict[str, Any] = {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [8, 8, 24, 30]}
            row |= {"area": 720, "iscrowd": 0}
            if outlines:
                row["segmentation"] = [[8, 8, 32, 8, 32, 38, 8, 38]]
            made["annotations"].append(row)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(made))
    return root


def small(key: str, folder: Path, **data: Any) -> str:
    """A published recipe with small parts on a folder of ours, as a file."""
    recipe = recipes.load(recipes.resolve(key))
    recipe["model"]["init_args"] |= SMALL
    recipe["model"]["init_args"]["schedule"]["global_batch_size"] = 2
    arguments = recipe["data"]["init_args"]
    arguments |= {
        "root": str(folder),
        "num_workers": 0,
        "ap_objects": "panoptic",
        "train_transform": "none",
        **data,
    }
    arguments["input"] |= {"resize": "stretch", "size": [64, 64]}
    recipe["trainer"] |= {"max_epochs": 1, "accelerator": "cpu", "devices": 1}
    path = Path(f"{key.rpartition('/')[2]}.yaml")
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return str(path)


def test_box_stage_mask_stage_and_evaluation_from_the_registry(tmp_path, capsys, caplog):
    folder = panoptic_folder(tmp_path / "data")
    box = small("detr/r50_panoptic_box_coco_300e", folder)
    assert run_command(["fit", "--config", box, "--output", "box", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert "segm" not in document["val"]  # no mask head, so nothing to say
    name = "detr_r50_panoptic_box.coco_300e"
    assert run_command(["publish", "box", "--name", name]) == 0
    mask = small("detr/r50_panoptic_coco_25e", folder)
    assert run_command(["fit", "--config", mask, "--output", "mask", "--json"]) == 0
    said = capsys.readouterr()
    assert f"weights from {name}" in said.err
    document = json.loads(said.out[said.out.index("{") :])
    scores = document["val"]["panoptic"]
    assert 0 <= scores["PQ"] <= 1
    assert scores["protocol"]["padding"] == "no image had any"
    assert scores["protocol"]["score_threshold"] == 0.85
    assert document["val"]["segm"]["protocol"]["iou_type"] == "segm"
    assert {"AP", "AP50", "interval", "per_class"} <= set(document["val"]["segm"])
    assert "padding: no image had any" in said.err
    report = json.loads(Path("mask/report.json").read_text())
    assert (report["panoptic"]["PQ"], report["segm"]["AP"]) == (scores["PQ"], document["val"]["segm"]["AP"])
    assert "AP of masks" in Path("mask/report.html").read_text()
    assert run_command(["publish", "mask", "--name", "detr_mine.mine"]) == 0
    measured = LocalRegistry().manifest(reference("detr_mine.mine")).to_dict()["measured"]
    if measured is not None:  # there is one only in a git checkout
        assert measured["PQ"] == scores["PQ"]
        assert measured["segm_AP"] == document["val"]["segm"]["AP"]
        assert measured["protocol"]["panoptic"] == scores["protocol"]
    capsys.readouterr()
    assert run_command(["validate", "detr_mine.mine", "--data", str(folder), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["val"]["panoptic"]["PQ"] == pytest.approx(scores["PQ"])
    assert again["val"]["AP"] == pytest.approx(document["val"]["AP"])


def reference(name: str) -> Any:
    from zoo.registry.names import parse_reference

    return parse_reference(name)


def build(model: str, data: Path, **choices: Any) -> tuple[dict[str, Any], list[str]]:
    start = starting_point(model, None)
    chosen = Choices(model=model, data=data, **choices)
    recipe, notes = complete_recipe(start, chosen)
    return recipe, notes + fit_to_data(recipe, read_data(recipe), chosen)


def test_a_recipe_on_another_panoptic_folder_keeps_segments_and_ids(tmp_path):
    folder = panoptic_folder(tmp_path / "data")
    for key in ("detr/r50_panoptic_coco_25e", "detr/r50_panoptic_box_coco_300e"):
        recipe = recipes.load(recipes.resolve(key))
        moved = with_data(recipe, folder)
        splits = {"train_split": "train2017", "eval_split": "val2017"}
        arguments = {**recipe["data"]["init_args"], "root": str(folder), **splits}
        assert moved["data"] == {"class_path": recipe["data"]["class_path"], "init_args": arguments}
        assert recipe["data"]["init_args"]["root"] != str(folder)


def test_finetune_takes_panoptic_data_as_they_are(tmp_path):
    recipe, notes = build("detr_r50_panoptic", panoptic_folder(tmp_path / "data"))
    data = recipe["data"]
    assert data["class_path"] == "datamodules.panoptic.CocoPanopticDataModule"
    assert (data["init_args"]["train_split"], data["init_args"]["eval_split"]) == ("train2017", "val2017")
    assert recipe["init_from"] == {"source": "detr_r50_panoptic.coco_25e", "head": "by_class_name"}
    assert recipe["model"]["init_args"]["num_classes"] == 3
    assert recipe["model"]["init_args"]["panoptic"]["score_threshold"] == 0.85
    assert recipe["checkpoint"]["monitor"] == "val/PQ"
    # the frozen detector of the published stage would never learn new classes
    rules = recipe["model"]["init_args"]["schedule"]["rules"]
    assert [r["match"] for r in rules] == [r"^backbone\.(conv1|layer1)\.", r"^backbone\."]
    assert any("things and stuff" in note for note in notes)


def test_finetune_takes_outlines_and_learns_instances(tmp_path, capsys):
    folder = instance_folder(tmp_path / "mine")
    recipe, _ = build("detr_r50_panoptic", folder)
    assert recipe["data"]["init_args"]["masks"] is True
    assert recipe["model"]["init_args"]["panoptic"] is None
    assert recipe["checkpoint"]["monitor"] == "val/segm_AP"
    words = [
        "finetune",
        "detr_r50_panoptic",
        "--data",
        str(folder),
        "--weights",
        "random",
        "--max-steps",
        "2",
    ]
    words += ["--image-size", "64", "--batch-size", "2", "--output", "run", "--name", "detr_mine.masks"]
    for part, values in SMALL.items():
        for key, value in values.items():
            if key not in ("weights", "freeze_stem", "frozen_norm"):
                words += [f"--model.{part}.{key}", json.dumps(value).strip('"')]
    assert run_command([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["registered"] == "detr_mine.masks:1"
    assert document["val"]["segm"]["AP"] is not None
    assert "panoptic" not in document["val"]


def test_masks_are_evaluated_on_a_folder_without_images_to_train_on(tmp_path):
    contract = InputContract(resize="shortest", size=(64, 64))
    common = {
        "input": contract, "train_transform": "none", "batch_size": 1, "eval_batch_size": 1, "num_workers": 0, "seed": 0
    }  # fmt: skip
    outlines, segments = instance_folder(tmp_path / "i"), panoptic_folder(tmp_path / "p")
    for root in (outlines, segments):
        for path in root.rglob("*train*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        data = mask_data.evaluation_data(str(root), common, None)
        data.setup("validate")
        (batch,) = itertools.islice(data.val_dataloader(), 1)
        assert len(data.read().splits["val"]) == 4
        assert (batch.panoptic is None) == (root == outlines)
    with pytest.raises(ValueError, match="none for train"):
        mask_data.panoptic_splits(segments)


def test_finetune_refuses_boxes_without_outlines_and_says_what_to_do(tmp_path, capsys):
    folder = instance_folder(tmp_path / "bare", outlines=False)
    assert run_command(["finetune", "detr_r50_panoptic", "--data", str(folder)]) == 2
    [line] = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert "8 of 8 objects have no outline" in line
    assert "a model without masks, e.g. detr_r50" in line


def test_a_frozen_class_head_is_let_loose_for_new_classes(tmp_path):
    from zoo.runs.mask_data import suit_model

    recipe = recipes.load(recipes.resolve("detr/r50_panoptic_coco_25e"))
    notes = suit_model(recipe)
    assert recipe["model"]["init_args"]["schedule"]["rules"] == []
    assert "instead of being frozen" in notes[0]


def test_truth_that_the_data_lack_is_said_and_the_other_scores_go_on(tmp_path, capsys, caplog):
    folder = instance_folder(tmp_path / "mine")
    words = small("detr/r50_panoptic_coco_25e", folder)
    recipe = yaml.safe_load(Path(words).read_text())
    keep = (
        "root",
        "input",
        "train_transform",
        "batch_size",
        "eval_batch_size",
        "num_workers",
        "seed",
        "masks",
    )
    arguments = {key: recipe["data"]["init_args"][key] for key in keep}
    recipe["data"] = {"class_path": "datamodules.custom.CustomDataModule", "init_args": arguments}
    recipe["model"]["init_args"]["num_classes"] = 1
    recipe["init_from"] = {"source": "none", "head": "keep"}
    recipe["checkpoint"]["monitor"] = "val/segm_AP"
    Path(words).write_text(yaml.safe_dump(recipe, sort_keys=False))
    with caplog.at_level(logging.WARNING, logger="zoo.evaluation.mask_scores"):
        assert run_command(["fit", "--config", words, "--output", "run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["val"]["segm"]["images"] == 4
    assert "panoptic" not in document["val"]
    [message] = {r.message for r in caplog.records if "PQ" in r.message}
    assert "the data have no panoptic segments" in message
