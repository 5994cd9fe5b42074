"""Contract over recipes/**/*.yaml: complete, flat, each published number as published and with its source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))
PUBLISHED_RECIPES = [r for r in RECIPES if r.stem.endswith("_coco_72e")]
EXTRACT: dict[str, Any] = yaml.safe_load((ROOT / "tests/data/published_rt_detr.yaml").read_text())

# recipe key -> key of the size's entry in the extract
WHERE = {
    "about.params": "params",
    "about.published.AP": "results.AP",
    "about.published.AP50": "results.AP50",
    "about.published.gflops": "results.GFLOPs",
    "about.published.fps": "results.FPS_T4_TRT_FP16",
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
    "model.decoder.num_points": "decoder.points",
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
    "model.schedule.global_batch_size": "batch.total",
    "model.ema.decay": "ema.decay",
    "model.ema.warmup_steps": "ema.warmups",
    "trainer.max_epochs": "epochs",
    "trainer.gradient_clip_val": "grad_clip_norm",
}
# numbers with a test of their own below
ELSEWHERE = (
    "about.macs", "about.published.decoder_layers.", "model.decoder.eval_layers", "model.schedule.rules.",
    "model.schedule.warmup_steps", "model.schedule.final_factor", "model.multi_scale.", "data.input.size.",
)  # fmt: skip
# numbers that are ours: they change neither a sample nor a step
OURS = (
    "seed_everything", "data.seed", "data.batch_size", "data.eval_batch_size", "data.num_workers",
    "trainer.num_nodes", "trainer.check_val_every_n_epoch", "checkpoint.save_top_k",
)  # fmt: skip


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested recipe; `init_args` is left out of the keys."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        yield prefix, value
    for key, item in items:
        inner = prefix if key == "init_args" else f"{prefix}.{key}".lstrip(".")
        yield from leaves(item, inner)


def numbers(recipe: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in leaves(recipe) if isinstance(v, (int, float)) and not isinstance(v, bool)}


def load(path: Path) -> dict[str, Any]:
    recipe: dict[str, Any] = yaml.safe_load(path.read_text())
    return recipe


def official(path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = EXTRACT[path.stem.removesuffix("_coco_72e")]
    return entry


def test_recipes_were_found() -> None:
    assert {p.stem.removesuffix("_coco_72e") for p in PUBLISHED_RECIPES} == set(EXTRACT)
    assert {"tiny", "finetune"} <= {p.stem for p in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_recipe_is_complete_and_flat(path: Path) -> None:
    recipe = load(path)
    assert list(recipe) == [
        "about", "seed_everything", "model", "data", "trainer", "checkpoint", "init_from", "tracking",
    ]  # fmt: skip
    assert recipe["about"]["family"] == path.parent.name
    assert recipe["model"]["init_args"]["backbone"]["weights"], (
        "absent weights would train from scratch in silence"
    )
    assert not re.search(r"(?m)^\s*(__include__|_base_|defaults)\s*:", path.read_text())


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_lines_with_numbers_say_where_they_come_from(path: Path) -> None:
    body = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    bare = [
        line
        for line in body
        if re.search(r"[:\[,]\s*-?\d", line.split(" #")[0]) and not re.search(r"\S\s+# \S", line)
    ]
    exempt = ("paper:", "sources:", "https:", "num_nodes:", "checkpoint:")
    assert [line for line in bare if not line.strip().lstrip("- ").startswith(exempt)] == []


@pytest.mark.parametrize("path", PUBLISHED_RECIPES, ids=lambda p: p.stem)
def test_published_numbers_are_as_published(path: Path) -> None:
    entry = dict(leaves(official(path)))
    found = numbers(load(path))
    for key, where in WHERE.items():
        assert found.pop(key) == entry[where], f"{path.name}: {key} is not the published {where}"
    unknown = [k for k in found if k not in OURS and not k.startswith(ELSEWHERE)]
    assert unknown == [], "numbers that no test compares with anything"


@pytest.mark.parametrize("path", PUBLISHED_RECIPES, ids=lambda p: p.stem)
def test_published_lists_and_switches(path: Path) -> None:
    recipe, entry = load(path), official(path)
    model, data = recipe["model"]["init_args"], recipe["data"]["init_args"]
    layers, index = entry["decoder"]["layers"], entry["decoder"]["eval_idx"]
    assert model["decoder"]["eval_layers"] == (index + 1 if index >= 0 else layers)
    assert model["multi_scale"] == entry["multi_scale"]
    assert model["backbone"]["frozen_norm"] is entry["backbone"]["freeze_norm"]
    assert model["backbone"]["freeze_stem"] is (entry["backbone"]["freeze_at"] >= 0)
    depth = re.search(r"\d+", entry["backbone"]["name"])
    assert depth is not None
    assert model["backbone"]["name"] == f"resnet{depth.group()}d"
    assert entry["warmup_pytorch_v1"] is None
    assert model["schedule"]["warmup_steps"] == 0
    assert model["schedule"]["drop_epochs"] == []
    assert (model["schedule"]["decay"], model["schedule"]["final_factor"]) == ("constant", 1.0)
    assert data["input"]["size"] == [entry["input_size"]] * 2
    assert data["input"]["mean"] == data["input"]["std"] == []
    assert data["labels"] == "contiguous"
    assert recipe["trainer"]["sync_batchnorm"] is entry["sync_bn"]
    assert (recipe["trainer"]["precision"] == "32-true") is not entry["amp"]
    assert recipe["about"]["sources"] == [entry["checkpoint"]]
    assert recipe["about"]["published"].get("decoder_layers", {}) == entry["results_fewer_layers"]
    # two FLOPs a multiply-add; the published figure is rounded and leaves out little
    assert recipe["about"]["macs"] * 2e-9 == pytest.approx(entry["results"]["GFLOPs"], rel=0.035)


@pytest.mark.parametrize("path", PUBLISHED_RECIPES, ids=lambda p: p.stem)
def test_rules_carry_the_published_rates(path: Path) -> None:
    """That the regexes select the official parameters is proven on the model, with its golden groups."""
    base = official(path)["optimizer"]
    rules = load(path)["model"]["init_args"]["schedule"]["rules"]
    theirs = [g for g in base["param_groups"] if g["pattern"] != "<rest>"]
    assert [(r.get("lr"), r.get("weight_decay")) for r in rules] == [
        (g.get("lr"), g.get("weight_decay")) for g in theirs
    ]
