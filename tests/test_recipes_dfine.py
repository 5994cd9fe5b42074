"""Contract over recipes/dfine/*.yaml: each published number as published."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from recipe_numbers import assert_as_published, load, rates

from zoo.layers.backbone import PUBLISHED_WEIGHTS

ROOT = Path(__file__).resolve().parents[1]
EXTRACT = load(ROOT / "tests/data/published_dfine.yaml")
RECIPES = sorted(
    p for p in (ROOT / "recipes" / "dfine").glob("*.yaml") if re.match(r"[nsmlx]_(?!deim_)", p.stem)
)
each = pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)

# key in a recipe -> key in the extract
WHERE = {
    "about.params": "parameters",
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
    "model.decoder.reg_scale": "decoder.reg_scale",
    "model.decoder.bins": "decoder.bins",
    "model.decoder.num_denoising": "denoising.budget",
    "model.decoder.label_noise": "denoising.label_noise",
    "model.decoder.box_noise": "denoising.box_noise",
    "model.costs.label": "matcher.class",
    "model.costs.l1": "matcher.bbox",
    "model.costs.giou": "matcher.giou",
    "model.losses.label": "loss.weights.vfl",
    "model.losses.l1": "loss.weights.bbox",
    "model.losses.giou": "loss.weights.giou",
    "model.losses.fgl": "loss.weights.fgl",
    "model.losses.ddf": "loss.weights.ddf",
    "model.schedule.lr": "optimizer.base_lr",
    "model.schedule.weight_decay": "optimizer.weight_decay",
    "model.schedule.betas.0": "optimizer.betas.0",
    "model.schedule.betas.1": "optimizer.betas.1",
    "model.schedule.warmup_steps": "schedule.warmup_steps",
    "model.schedule.global_batch_size": "schedule.total_batch",
    "model.ema.decay": "ema.decay",
    "model.ema.warmup_steps": "ema.warmups",
    "data.input.size.0": "input_size",
    "data.input.size.1": "input_size",
    "trainer.max_epochs": "schedule.epochs",
    "trainer.gradient_clip_val": "optimizer.clip_norm",
}
# numbers with a test of their own below
ELSEWHERE = (
    "about.macs", "about.published.", "model.backbone.maps", "model.decoder.num_points.", "model.decoder.eval_layers",
    "model.schedule.rules.", "model.schedule.final_factor", "model.schedule.restart_epoch", "model.multi_scale",
    "data.later_transforms.",
)  # fmt: skip


def test_recipes_were_found() -> None:
    assert {p.stem for p in RECIPES} == set(EXTRACT)
    assert {p.stem[0] for p in RECIPES} == set("nsmlx")


@each
def test_published_numbers_are_as_published(path: Path) -> None:
    assert_as_published(path.name, load(path), EXTRACT[path.stem], WHERE, ELSEWHERE)


@each
def test_published_lists_and_switches(path: Path) -> None:
    recipe, entry = load(path), EXTRACT[path.stem]
    model, about = recipe["model"]["init_args"], recipe["about"]
    backbone, theirs = model["backbone"], entry["backbone"]
    assert backbone["name"] == f"hgnetv2_{theirs['name'].removeprefix('HGNetv2-').lower()}"
    assert PUBLISHED_WEIGHTS[backbone["weights"]].endswith("/" + theirs["imagenet_file"])
    assert list(range(4))[-backbone["maps"] :] == theirs["outputs_zero_based_stage"]
    assert backbone["affine"] is theirs["learnable_affine"]
    assert backbone["freeze_stem"] is theirs["stem_frozen"]
    assert backbone["frozen_norm"] is theirs["batch_norm_frozen"]
    decoder = model["decoder"]
    assert decoder["num_points"] == entry["decoder"]["points_per_level"]
    assert decoder["activation"] == entry["decoder"]["head_activation"]
    assert (decoder["eval_layers"], entry["decoder"]["eval_idx"]) == (decoder["num_layers"], -1)
    assert model["label_loss"] == entry["loss"]["class_loss"]
    assert recipe["data"]["init_args"]["labels"] == (
        "category_id" if model["num_classes"] == 366 else "contiguous"
    )
    assert model["schedule"]["drop_epochs"] == []
    assert (model["schedule"]["decay"], model["schedule"]["final_factor"]) == ("constant", 1.0)
    published = about["published"] or {}
    results = entry["results"] if "checkpoint" in entry else {}
    assert published.get("AP") == results.get("AP", results.get("AP_full_val"))
    assert published.get("gflops") == results.get("gflops")
    assert published["seconds_per_image"] * 1000 == pytest.approx(results["latency_ms"])
    assert about["printed"]["params"] == results["params"].replace("M", " M")
    assert about["sources"] == ([entry["checkpoint"]] if "checkpoint" in entry else [])


@each
def test_multi_scale_and_strong_augmentation_end_where_published(path: Path) -> None:
    recipe, entry = load(path), EXTRACT[path.stem]
    model, data = recipe["model"]["init_args"], recipe["data"]["init_args"]
    stop, epochs = entry["schedule"]["stop_epoch"], entry["schedule"]["epochs"]
    end = stop if stop < epochs else None
    sizes, repeat = entry["multi_scale"]["sizes"], entry["multi_scale"]["base_repeat"]
    assert model["multi_scale"] == sorted([s for s in sizes or [] if s != 640] + [640] * (repeat or 0))
    assert model["multi_scale_epochs"] == (end if sizes else None)
    assert model["schedule"]["restart_epoch"] == end
    ends = entry["strong_until"] if entry["strong_until"] < epochs else None
    assert ends == end
    later = [{"from_epoch": ends, "name": "rt_detr_clean"}] if ends else None
    assert data.get("later_transforms") == later
    assert data["train_transform"] == "rt_detr"
    assert data["input"]["mean"] == data["input"]["std"] == []


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
    assert (recipe["about"]["name"], recipe["about"]["tag"]) == (f"dfine_{size}", tag)
    assert tag.endswith(f"_{entry['schedule']['epochs']}e")
    if "init_from" not in entry:
        assert recipe["init_from"] == {"source": "none", "head": "keep"}
        return
    (parent,) = (p.stem for p in RECIPES if re.fullmatch(rf"{size}_o365_\d+e", p.stem))
    assert recipe["init_from"] == {"source": f"dfine_{size}.{parent[2:]}", "head": "by_class_name"}
