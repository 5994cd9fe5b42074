"""Contract over recipes/detr and recipes/deformable_detr: each number as published, or on a short list of ours.

The tables map a recipe's key to the key of its entry in tests/data/published_*.yaml. What all recipes share (order of
blocks, a source on each line) is in test_every_recipe.py; that the rules select the official parameters is in
tests/golden.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe_numbers import DETR_FAMILIES, leaves, numbers

from zoo.registry.manifest import read_manifest
from zoo.registry.store import BUILTIN_FOLDER

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("detr", "deformable_detr")
EXTRACTS: dict[str, dict[str, Any]] = {
    family: yaml.safe_load((ROOT / f"tests/data/published_{family}.yaml").read_text()) for family in FAMILIES
}
RECIPES = [
    path for family in FAMILIES for path in sorted((ROOT / "recipes" / family).glob("*.yaml"))
    if not path.stem.startswith("finetune") and "panoptic" not in path.stem  # these: test_recipes_panoptic.py
]  # fmt: skip
PUBLISHED_MANIFESTS = [
    path for family in FAMILIES for path in sorted(BUILTIN_FOLDER.glob(f"{family}_*.yaml"))
    if "panoptic" not in path.stem
]  # fmt: skip
each = pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")

BOTH = {
    **DETR_FAMILIES,
    "about.params": "params",
    "about.published.AP": "results.AP",
    "model.schedule.drop_epochs.0": "lr_drop_epoch",
    "model.schedule.global_batch_size": "batch.total",
    "trainer.max_epochs": "epochs",
}
WHERE = {
    "detr": {
        **BOTH,
        "model.no_object_weight": "loss.no_object_weight",
        "model.schedule.lr": "optimizer.lr",
        "model.schedule.rules.1.lr": "optimizer.lr_backbone",
    },
    "deformable_detr": {
        **BOTH,
        "about.published.APs": "results.APs",
        "about.published.APm": "results.APm",
        "about.published.APl": "results.APl",
        "about.published.gflops": "results.GFLOPs",
        "about.published.fps": "results.FPS",
        "about.published.fps_batch4": "results.FPS_batch4",
        "about.published.gpu_hours": "results.gpu_hours",
        "model.transformer.encoder_points": "transformer.enc_points",
        "model.transformer.decoder_points": "transformer.dec_points",
        "model.transformer.num_levels": "transformer.num_feature_levels",
        "model.schedule.lr": "optimizer.param_groups.0.lr",
        "model.schedule.rules.1.lr": "optimizer.param_groups.1.lr",
        "model.schedule.rules.2.lr": "optimizer.param_groups.2.lr",
        "model.top_k": "num_detections",
        "data.batch_size": "batch.per_gpu",
    },
}
# printed for some of the runs only: in the recipe exactly where it is in the extract
SOMETIMES = {
    "detr": {
        "about.published.AP50": "results.AP50",
        "about.published.gflops": "results.GFLOPs",
        "about.published.fps": "results.FPS_paper",
        "about.published.seconds_per_image": "results.inference_s",
        "about.published.gpu_hours": "gpu_hours",
    },
    "deformable_detr": {
        f"about.published.paper.{k}": f"results.paper.{k}"
        for k in ("AP", "AP50", "AP75", "APs", "APm", "APl")
    },
}
# numbers that no page prints, each with the reason it needs none
OURS = {
    "about.macs": "counted on the official network: test_every_manifest.py; near the published GFLOPs: below",
    "model.schedule.warmup_steps": "0, because no run has a warm-up: below",
    "model.schedule.final_factor": "1, because nothing decays but at the drop: below",
    "seed_everything": "official is 42 + rank: below",
    "data.seed": "official is 42 + rank: below",
    "data.batch_size": "the most a device takes at once; the step has global_batch_size images: below where printed",
    "data.eval_batch_size": "padding moves AP; 1 for DC5, as its README asks: below",
    "data.num_workers": "does not change a sample",
    "trainer.num_nodes": "does not change a step",
    "trainer.check_val_every_n_epoch": "does not change a step",
    "checkpoint.save_top_k": "does not change a step",
}


def load(path: Path) -> dict[str, Any]:
    recipe: dict[str, Any] = yaml.safe_load(path.read_text())
    return recipe


def official(path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = EXTRACTS[path.parent.name][path.stem]
    return entry


def test_each_extract_has_its_recipe() -> None:
    for family, extract in EXTRACTS.items():
        assert {p.stem for p in RECIPES if p.parent.name == family} == set(extract)
    assert [len(extract) for extract in EXTRACTS.values()] == [6, 5]


@each
def test_each_number_is_the_published_one_or_named_as_ours(path: Path) -> None:
    family, entry, found = path.parent.name, dict(leaves(official(path))), numbers(load(path))
    for key, where in WHERE[family].items():
        assert key in found, f"{path.name}: {key} is missing"
        assert found.pop(key) == entry[where], f"{path.name}: {key} is not the published {where}"
    for key, where in SOMETIMES[family].items():
        assert found.pop(key, None) == entry.get(where), f"{path.name}: {key} is not the published {where}"
    assert sorted(set(found) - set(OURS)) == [], "compared with nothing: map it, or give a reason in OURS"


@each
def test_our_numbers_keep_to_what_is_printed(path: Path) -> None:
    """Two FLOPs a multiply-add is RT-DETR's habit; these two families count one, over images of many sizes."""
    recipe, entry = load(path), official(path)
    schedule, data = recipe["model"]["init_args"]["schedule"], recipe["data"]["init_args"]
    assert (schedule["warmup_steps"], schedule["decay"], schedule["final_factor"]) == (0, "constant", 1.0)
    assert len(schedule["drop_epochs"]) == 1
    assert f"{recipe['seed_everything']} + rank" == f"{data['seed']} + rank" == entry["seed"]
    # the 300 epochs print 16 GPUs with 4 images in the paper's text, and two other splits elsewhere
    assert data["batch_size"] == entry["batch"].get("per_gpu", 4)
    assert data["eval_batch_size"] <= 2
    if path.parent.name == "detr" and entry["backbone"]["dilation_c5"]:
        assert data["eval_batch_size"] == 1
    if "GFLOPs" in entry["results"]:
        assert recipe["about"]["macs"] * 1e-9 == pytest.approx(entry["results"]["GFLOPs"], rel=0.08)


def test_runs_of_one_model_count_the_same() -> None:
    counts: dict[str, set[tuple[int, int]]] = {}
    for about in (load(path)["about"] for path in RECIPES):
        counts.setdefault(about["name"], set()).add((about["params"], about["macs"]))
    assert {name: len(found) for name, found in counts.items() if len(found) > 1} == {}


@each
def test_switches_are_the_published_ones(path: Path) -> None:
    recipe, entry = load(path), official(path)
    model, data, trainer = recipe["model"]["init_args"], recipe["data"]["init_args"], recipe["trainer"]
    name = entry["backbone"]["name"]
    assert model["backbone"] == {
        "name": name, "weights": f"{name}_imagenet1k_v1", "freeze_stem": True, "frozen_norm": True,
        "dilate_last": entry["backbone"]["dilation_c5"],
    }  # fmt: skip
    assert [r.get("freeze", False) for r in model["schedule"]["rules"]] == [
        True, *[False] * (len(model["schedule"]["rules"]) - 1),
    ]  # fmt: skip
    assert [r.get("weight_decay") for r in model["schedule"]["rules"]] == [None] * len(
        model["schedule"]["rules"]
    )
    assert (data["labels"], data["train_transform"]) == ("category_id", "detr")
    assert (data["input"]["resize"], data["input"]["padding"]) == ("shortest", "batch")
    assert entry["ema"] is None
    assert model.get("ema") is None
    assert trainer["sync_batchnorm"] is entry["sync_bn"]
    assert (trainer["precision"] == "32-true") is not entry["amp"]


@each
def test_about_names_the_run_and_its_file(path: Path) -> None:
    about, entry, family = load(path)["about"], official(path), path.parent.name
    size, _, tag = path.stem.partition("_coco_")
    assert (about["name"], about["tag"]) == (f"{family}_{size}", f"coco_{tag}")
    assert tag == f"{entry['epochs']}e"
    checkpoint = entry["checkpoint"]
    if checkpoint is None:
        assert about["sources"] == []
    elif family == "detr":
        prefix = checkpoint["sha256_prefix"]
        assert about["sources"][0] == f"{checkpoint['url']}#sha256={prefix}"
        assert checkpoint["url"].endswith(f"-{prefix}.pth")
    else:
        assert about["sources"][0] == checkpoint


DETR = [p for p in RECIPES if p.parent.name == "detr"]
DEFORMABLE = [p for p in RECIPES if p.parent.name == "deformable_detr"]


@pytest.mark.parametrize("path", DETR, ids=lambda p: p.stem)
def test_detr_is_the_published_architecture(path: Path) -> None:
    model, entry = load(path)["model"]["init_args"], official(path)
    assert model["transformer"]["pre_norm"] is (entry["transformer"]["norm_style"] == "pre")
    assert model["transformer"]["position"] == "sine"
    # one number of the recipe stands for all three places
    assert set(entry["transformer"]["dropout"].values()) == {model["transformer"]["dropout"]}
    # "no object" is a row that the recipe does not count
    assert entry["outputs"] == model["num_classes"] + 1


@pytest.mark.parametrize("path", DEFORMABLE, ids=lambda p: p.stem)
def test_deformable_detr_is_the_published_variant(path: Path) -> None:
    recipe, entry = load(path), official(path)
    part, flags = recipe["model"]["init_args"]["transformer"], entry["flags"].split()
    assert part["refine_boxes"] is entry["transformer"]["with_box_refine"] is ("--with_box_refine" in flags)
    assert part["two_stage"] is entry["transformer"]["two_stage"] is ("--two_stage" in flags)
    assert entry["backbone"]["dilation_c5"] is ("--dilation" in flags)
    assert (part["num_levels"] == 1) is ("--num_feature_levels" in flags)
    dropout = dict(entry["transformer"]["dropout"])
    # the weights of deformable attention are the one place without dropout
    assert dropout.pop("deformable_attention_weights") == 0
    assert set(dropout.values()) == {part["dropout"]}
    assert entry["batch"]["gpus"] * entry["batch"]["per_gpu"] == entry["batch"]["total"]
    assert recipe["about"]["published"]["AP50"] is None, "the README prints no AP50"
    assert "AP50" not in entry["results"]
    # the published rates go to the names that the official groups name
    rules = [r["match"] for r in recipe["model"]["init_args"]["schedule"]["rules"]]
    assert ["backbone" in rules[1], rules[2]] == [True, "reference_points|sampling_offsets"]
    small = entry["optimizer"]["param_groups"][2]["match"]
    assert all(word in small for word in rules[2].split("|"))


@pytest.mark.parametrize("path", PUBLISHED_MANIFESTS, ids=lambda p: p.stem)
def test_manifest_prints_the_published_scores_by_size(path: Path) -> None:
    manifest = read_manifest(path)
    family, _, recipe = manifest.recipes[0].partition("/")
    printed = EXTRACTS[family][recipe]["results"]
    assert manifest.published is not None
    for metric in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
        assert getattr(manifest.published, metric) == printed.get(metric), f"{path.name}: {metric}"
