"""Contract over the recipes of DEIM, over the networks of other families: each published number as published."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from recipe_numbers import assert_as_published, load

from zoo.training.module import build_module

ROOT = Path(__file__).resolve().parents[1]
EXTRACT = load(ROOT / "tests/data/published_deim.yaml")
each = pytest.mark.parametrize("key", EXTRACT)

# key in a recipe -> key in the extract, whatever the network
WHERE = {
    "about.params": "params",
    "about.published.AP": "results.AP",
    "about.published.gflops": "results.gflops",
    "model.num_classes": "num_classes",
    "model.encoder.dim": "encoder.hidden",
    "model.encoder.num_heads": "encoder.heads",
    "model.encoder.ffn_dim": "encoder.ffn",
    "model.encoder.expansion": "encoder.expansion",
    "model.encoder.num_blocks": "encoder.blocks",
    "model.decoder.dim": "decoder.d",
    "model.decoder.num_queries": "decoder.num_queries",
    "model.decoder.num_layers": "decoder.layers",
    "model.decoder.num_heads": "decoder.heads",
    "model.decoder.ffn_dim": "decoder.ffn",
    "model.decoder.num_denoising": "denoising.budget",
    "model.decoder.label_noise": "denoising.label_noise",
    "model.decoder.box_noise": "denoising.box_noise",
    "model.costs.label": "costs.class",
    "model.costs.l1": "costs.bbox",
    "model.costs.giou": "costs.giou",
    "model.losses.label": "loss.weights.mal",
    "model.losses.l1": "loss.weights.bbox",
    "model.losses.giou": "loss.weights.giou",
    "model.schedule.lr": "optimizer.base_lr",
    "model.schedule.weight_decay": "optimizer.weight_decay",
    "model.schedule.betas.0": "optimizer.betas.0",
    "model.schedule.betas.1": "optimizer.betas.1",
    "model.schedule.warmup_steps": "schedule.lr.warmup_steps",
    "model.schedule.flat_epochs": "schedule.lr.flat_epoch",
    "model.schedule.tail_epochs": "schedule.lr.no_aug_epoch",
    "model.schedule.final_factor": "schedule.lr.final_factor",
    "model.schedule.global_batch_size": "schedule.total_batch",
    "model.schedule.restart_epoch": "schedule.stop_epoch",
    "model.ema.decay": "ema.decay",
    "model.ema.warmup_steps": "ema.warmups",
    "data.later_transforms.0.from_epoch": "policy.0",
    "data.later_transforms.1.from_epoch": "policy.2",
    "data.dense_o2o.mosaic.epochs.0": "policy.0",
    "data.dense_o2o.mosaic.epochs.1": "policy.1",
    "data.dense_o2o.mosaic.probability": "mosaic_p",
    "data.dense_o2o.mosaic.side": "mosaic.tile_short_side",
    "data.dense_o2o.mosaic.rotation": "mosaic.rotation_deg",
    "data.dense_o2o.mosaic.translation": "mosaic.translate.0",
    "data.dense_o2o.mosaic.scale.0": "mosaic.scale.0",
    "data.dense_o2o.mosaic.scale.1": "mosaic.scale.1",
    "data.dense_o2o.mixup.epochs.0": "mixup.epochs.0",
    "data.dense_o2o.mixup.epochs.1": "mixup.epochs.1",
    "data.dense_o2o.mixup.probability": "mixup.p",
    "data.input.size.0": "input_size.0",
    "data.input.size.1": "input_size.1",
    "trainer.max_epochs": "schedule.epochs",
    "trainer.gradient_clip_val": "optimizer.clip_norm",
}
# what only one network has
OF_FAMILY = {
    "rt_detrv2": {f"model.decoder.position_hidden.{i}": "decoder.d" for i in range(2)},  # mlp 4-d-d-d
    "dfine": {
        "model.decoder.reg_scale": "decoder.reg_scale",
        "model.decoder.bins": "decoder.bins",
        "model.losses.fgl": "loss.weights.fgl",
        "model.losses.ddf": "loss.weights.ddf",
    },
}
# numbers with a test of their own below
ELSEWHERE = (
    "about.macs", "about.published.seconds_per_image",
    "model.backbone.maps", "model.decoder.num_points.", "model.decoder.eval_layers",
    "model.schedule.rules.", "model.schedule.first_factor", "model.multi_scale", "data.dense_o2o.group",
)  # fmt: skip


def recipe_of(key: str) -> dict[str, Any]:
    return load(ROOT / "recipes" / f"{key}.yaml")


def test_recipes_were_found() -> None:
    found = {f"{p.parent.name}/{p.stem}" for p in (ROOT / "recipes").glob("*/*deim_*.yaml")}
    assert found == set(EXTRACT)


@each
def test_published_numbers_are_as_published(key: str) -> None:
    where = WHERE | OF_FAMILY[key.split("/")[0]]
    assert_as_published(key, recipe_of(key), EXTRACT[key], where, ELSEWHERE)


@each
def test_published_lists_and_switches(key: str) -> None:
    recipe, entry = recipe_of(key), EXTRACT[key]
    model, data = recipe["model"]["init_args"], recipe["data"]["init_args"]
    decoder, theirs, schedule = model["decoder"], entry["decoder"], model["schedule"]
    assert theirs["eval_idx"] in (-1, theirs["layers"] - 1)
    assert decoder["eval_layers"] == theirs["layers"]
    assert decoder["num_points"] == theirs["points_per_level"]
    assert (theirs["ffn_kind"], theirs["head_activation"]) == ("linear-silu-linear", "silu")
    assert decoder["activation"] == "silu"
    assert model["label_loss"] == entry["loss"]["class_loss"] == "mal"
    assert entry["loss"]["gamma"] == 1.5  # the default of `zoo.training.losses.MatchabilityAware`
    assert model["multi_scale"] == scales(entry["multi_scale"])
    assert model["multi_scale_epochs"] == entry["multi_scale_until"]
    assert model["backbone"]["frozen_norm"] is entry["backbone"]["batch_norm_frozen"]
    assert model["backbone"]["freeze_stem"] is entry["backbone"]["stem_frozen"]
    assert (schedule["decay"], schedule["drop_epochs"]) == ("flat_cosine", [])
    assert schedule["first_factor"] == 1 / entry["schedule"]["unused_warmup"]
    assert data["train_transform"] == "rt_detr_clean"
    assert [change["name"] for change in data["later_transforms"]] == ["rt_detr", "rt_detr_clean"]
    assert data["dense_o2o"]["copy_blend"] is entry["copyblend"] is None
    assert data["dense_o2o"]["group"] == entry["schedule"]["total_batch"] / 4  # the commands have 4 GPUs
    assert len(set(entry["mosaic"]["translate"])) == 1
    assert data["input"]["mean"] == data["input"]["std"] == []
    assert data["labels"] == "contiguous"
    assert recipe["trainer"]["sync_batchnorm"] is True
    # half precision needs a GPU, so the recipe leaves it to the user and says so
    assert recipe["trainer"]["precision"] == "32-true"
    assert "precision" in recipe["about"]["trained_by"]["differs"]
    assert recipe["about"]["sources"] == [f"https://drive.google.com/file/d/{entry['checkpoint']}/view"]
    assert recipe["about"]["published"]["seconds_per_image"] * 1000 == pytest.approx(
        entry["results"]["latency_ms"]
    )
    assert recipe["about"]["printed"]["params"] == entry["results"]["params"].replace("M", " M")
    # two FLOPs a multiply-add; whole billions are printed
    assert recipe["about"]["macs"] * 2e-9 == pytest.approx(entry["results"]["gflops"], rel=0.035, abs=0.5)


@pytest.mark.parametrize("key", [key for key in EXTRACT if key.startswith("rt_detrv2/")])
def test_what_only_rt_detrv2_has(key: str) -> None:
    model, entry = recipe_of(key)["model"]["init_args"], EXTRACT[key]
    (depth,) = re.findall(r"ResNet(\d+)-vd", entry["backbone"]["name"])
    assert model["backbone"]["name"] == f"resnet{depth}d"
    assert entry["decoder"]["query_position"] == "mlp 4-d-d-d, every layer"
    decoder = model["decoder"]
    assert (decoder["selection"], decoder["sampling"], decoder["denoising"]) == (
        "best_class",
        "bilinear",
        "deim",
    )


@pytest.mark.parametrize("key", [key for key in EXTRACT if key.startswith("dfine/")])
def test_what_only_dfine_has(key: str) -> None:
    """Its network has one position code and makes D-FINE's denoising queries, which are DEIM's."""
    backbone, entry = recipe_of(key)["model"]["init_args"]["backbone"], EXTRACT[key]
    theirs = entry["backbone"]
    assert backbone["name"] == theirs["name"].replace("HGNetv2-", "hgnetv2_").lower()
    assert list(range(4))[-backbone["maps"] :] == theirs["outputs_zero_based_stage"]
    assert backbone["affine"] is theirs["learnable_affine"]
    assert entry["decoder"]["query_position"] == "mlp 4-2d-d, every layer"
    assert entry["decoder"]["lqe_activation"] == entry["decoder"]["head_activation"]


def scales(published: dict[str, Any] | None) -> list[int]:
    """The published sizes, the base as often as it is drawn."""
    if published is None:
        return []
    repeats = {published["base"]: published["base_repeat"]}
    return [size for size in published["sizes"] for _ in range(repeats.get(size, 1))]


@each
def test_it_starts_from_the_backbone_of_the_parent(key: str) -> None:
    folder, stem = key.split("/")
    size = stem.partition("_")[0]
    (parent,) = (ROOT / "recipes" / folder).glob(f"{size}_coco_*.yaml")
    recipe, backbone = recipe_of(key), load(parent)["model"]["init_args"]["backbone"]
    assert recipe["model"]["init_args"]["backbone"]["weights"] == backbone["weights"]
    assert recipe["init_from"] == {"source": "none", "head": "keep"}
    assert (recipe["about"]["name"], recipe["about"]["tag"]) == (f"{folder}_{size}", stem[len(size) + 1 :])


@each
def test_rules_select_the_published_groups(key: str) -> None:
    """Tensors, elements and rates of each group, on the full-size network."""
    recipe, published = recipe_of(key), EXTRACT[key]["optimizer"]["groups"]
    module = build_module(recipe["model"], backbone_weights="random")
    found = module.schedule.groups(module.network.named_parameters())
    assert [
        (group["lr"], group["weight_decay"], len(group["params"]), sum(p.numel() for p in group["params"]))
        for group in found
    ] == [(g["lr"], g["weight_decay"], g["tensors"], g["elements"]) for g in published]
    assert [sum(p.ndim == 1 for p in group["params"]) for group in found] == [
        g["one_dimensional"] for g in published
    ]
    assert sum(p.numel() for p in module.network.parameters()) == recipe["about"]["params"]
