"""Contract over recipes/rt_detrv2/*.yaml: each published number as published."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from recipe_numbers import assert_as_published, load, rates

from zoo.layers.backbone import PUBLISHED_WEIGHTS

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(p for p in (ROOT / "recipes" / "rt_detrv2").glob("*_coco_*.yaml") if "deim" not in p.stem)
EXTRACT = load(ROOT / "tests/data/published_rt_detrv2.yaml")
DISCRETE = [path for path in RECIPES if "dsp" in path.stem]
each = pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)

# key in a recipe -> key in the extract
WHERE = {
    "about.params": "params",
    "about.published.AP": "results.AP",
    "about.published.AP50": "results.AP50",
    "model.num_classes": "num_classes",
    "model.encoder.dim": "encoder.hidden_dim",
    "model.encoder.num_heads": "encoder.nheads",
    "model.encoder.ffn_dim": "encoder.ffn_dim",
    "model.encoder.expansion": "encoder.expansion",
    "model.encoder.num_blocks": "encoder.rep_blocks",
    "model.decoder.dim": "decoder.hidden_dim",
    "model.decoder.num_queries": "decoder.num_queries",
    "model.decoder.num_layers": "decoder.layers",
    "model.decoder.num_heads": "decoder.nheads",
    "model.decoder.num_points.0": "decoder.points.0",
    "model.decoder.num_points.1": "decoder.points.1",
    "model.decoder.num_points.2": "decoder.points.2",
    "model.decoder.ffn_dim": "decoder.ffn_dim",
    "model.decoder.num_denoising": "denoising.num_denoising",
    "model.decoder.label_noise": "denoising.label_noise_ratio",
    "model.decoder.box_noise": "denoising.box_noise_scale",
    "model.costs.label": "loss.matcher.class",
    "model.costs.l1": "loss.matcher.l1",
    "model.costs.giou": "loss.matcher.giou",
    "model.losses.label": "loss.weights.vfl",
    "model.losses.l1": "loss.weights.l1",
    "model.losses.giou": "loss.weights.giou",
    "model.schedule.lr": "optimizer.lr",
    "model.schedule.weight_decay": "optimizer.weight_decay",
    "model.schedule.betas.0": "optimizer.betas.0",
    "model.schedule.betas.1": "optimizer.betas.1",
    "model.schedule.warmup_steps": "warmup_steps",
    "model.schedule.global_batch_size": "batch.total",
    "model.ema.decay": "ema.decay",
    "model.ema.warmup_steps": "ema.warmups",
    "data.later_transforms.0.from_epoch": "plain_from_epoch",
    "data.input.size.0": "input_size",
    "data.input.size.1": "input_size",
    "trainer.max_epochs": "epochs",
    "trainer.gradient_clip_val": "grad_clip_norm",
}
# published for the models that are not fine-tuned for discrete sampling
SOMETIMES = {
    "about.published.gflops": "results.GFLOPs",
    "about.published.fps": "results.FPS_T4_TRT_FP16",
}
# numbers with a test of their own below
ELSEWHERE = (
    "about.macs", "model.decoder.eval_layers", "model.decoder.position_hidden.", "model.schedule.rules.",
    "model.schedule.final_factor", "model.multi_scale",
)  # fmt: skip


def test_recipes_were_found() -> None:
    assert {p.stem for p in RECIPES} == set(EXTRACT)
    assert (len(RECIPES), len(DISCRETE)) == (9, 4)


@each
def test_published_numbers_are_as_published(path: Path) -> None:
    assert_as_published(path.name, load(path), EXTRACT[path.stem], WHERE, ELSEWHERE, SOMETIMES)


@each
def test_published_lists_and_switches(path: Path) -> None:
    recipe, entry = load(path), EXTRACT[path.stem]
    model, data = recipe["model"]["init_args"], recipe["data"]["init_args"]
    decoder, layers, index = model["decoder"], entry["decoder"]["layers"], entry["decoder"]["eval_idx"]
    assert decoder["eval_layers"] == (index + 1 if index >= 0 else layers)
    assert decoder["position_hidden"] == [2 * decoder["dim"]]
    assert (decoder["sampling"] == "discrete") is (entry["decoder"]["cross_attn_method"] == "discrete")
    assert (decoder["selection"], decoder["activation"]) == ("best_class", "relu")
    assert model["label_loss"] == "vfl"
    sizes = entry["multi_scale"]["sizes"]
    assert model["multi_scale"] == (sizes or [])
    assert model["multi_scale_epochs"] == (entry["multi_scale"]["until_epoch"] if sizes else None)
    assert model["backbone"]["frozen_norm"] is entry["backbone"]["freeze_norm"]
    assert model["backbone"]["freeze_stem"] is (entry["backbone"]["freeze_at"] >= 0)
    depth = re.search(r"\d+", entry["backbone"]["name"])
    assert depth is not None
    assert model["backbone"]["name"] == f"resnet{depth.group()}d"
    assert model["schedule"]["drop_epochs"] == []
    assert (model["schedule"]["decay"], model["schedule"]["final_factor"]) == ("constant", 1.0)
    assert [change["name"] for change in data["later_transforms"]] == ["rt_detr_clean"]
    assert data["train_transform"] == "rt_detr"
    assert data["input"]["mean"] == data["input"]["std"] == []
    assert data["labels"] == "contiguous"
    assert recipe["trainer"]["sync_batchnorm"] is entry["sync_bn"]
    # half precision needs a GPU, so the recipe leaves it to the user and says so
    assert recipe["trainer"]["precision"] == "32-true"
    assert ("precision" in recipe["about"]["trained_by"]["differs"]) is entry["amp_by_command"]
    assert recipe["about"]["sources"] == [entry["checkpoint"]]
    if "GFLOPs" in entry["results"]:  # two FLOPs a multiply-add
        assert recipe["about"]["macs"] * 2e-9 == pytest.approx(entry["results"]["GFLOPs"], rel=0.035)


@each
def test_backbone_weights_are_those_of_the_url(path: Path) -> None:
    weights = load(path)["model"]["init_args"]["backbone"]["weights"]
    assert PUBLISHED_WEIGHTS[weights] == EXTRACT[path.stem]["backbone"]["weights_url"]


@each
def test_rules_carry_the_published_rates(path: Path) -> None:
    """That the regexes select the official parameters is proven on the model, with its golden groups."""
    rules = load(path)["model"]["init_args"]["schedule"]["rules"]
    theirs = [g for g in EXTRACT[path.stem]["optimizer"]["param_groups"] if g["pattern"] != "<rest>"]
    assert rates(rules) == rates(theirs)


@each
def test_name_and_start_are_those_of_the_schedule(path: Path) -> None:
    recipe, entry = load(path), EXTRACT[path.stem]
    size, _, tag = path.stem.partition("_")
    assert (recipe["about"]["name"], recipe["about"]["tag"]) == (f"rt_detrv2_{size}", tag)
    assert tag.endswith(f"coco_{entry['epochs']}e")
    if "init_from" not in entry:
        assert recipe["init_from"] == {"source": "none", "head": "keep"}
        return
    (parent,) = (p for p in RECIPES if p.stem.startswith(f"{size}_coco_"))
    assert recipe["init_from"] == {
        "source": f"rt_detrv2_{size}.{parent.stem[len(size) + 1 :]}",
        "head": "keep",
    }
    # of S the first release, whose training is the recipe's too
    first = entry["init_from"] != load(parent)["about"]["sources"][0]
    assert first is (size == "r18")


@pytest.mark.parametrize("path", DISCRETE, ids=lambda p: p.stem)
def test_discrete_sampling_changes_nothing_else(path: Path) -> None:
    recipe = load(path)
    size = path.stem.partition("_")[0]
    base = load(next(p for p in RECIPES if p.stem.startswith(f"{size}_coco_")))
    assert recipe["model"]["init_args"]["decoder"].pop("sampling") == "discrete"
    for one in (recipe, base):
        for part in ("about", "init_from"):
            del one[part]
        del one["trainer"]["max_epochs"], one["model"]["init_args"]["multi_scale_epochs"]
        one["model"]["init_args"]["decoder"].pop("sampling", None)
        del one["data"]["init_args"]["later_transforms"]
    assert recipe == base
