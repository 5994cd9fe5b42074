"""Contract over recipes/**/*.yaml: complete, flat, each published number as published and with its source."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from recipe_numbers import DETR_FAMILIES, assert_as_published, leaves, load, rates

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))
PUBLISHED_RECIPES = sorted((ROOT / "recipes" / "rt_detr").glob("*_coco_*.yaml"))
EXTRACT = load(ROOT / "tests/data/published_rt_detr.yaml")
O365 = load(ROOT / "tests/data/published_rt_detr_o365.yaml")
TUNED = {key: entry for key, entry in O365.items() if "same_as" in entry}

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


def official(path: Path) -> dict[str, Any]:
    own: dict[str, Any] = TUNED.get(path.stem, {})
    return {**EXTRACT[own.get("same_as", path.stem.removesuffix("_coco_72e"))], **own}


def test_recipes_were_found() -> None:
    assert {p.stem for p in PUBLISHED_RECIPES} == {*(f"{size}_coco_72e" for size in EXTRACT), *TUNED}
    assert {"tiny", "finetune"} <= {p.stem for p in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_recipe_is_complete_and_flat(path: Path) -> None:
    recipe = load(path)
    assert list(recipe) == [
        "about", "seed_everything", "model", "data", "trainer", "checkpoint", "init_from", "tracking",
    ]  # fmt: skip
    assert recipe["about"]["family"] == path.parent.name
    backbone = recipe["model"]["init_args"].get("backbone")
    assert backbone is None or backbone["weights"], "absent weights would train from scratch in silence"
    assert not re.search(r"(?m)^\s*(__include__|_base_|defaults)\s*:", path.read_text())


PRINTED = ("params", "file_size", "AR", "counting", "macs_per_flop", "speed_on")


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_what_authors_print_beside_their_scores_is_near_what_is_counted(path: Path) -> None:
    about = load(path)["about"]
    published, printed = about["published"] or {}, about.get("printed", {})
    assert set(printed) <= set(PRINTED)
    if "params" in printed:
        assert re.fullmatch(r"\d+(\.\d)? M", printed["params"])
        # millions, rounded or cut, and of 80 classes where there are 365 too
        millions, digit = printed["params"].split()[0], 0.7 if "." not in printed["params"] else 0.05
        assert about["params"] / 1e6 == pytest.approx(float(millions), rel=0.06, abs=digit)
    if "gflops" in published and printed:
        # DETR's figure is a mean over images of many sizes, ours is of one size
        macs = published["gflops"] * printed["macs_per_flop"]
        assert about["macs"] / 1e9 == pytest.approx(macs, rel=0.08)
    if "file_size" in printed:
        # float32 weights; with them the integer buffers and names, in MB of 2^20 bytes
        assert about["params"] * 4 / 2**20 == pytest.approx(int(printed["file_size"].split()[0]), rel=0.02)
    assert all(0 < value < 100 for value in printed.get("AR", {}).values())


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
    assert_as_published(path.name, load(path), official(path), WHERE, ELSEWHERE)


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
    assert rates(rules) == rates(theirs)


@pytest.mark.parametrize("path", PUBLISHED_RECIPES, ids=lambda p: p.stem)
def test_name_and_start_are_those_of_the_schedule(path: Path) -> None:
    recipe, entry = load(path), official(path)
    size, _, tag = path.stem.partition("_")
    assert (recipe["about"]["name"], recipe["about"]["tag"]) == (f"rt_detr_{size}", tag)
    assert tag.endswith(f"coco_{entry['epochs']}e")
    source = entry.get("init_from", "none")
    assert recipe["init_from"] == {"source": source, "head": "keep" if source == "none" else "new"}


@pytest.mark.parametrize("stem", list(TUNED))
def test_a_recipe_from_objects365_differs_in_start_and_epochs_alone(stem: str) -> None:
    folder = ROOT / "recipes" / "rt_detr"
    recipe, base = load(folder / f"{stem}.yaml"), load(folder / f"{TUNED[stem]['same_as']}_coco_72e.yaml")
    for part in ("about", "init_from"):
        del recipe[part], base[part]
    assert recipe["trainer"].pop("max_epochs") != base["trainer"].pop("max_epochs")
    assert recipe == base


@pytest.mark.parametrize("size", list(O365["objects365"]))
def test_pre_training_on_objects365_is_the_coco_recipe_and_says_what_is_unpublished(size: str) -> None:
    folder, entry = ROOT / "recipes" / "rt_detr", O365["objects365"][size]
    path = folder / f"{size}_o365_12e.yaml"
    recipe, base = load(path), load(folder / f"{size}_coco_72e.yaml")
    about = recipe.pop("about")
    assert (about["name"], about["tag"]) == (f"rt_detr_{size}", f"o365_{entry['epochs']}e")
    assert about["published"] == {"AP": entry["AP"], "AP50": entry["AP50"]}
    assert about["sources"] == [entry["checkpoint"]]
    assert about["measured"] is None
    unpublished = ["batch size", "GPUs", "learning rate", "augmentation", "version and split of the data"]
    assert about["unpublished"] == unpublished
    theirs = dict(leaves({k: v for k, v in base.items() if k != "about"}))
    ours = dict(leaves(recipe))
    assert {k: v for k, v in ours.items() if theirs.get(k) != v} == {
        "model.num_classes": 365,
        "data.class_path": "datamodules.objects365.Objects365DataModule",
        "data.root": "data/objects365",
        "trainer.max_epochs": entry["epochs"],
    }
    assert ours.keys() == theirs.keys()
    said = [
        line.split(":")[0].strip(" -") for line in path.read_text().splitlines() if "# unpublished" in line
    ]
    rates = sum(key.endswith(".lr") for key in ours)
    assert said == [*["lr"] * rates, "global_batch_size", "train_transform"]
    assert "unpublished" in next(line for line in path.read_text().splitlines() if "    root:" in line)


# -- DETR -----------------------------------------------------------------------------------------

DETR_RECIPES = [
    path for path in sorted((ROOT / "recipes" / "detr").glob("*_coco_*.yaml"))
    if "panoptic" not in path.stem  # these: test_recipes_panoptic.py
]  # fmt: skip
DETR_EXTRACT = load(ROOT / "tests/data/published_detr.yaml")
each_detr = pytest.mark.parametrize("path", DETR_RECIPES, ids=lambda p: p.stem)

DETR_WHERE = {
    **DETR_FAMILIES,
    "about.params": "params",
    "about.published.AP": "results.AP",
    "about.published.AP50": "results.AP50",
    "model.no_object_weight": "loss.no_object_weight",
    "model.schedule.lr": "optimizer.lr",
    "model.schedule.rules.1.lr": "optimizer.lr_backbone",
    "model.schedule.drop_epochs.0": "lr_drop_epoch",
    "model.schedule.global_batch_size": "batch.total",
    "trainer.max_epochs": "epochs",
}
# published for some of the runs only
DETR_SOMETIMES = {
    "about.published.gflops": "results.GFLOPs",
    "about.published.fps": "results.FPS_paper",
    "about.published.seconds_per_image": "results.inference_s",
    "about.published.gpu_hours": "gpu_hours",
}
DETR_ELSEWHERE = ("about.macs", "model.schedule.warmup_steps", "model.schedule.final_factor")


def test_detr_recipes_were_found() -> None:
    assert {p.stem for p in DETR_RECIPES} == set(DETR_EXTRACT)
    assert len(DETR_RECIPES) == 6


@each_detr
def test_published_numbers_of_detr_are_as_published(path: Path) -> None:
    entry = DETR_EXTRACT[path.stem]
    assert_as_published(path.name, load(path), entry, DETR_WHERE, DETR_ELSEWHERE, DETR_SOMETIMES)


@each_detr
def test_published_switches_of_detr(path: Path) -> None:
    recipe, entry = load(path), DETR_EXTRACT[path.stem]
    model, data, about = recipe["model"]["init_args"], recipe["data"]["init_args"], recipe["about"]
    assert model["backbone"]["name"] == entry["backbone"]["name"]
    assert model["backbone"]["weights"] == f"{entry['backbone']['name']}_imagenet1k_v1"
    assert model["backbone"]["dilate_last"] is entry["backbone"]["dilation_c5"]
    assert model["backbone"]["frozen_norm"] is True
    assert model["transformer"]["pre_norm"] is (entry["transformer"]["norm_style"] == "pre")
    assert len(set(entry["transformer"]["dropout"].values())) == 1, "one number stands for all three places"
    assert model["normalizer"] == "exact"
    assert model["ema"] is entry["ema"]
    assert model["schedule"]["warmup_steps"] == 0
    assert (model["schedule"]["decay"], model["schedule"]["final_factor"]) == ("constant", 1.0)
    assert [r.get("freeze", False) for r in model["schedule"]["rules"]] == [True, False]
    assert data["labels"] == "category_id"
    assert data["train_transform"] == "detr"
    assert data["input"]["resize"] == "shortest"
    assert data["batch_size"] == entry["batch"].get("per_gpu", 4)
    assert recipe["trainer"]["sync_batchnorm"] is entry["sync_bn"]
    assert (recipe["trainer"]["precision"] == "32-true") is not entry["amp"]
    assert about["name"] == "_".join(["detr", *path.stem.split("_coco_")[:1]])
    assert about["tag"] == f"coco_{entry['epochs']}e"
    if entry["checkpoint"] is None:
        assert about["sources"] == []
    else:
        url, prefix = entry["checkpoint"]["url"], entry["checkpoint"]["sha256_prefix"]
        repository = f"facebook/detr-resnet-{path.stem.split('_coco')[0].removeprefix('r').replace('_', '-')}"
        assert about["sources"][0] == f"{url}#sha256={prefix}"
        assert url.endswith(f"-{prefix}.pth")
        assert f"huggingface.co/{repository}/" in about["sources"][1]
        # one FLOP a multiply-add; published is the mean over val images, most of them wider than 1066
        assert about["macs"] * 1e-9 == pytest.approx(entry["results"]["GFLOPs"], rel=0.08)
