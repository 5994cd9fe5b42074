"""Contract over recipes/deimv2/*.yaml: each published number as published."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from recipe_numbers import assert_as_published, load, rates

from zoo.layers.backbone import PUBLISHED_WEIGHTS

ROOT = Path(__file__).resolve().parents[1]
EXTRACT = load(ROOT / "tests/data/published_deimv2.yaml")
RECIPES = sorted((ROOT / "recipes" / "deimv2").glob("*_coco_*.yaml"))
each = pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)

# key in a recipe -> key in the extract
WHERE = {
    "about.params": "parameters",
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
    "model.decoder.num_points.0": "decoder.points_per_level.0",
    "model.decoder.num_points.1": "decoder.points_per_level.1",
    "model.decoder.ffn_dim": "decoder.ffn",
    "model.decoder.reg_scale": "decoder.reg_scale",
    "model.decoder.bins": "decoder.bins",
    "model.decoder.num_denoising": "denoising.budget",
    "model.decoder.label_noise": "denoising.label_noise",
    "model.decoder.box_noise": "denoising.box_noise",
    "model.costs.label": "matcher.costs.class",
    "model.costs.l1": "matcher.costs.bbox",
    "model.costs.giou": "matcher.costs.giou",
    "model.overlap_matching.from_epoch": "matcher.change_epoch",
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
    "model.schedule.restart_epoch": "schedule.stop_epoch",
    "model.schedule.global_batch_size": "schedule.total_batch",
    "model.ema.decay": "ema.decay",
    "model.ema.warmup_steps": "ema.warmups",
    "data.input.size.0": "input_size",
    "data.input.size.1": "input_size",
    "data.later_transforms.0.from_epoch": "augmentation.policy_epochs_a_b_c.0",
    "data.later_transforms.1.from_epoch": "augmentation.policy_epochs_a_b_c.2",
    "data.min_box_side": "augmentation.min_box_px",
    "data.dense_o2o.mosaic.epochs.0": "augmentation.policy_epochs_a_b_c.0",
    "data.dense_o2o.mosaic.epochs.1": "augmentation.policy_epochs_a_b_c.1",
    "data.dense_o2o.mosaic.probability": "augmentation.mosaic_p",
    "data.dense_o2o.mosaic.side": "augmentation.mosaic.tile_short_side",
    "data.dense_o2o.mosaic.rotation": "augmentation.mosaic.rotation_deg",
    "data.dense_o2o.mosaic.translation": "augmentation.mosaic.translate.0",
    "data.dense_o2o.mosaic.scale.0": "augmentation.mosaic.scale.0",
    "data.dense_o2o.mosaic.scale.1": "augmentation.mosaic.scale.1",
    "trainer.max_epochs": "schedule.epochs",
    "trainer.gradient_clip_val": "optimizer.clip_norm",
}
# of N alone
OF_N = {
    "model.refinement.fgl": "loss.weights.fgl",
    "model.refinement.ddf": "loss.weights.ddf",
    "data.dense_o2o.mixup.epochs.0": "augmentation.mixup.epochs.0",
    "data.dense_o2o.mixup.epochs.1": "augmentation.mixup.epochs.1",
    "data.dense_o2o.mixup.probability": "augmentation.mixup.p",
    "data.dense_o2o.copy_blend.epochs.0": "augmentation.copyblend.epochs.0",
    "data.dense_o2o.copy_blend.epochs.1": "augmentation.copyblend.epochs.1",
    "data.dense_o2o.copy_blend.probability": "augmentation.copyblend.p",
    "data.dense_o2o.copy_blend.objects": "augmentation.copyblend.objects",
    "data.dense_o2o.copy_blend.least_area": "augmentation.copyblend.min_area",
    "data.dense_o2o.copy_blend.expand.0": "augmentation.copyblend.expand.0",
    "data.dense_o2o.copy_blend.expand.1": "augmentation.copyblend.expand.1",
}
# numbers with a test of their own below
ELSEWHERE = (
    "about.macs", "about.published.seconds_per_image", "model.backbone.maps",
    "model.decoder.eval_layers", "model.overlap_matching.power",
    "model.schedule.rules.", "model.schedule.first_factor", "data.dense_o2o.group",
)  # fmt: skip


def test_recipes_were_found() -> None:
    assert {p.stem for p in RECIPES} == set(EXTRACT)
    assert {p.stem.partition("_")[0] for p in RECIPES} == {"atto", "femto", "pico", "n"}


@each
def test_published_numbers_are_as_published(path: Path) -> None:
    entry = EXTRACT[path.stem]
    where = WHERE | OF_N if entry["loss"]["union_indices"] else WHERE
    assert_as_published(path.name, load(path), entry, where, ELSEWHERE)


@each
def test_published_lists_and_switches(path: Path) -> None:
    recipe, entry = load(path), EXTRACT[path.stem]
    model, data = recipe["model"]["init_args"], recipe["data"]["init_args"]
    backbone, theirs = model["backbone"], entry["backbone"]
    assert backbone["name"] == f"hgnetv2_{theirs['name'].removeprefix('HGNetv2-').lower()}"
    assert PUBLISHED_WEIGHTS[backbone["weights"]].endswith("/" + theirs["imagenet_file"])
    stages = 4 if backbone["name"] == "hgnetv2_b0" else 3
    assert list(range(stages))[-backbone["maps"] :] == theirs["outputs_zero_based_stage"]
    assert backbone["affine"] is theirs["learnable_affine"]
    assert backbone["freeze_stem"] is theirs["stem_frozen"]
    assert backbone["frozen_norm"] is theirs["batch_norm_frozen"]
    encoder, decoder, official = model["encoder"], model["decoder"], entry["decoder"]
    assert encoder["kind"] == entry["encoder"]["type"]
    assert encoder["convolve"] is entry["encoder"]["fuse_block"].startswith("RepNCSPELAN4")
    assert (decoder["eval_layers"], official["eval_idx"]) == (decoder["num_layers"], -1)
    assert decoder["activation"] == official["head_activation"]
    assert decoder["gateway"] is (official["residual_after_cross_attention"] == "gate")
    assert decoder["shared_box_head"] is official["box_head_shared"]
    assert (model["refinement"] is not None) is entry["loss"]["union_indices"]
    assert f"IoU^{model['overlap_matching']['power']:g}" in entry["matcher"]["changed_cost"]
    assert entry["loss"]["class_loss"] == "mal"
    assert model["multi_scale"] == []
    assert entry["augmentation"]["multi_scale"] is None
    assert data["train_transform"] == "rt_detr_clean"
    assert [later["name"] for later in data["later_transforms"]] == ["rt_detr", "rt_detr_clean"]
    assert data["input"]["mean"] == data["input"]["std"] == []
    assert data["labels"] == "contiguous"
    assert (
        data["dense_o2o"]["group"] * 4 == entry["schedule"]["total_batch"]
    )  # the published command has 4 GPUs
    dense = data["dense_o2o"]
    assert (dense["mixup"] is None) is (entry["augmentation"]["mixup"]["p"] == 0)
    assert (dense["copy_blend"] is None) is (entry["augmentation"]["copyblend"] is None)
    schedule = model["schedule"]
    assert (schedule["decay"], schedule["drop_epochs"]) == ("flat_cosine", [])
    assert schedule["first_factor"] == 1 / 500
    assert recipe["about"]["macs"] * 2e-9 == pytest.approx(entry["results"]["gflops"], rel=0.06)
    seconds = recipe["about"]["published"]["seconds_per_image"]
    assert seconds * 1000 == pytest.approx(entry["results"]["latency_ms"])
    assert entry["google_drive_id"] in recipe["about"]["sources"][0]


@each
def test_rules_carry_the_published_rates(path: Path) -> None:
    """That the regexes select the official parameters is proven on the model, with its golden groups."""
    schedule = load(path)["model"]["init_args"]["schedule"]
    groups = [g for g in EXTRACT[path.stem]["optimizer"]["groups"] if g["tensors"] and g["regex"] != "(rest)"]
    assert rates(schedule["rules"], schedule["lr"], schedule["weight_decay"]) == rates(groups)


@each
def test_name_and_start_are_those_of_the_schedule(path: Path) -> None:
    recipe, entry = load(path), EXTRACT[path.stem]
    size, _, tag = path.stem.partition("_")
    assert (recipe["about"]["name"], recipe["about"]["tag"]) == (f"deimv2_{size}", tag)
    assert re.fullmatch(rf"coco_{entry['schedule']['epochs']}e", tag)
    assert recipe["init_from"] == {"source": "none", "head": "keep"}
