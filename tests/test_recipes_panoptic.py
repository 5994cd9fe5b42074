"""Contract over recipes/detr/*_panoptic_*: each number of both stages as published, or on a short list of ours.

What all recipes share is in test_every_recipe.py. The tables map a recipe's key to that of its size's entry in
tests/data/published_detr_panoptic.yaml.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe_numbers import DETR_FAMILIES, leaves, numbers

from zoo.registry.manifest import METRICS_OF_MASKS, read_manifest
from zoo.registry.store import BUILTIN_FOLDER
from zoo.training.module import build_module

ROOT = Path(__file__).resolve().parents[1]
EXTRACT: dict[str, Any] = yaml.safe_load((ROOT / "tests/data/published_detr_panoptic.yaml").read_text())
STAGES = {"box": "{}_panoptic_box_coco_300e", "mask": "{}_panoptic_coco_25e"}
CASES = [(size, stage) for size in EXTRACT for stage in STAGES]
each = pytest.mark.parametrize(("size", "stage"), CASES)
sizes = pytest.mark.parametrize("size", list(EXTRACT))

WHERE = {
    **DETR_FAMILIES,
    "data.num_classes": "num_classes",
    "model.no_object_weight": "loss.no_object_weight",
}
OF_STAGE = {
    "box": {
        "model.schedule.lr": "optimizer.lr",
        "model.schedule.rules.1.lr": "optimizer.lr_backbone",
        "model.schedule.drop_epochs.0": "stage1_boxes.lr_drop_epoch",
        "trainer.max_epochs": "stage1_boxes.epochs",
    },
    "mask": {
        "about.params": "params",
        "about.published.AP": "results.box_AP",
        **{f"about.published.{k}": f"results.{k}" for k in ("segm_AP", "PQ", "SQ", "RQ")},
        **{f"about.published.{k}_{g}": f"results.{k}_{g}" for k in ("PQ", "SQ", "RQ") for g in ("th", "st")},
        "model.mask_losses.focal": "loss.weights.mask_focal",
        "model.mask_losses.dice": "loss.weights.dice",
        "model.mask_threshold": "mask_threshold",
        "model.panoptic.score_threshold": "panoptic.score_threshold",
        "model.panoptic.min_area": "panoptic.min_area_px",
        "model.schedule.lr": "stage2_masks.lr",
        "model.schedule.drop_epochs.0": "stage2_masks.lr_drop_epoch",
        "trainer.max_epochs": "stage2_masks.epochs",
        "data.eval_batch_size": "recommended_batch_size",
    },
}
# numbers that no page prints, each with the reason it needs none
OURS = {
    "about.params": "the whole model's less the mask head's: below",
    "about.macs": "counted: test_every_manifest.py",
    "model.schedule.global_batch_size": "unpublished, and said so: below",
    "model.schedule.warmup_steps": "0, because no run has a warm-up: below",
    "model.schedule.final_factor": "1, because nothing decays but at the drop: below",
    "seed_everything": "official is 42 + rank: below",
    "data.seed": "official is 42 + rank: below",
    "data.batch_size": "the most a device takes at once",
    "data.eval_batch_size": "of the box stage: padding moves AP",
    "data.num_workers": "does not change a sample",
    "trainer.num_nodes": "does not change a step",
    "trainer.check_val_every_n_epoch": "does not change a step",
    "checkpoint.save_top_k": "does not change a step",
}


def path_of(size: str, stage: str) -> Path:
    return ROOT / "recipes" / "detr" / f"{STAGES[stage].format(size)}.yaml"


def load(size: str, stage: str) -> dict[str, Any]:
    recipe: dict[str, Any] = yaml.safe_load(path_of(size, stage).read_text())
    return recipe


def test_each_size_has_both_stages_and_no_other_recipe() -> None:
    found = {p.stem for p in (ROOT / "recipes").glob("*/*panoptic*.yaml")}
    assert found == {path_of(*case).stem for case in CASES}
    assert set(EXTRACT) == {"r50", "r50_dc5", "r101"}


@each
def test_each_number_is_the_published_one_or_named_as_ours(size: str, stage: str) -> None:
    entry = dict(leaves(EXTRACT[size]))
    found = numbers(load(size, stage))
    for key, where in {**WHERE, **OF_STAGE[stage]}.items():
        assert found.pop(key) == entry[where], f"{size} {stage}: {key} is not the published {where}"
    assert sorted(set(found) - set(OURS)) == [], "compared with nothing: map it, or give a reason in OURS"


@each
def test_switches_are_the_published_ones(size: str, stage: str) -> None:
    recipe, entry = load(size, stage), EXTRACT[size]
    model, data, trainer = recipe["model"]["init_args"], recipe["data"]["init_args"], recipe["trainer"]
    name, schedule = entry["backbone"]["name"], model["schedule"]
    weights = f"{name}_imagenet1k_v1" if stage == "box" else "random"
    assert model["backbone"] == {
        "name": name, "weights": weights, "freeze_stem": True, "frozen_norm": True,
        "dilate_last": entry["backbone"]["dilation_c5"],
    }  # fmt: skip
    assert (schedule["warmup_steps"], schedule["decay"], schedule["final_factor"]) == (0, "constant", 1.0)
    assert len(schedule["drop_epochs"]) == 1
    assert model["transformer"]["pre_norm"] is (entry["transformer"]["norm_style"] == "pre")
    assert set(entry["transformer"]["dropout"].values()) == {model["transformer"]["dropout"]}
    assert entry["outputs"] == model["num_classes"] + 1
    assert (data["labels"], data["train_transform"], data["ap_objects"]) == (
        "category_id",
        "detr",
        "instances",
    )
    assert data["masks"] is (stage == "mask")
    assert (data["input"]["resize"], data["input"]["padding"]) == ("shortest", "batch")
    assert f"{recipe['seed_everything']} + rank" == f"{data['seed']} + rank"
    assert entry["seed"].startswith(f"{data['seed']} + rank")
    assert (trainer["sync_batchnorm"], model["ema"]) == (entry["sync_bn"], entry["ema"])
    assert (trainer["precision"] == "32-true") is not entry["amp"]


@each
def test_what_is_unpublished_says_so(size: str, stage: str) -> None:
    text, recipe = path_of(size, stage).read_text(), load(size, stage)
    assert EXTRACT[size]["batch_total"] is None
    assert re.search(r"global_batch_size: 64 +# unpublished;", text)
    if stage == "box":
        assert "is not stated" in text.replace("\n#", "")
        assert recipe["about"]["published"] is None
        assert recipe["about"]["sources"] == []
    else:
        assert any("not stated" in line for line in recipe["about"]["trained_by"]["differs"])


@sizes
def test_the_second_stage_starts_from_the_first_and_trains_masks_alone(size: str) -> None:
    first, second = load(size, "box"), load(size, "mask")
    name = f"{first['about']['name']}.{first['about']['tag']}"
    assert second["init_from"] == {"source": name, "head": "keep"}
    assert name in path_of(size, "box").read_text().split("about:")[0]
    module = build_module(second["model"], backbone_weights="random")
    module.schedule.groups(module.network.named_parameters())
    learning = {n: p.numel() for n, p in module.network.named_parameters() if p.requires_grad}
    assert {n.split(".")[0] for n in learning} == {"bbox_attention", "mask_head"}
    assert sum(learning.values()) == EXTRACT[size]["mask_head_params"]
    total = sum(p.numel() for p in module.network.parameters())
    assert total == second["about"]["params"]
    assert first["about"]["params"] == total - EXTRACT[size]["mask_head_params"]
    same = {k: v for k, v in first["model"]["init_args"].items() if k not in ("backbone", "schedule")}
    assert {k: second["model"]["init_args"][k] for k in same} == same


@sizes
def test_manifest_has_the_published_scores_and_the_label_map_of_133_of_250(size: str) -> None:
    manifest = read_manifest(BUILTIN_FOLDER / f"detr_{size}_panoptic.coco_25e.yaml")
    results, published = EXTRACT[size]["results"], manifest.published
    assert published is not None
    assert published.AP == results["box_AP"]
    for name in METRICS_OF_MASKS:
        if name in results:
            assert getattr(published, name) == results[name]
    checkpoint = EXTRACT[size]["checkpoint"]
    assert manifest.sources[0] == f"{checkpoint['url']}#sha256={checkpoint['sha256_prefix']}"
    labels = manifest.labels()
    assert (len(labels.names), labels.num_classes) == (133, 250)
    assert labels.head_indices == labels.source_ids
    assert (len(labels.things), max(labels.things)) == (80, 90)
    assert min(set(labels.head_indices) - labels.things) == 92
    rows = dict(zip(labels.source_ids, labels.names, strict=True))
    assert (rows[1], rows[90], rows[92], rows[200]) == ("person", "toothbrush", "banner", "rug-merged")
    assert (labels.color_of_head[1], labels.color_of_head[3]) == ((220, 20, 60), (0, 0, 142))


def test_label_map_is_that_of_the_real_category_list(test_data: Path) -> None:
    import json

    file = test_data / "coco_panoptic" / "annotations" / "panoptic_coco_categories.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    labels = read_manifest(BUILTIN_FOLDER / "detr_r50_panoptic.coco_25e.yaml").labels()
    theirs = {
        c["id"]: (c["name"], bool(c["isthing"]), tuple(c["color"])) for c in json.loads(file.read_text())
    }
    assert labels.colors is not None
    ours = zip(labels.source_ids, labels.names, labels.colors, strict=True)
    assert {i: (n, i in labels.things, c) for i, n, c in ours} == theirs
