"""`zoo finetune` of DETR and Deformable DETR: small enough for two cores, from a folder to a registered model."""

import json

import pytest
import torch
from empty_store import put_empty_store

from datamodules.shapes import generate_shapes
from zoo.cli.main import run_command
from zoo.cli.overrides import split_overrides
from zoo.contract.batch import Sample, collate
from zoo.registry.store import LocalRegistry
from zoo.registry.weights import count
from zoo.runs import recipes
from zoo.runs.finetune import (
    Choices,
    complete_recipe,
    fit_to_data,
    head_note,
    parse_size,
    read_data,
    starting_point,
)
from zoo.training.module import build_module

SMALL = {
    "detr_r50": ["--model.transformer.dim", "64", "--model.transformer.encoder_layers", "1"],
    "deformable_detr_r50": ["--model.transformer.dim", "64", "--model.transformer.encoder_layers", "1"],
    "deformable_detr_r50_two_stage": ["--model.transformer.dim", "64", "--model.transformer.encoder_layers", "1"],
}  # fmt: skip
COMMON = [
    "--model.transformer.decoder_layers", "1", "--model.transformer.num_queries", "8",
    "--model.transformer.ffn_dim", "32", "--model.transformer.num_heads", "4", "--model.backbone.name", "residual",
    "--model.backbone.widths", "[8,8,16,16,16]",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _store(tmp_path):
    put_empty_store(tmp_path / "mlruns")


@pytest.fixture
def shapes(tmp_path):
    return generate_shapes(tmp_path / "shapes", num_train=8, num_val=4, seed=0, size=64)


def build(model, data, **choices):
    start = starting_point(model, None)
    chosen = Choices(model=model, data=data, **choices)
    recipe, notes = complete_recipe(start, chosen)
    notes += [*fit_to_data(recipe, read_data(recipe), chosen), head_note(recipe)]
    return recipe, notes


@pytest.mark.parametrize(
    "model",  # of the two of one network the harder one; the other with -m slow
    [
        "detr_r50",
        pytest.param("deformable_detr_r50", marks=pytest.mark.slow),
        "deformable_detr_r50_two_stage",
    ],
)
def test_from_a_folder_to_a_registered_model(shapes, capsys, model):
    arguments = ["finetune", model, "--data", str(shapes), "--weights", "random", "--max-steps", "2"]
    arguments += [
        "--image-size",
        "64",
        "--batch-size",
        "4",
        "--name",
        f"{model}_small.mine",
        "--output",
        "run",
    ]
    assert run_command([*arguments, *SMALL[model], *COMMON, "--json"]) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["registered"] == f"{model}_small.mine:1"
    assert "weights: random" in said.err
    assert "class head: new rows start" in said.err
    manifest = LocalRegistry().manifest(parse(f"{model}_small.mine")).to_dict()
    # the rules of the schedule survive registration as they were written
    written = recipes.load(recipes.resolve("run/recipe.yaml"))["model"]
    rules = [
        {k: v for k, v in r.items() if v not in (None, False)}
        for r in manifest["model"]["init_args"]["schedule"]["rules"]
    ]
    assert rules == written["init_args"]["schedule"]["rules"]
    image = next((shapes / "val").glob("*.png"))
    assert run_command(["predict", f"{model}_small.mine", str(image), "--threshold", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["predictions"][0]["detections"]


def parse(name):
    from zoo.registry.names import parse_reference

    return parse_reference(name)


@pytest.mark.parametrize("model", ["deformable_detr_r50", "deformable_detr_r50_two_stage"])
def test_the_new_head_of_deformable_detr_starts_at_the_focal_prior_and_says_so(shapes, model):
    recipe, notes = build(model, shapes, weights="random", overrides=overrides(model))
    assert any("0.01 for every class (the focal prior)" in note for note in notes)
    network = build_module(recipe["model"]).network
    for head in network.class_embed:
        assert torch.allclose(head.bias.sigmoid(), torch.full_like(head.bias, 0.01))


def test_detrs_head_has_one_row_more_and_no_prior(shapes):
    recipe, notes = build("detr_r50", shapes, weights="random", overrides=overrides("detr_r50"))
    assert any("as torch starts a linear layer" in note for note in notes)
    assert build_module(recipe["model"]).network.class_embed.out_features == 4 + 1


def overrides(model):
    words = [*SMALL[model], *COMMON]
    return split_overrides(words)[1]


@pytest.mark.parametrize("model", list(SMALL))
def test_random_weights_leave_nothing_frozen_or_slow_but_what_the_method_slows(shapes, model):
    recipe, notes = build(model, shapes, weights="random")
    arguments = recipe["model"]["init_args"]
    assert not arguments["backbone"]["freeze_stem"]
    assert not arguments["backbone"]["frozen_norm"]
    rules = arguments["schedule"]["rules"]
    assert [r["match"] for r in rules] == (
        [] if model == "detr_r50" else ["reference_points|sampling_offsets"]
    )
    assert any("learns instead of being frozen" in note for note in notes)


@pytest.mark.parametrize("model", list(SMALL))
def test_published_weights_are_the_default_and_the_published_rates_stay(shapes, model):
    recipe, _ = build(model, shapes)
    assert recipe["init_from"]["source"].startswith(f"{model}.coco_")
    assert recipe["model"]["init_args"]["schedule"]["rules"][0]["freeze"] is True
    size = recipes.load(recipes.resolve(model))["model"]["init_args"]
    for key in ("transformer", "costs", "losses"):
        assert recipe["model"]["init_args"][key] == size[key]


@pytest.mark.parametrize("model", list(SMALL))
def test_no_network_wrong_data_and_wrong_name_are_one_line(shapes, model, capsys, tmp_path):
    assert run_command(["finetune", model, "--data", str(shapes)]) == 2
    assert "cannot be fetched" in last(capsys)
    assert run_command(["finetune", model, "--data", str(tmp_path / "gone"), "--weights", "random"]) == 2
    assert "gone" in last(capsys)
    assert run_command(["finetune", model + "x", "--data", str(shapes)]) == 2
    assert f"did you mean {model!r}" in last(capsys)


def last(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("text", "sides"), [("480", [480, 799]), ("200x300", [200, 300]), ("300x200", [200, 300])]
)
def test_image_size_of_the_shortest_rule(text, sides):
    assert parse_size(text, "shortest") == sides
    with pytest.raises(ValueError, match="at least 32"):
        parse_size("16", "shortest")


def test_counting_leaves_the_module_as_it_was(shapes):
    """torch's counter fails on a view of a parameter that needs a gradient, which learned queries are."""
    recipe, _ = build(
        "deformable_detr_r50", shapes, weights="random", overrides=overrides("deformable_detr_r50")
    )
    module = build_module(recipe["model"])
    data = read_data(recipe)
    module.adopt(data.label_map, data.input)
    before = {n: p.requires_grad for n, p in module.named_parameters()}
    params, macs, counted = count(module.eval(), data.input)
    assert params > 0
    assert macs > 0
    assert "800x1066" in counted
    assert {n: p.requires_grad for n, p in module.named_parameters()} == before
    sample = Sample(
        torch.zeros(3, 64, 64, dtype=torch.uint8),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, 4),
        0,
        (64, 64),
    )
    assert module.detect(collate([sample]))


@pytest.mark.parametrize("model", ["rt_detrv2_r34", "rt_detrv2_r34.deim_coco_120e"])
def test_network_and_loss_are_those_of_the_model_and_the_schedule_is_that_of_fine_tuning(shapes, model):
    recipe, _ = build(model, str(shapes), weights="random")
    arguments = recipe["model"]["init_args"]
    published = recipes.load(recipes.resolve(model))["model"]["init_args"]
    for part in ("encoder", "decoder", "costs", "losses", "label_loss"):
        assert arguments[part] == published[part], part
    assert published["multi_scale_epochs"] == 117
    assert (arguments["multi_scale"], arguments["multi_scale_epochs"]) == ([], None)
    assert arguments["schedule"]["decay"] == "cosine"
    assert "restart_epoch" not in arguments["schedule"]
    assert "dense_o2o" not in recipe["data"]["init_args"]
