"""Frozen parts: of every family by name, out of the optimizer, and still to the last statistic."""

import pytest
import torch
from test_module import build, make_data, trainer
from test_saving import equal
from tiny_families import first_of_each_class, small_arguments

from datamodules.shapes import generate_shapes
from zoo.runs import recipes
from zoo.runs.options import freezing as option
from zoo.storage.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from zoo.storage.patterns import compiled
from zoo.training import freezing
from zoo.training.freezing import PARTS
from zoo.training.module import build_module
from zoo.training.saving import BEFORE, LAST, CheckpointSaver
from zoo.training.schedule import ParamRule

FAMILIES = first_of_each_class()


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return generate_shapes(tmp_path_factory.mktemp("shapes"), 16, 4, seed=0, size=64)


def small(key):
    model = recipes.load(recipes.resolve(key))["model"]
    arguments = small_arguments(key)
    arguments["schedule"] = arguments["schedule"] | {"rules": []}
    return build_module(model | {"init_args": arguments}, backbone_weights="random")


def freeze(module, *names):
    rules = [ParamRule(match=PARTS[name], freeze=True) for name in names]
    object.__setattr__(module.schedule, "rules", [*rules, *module.schedule.rules])
    return module


@pytest.mark.parametrize("key", FAMILIES)
def test_every_family_has_the_parts(key):
    module = small(key)
    names = {n for n, p in module.network.named_parameters() if p.requires_grad}
    found = {part: {n for n in names if compiled(rule).search(n)} for part, rule in PARTS.items()}
    head = names - found["all-but-head"]
    assert found["backbone"]
    assert found["encoder"]
    assert not found["backbone"] & found["encoder"]
    assert found["backbone"] | found["encoder"] < found["all-but-head"]
    assert {n for n in names if compiled(module.class_tensors).search(n)} <= head
    assert {n for n in names if "bbox" in n or "mask_head" in n or "lqe" in n} <= head
    assert not any("layers.0.self_attn" in n or "query" in n for n in head)


@pytest.mark.parametrize("key", FAMILIES)
@pytest.mark.parametrize("part", PARTS)
def test_the_optimizer_has_what_trains_alone(key, part):
    module = freeze(small(key), part)
    groups = module.schedule.optimizer(module.network).param_groups
    held = {n for group in groups for n in group["param_names"]}
    assert held == {n for n, p in module.network.named_parameters() if p.requires_grad}
    assert held
    assert not any(compiled(PARTS[part]).search(n) for n in held)


def fit(shapes, folder, module, steps, resume=None):
    saver = CheckpointSaver(every_n_train_steps=1)
    saver.folder = folder
    run = trainer(
        folder, enable_checkpointing=True, plugins=[AtomicCheckpointIO()], callbacks=[saver], max_epochs=-1,
        max_steps=steps,
    )  # fmt: skip
    run.fit(module, make_data(shapes, 4), ckpt_path=None if resume is None else str(resume))
    return module


@pytest.mark.parametrize("part", ["backbone", "all-but-head"])
def test_what_is_frozen_does_not_move_and_a_resume_is_the_same(shapes, tmp_path, part):
    before = {n: v.clone() for n, v in build().network.state_dict().items()}
    one, two = tmp_path / "one", tmp_path / "two"
    module = fit(shapes, one, freeze(build(), part), 3)
    after = module.network.state_dict()
    rule = compiled(PARTS[part])
    still = {n for n, v in after.items() if torch.equal(v, before[n])}
    norms = {n.rpartition(".")[0] for n in before if n.endswith("running_mean")}
    frozen = {n for n in before if rule.search(n)}
    assert {n for n in frozen if n.rpartition(".")[0] in norms}, "there are norms to hold"
    assert frozen <= still
    moved = set(before) - still
    assert moved
    averaged = module.ema.network.state_dict()
    assert all(torch.equal(averaged[n], before[n]) for n in frozen)
    assert any(not torch.equal(averaged[n], before[n]) for n in moved)
    if part == "backbone":  # other norms learn, and so follow the images
        assert any("running_mean" in n for n in moved)
    assert read_checkpoint(one / BEFORE)["zoo"]["step"] == 2
    fit(shapes, two, freeze(build(), part), 3, resume=one / BEFORE)
    equal(one / LAST, two / LAST)


def test_the_list_of_what_trains():
    module = freeze(build(), "backbone")
    module.schedule.freeze(module.network.named_parameters())
    trains, frozen = freezing.told(module.network)
    counts = {n: sum(p.numel() for p in c.parameters()) for n, c in module.network.named_children()}
    assert trains == (
        f"trains      {counts['encoder'] + counts['decoder']:,} of {sum(counts.values()):,} parameters: "
        f"encoder {counts['encoder']:,}, decoder {counts['decoder']:,}"
    )
    assert frozen == f"frozen      backbone {counts['backbone']:,}"
    (line,) = freezing.told(build().network)
    assert "frozen" not in line
    head = freeze(build(), "all-but-head")
    head.schedule.freeze(head.network.named_parameters())
    trained, kept = freezing.trained_parts(head.network)
    assert set(trained) == {f"decoder.{n}" for n in (
        "enc_score_head", "dec_score_head", "enc_bbox_head", "dec_bbox_head", "denoising_class_embed",
    )}  # fmt: skip
    assert sum(trained.values()) + sum(kept.values()) == sum(counts.values())


def test_the_constants_of_a_decoder_are_no_part_that_is_frozen():
    key = next(key for key in FAMILIES if key.startswith("dfine"))
    trained, frozen = freezing.trained_parts(small(key).network)
    assert "decoder" in trained
    assert set(frozen) == {"backbone.conv1"}  # the stem that the recipe freezes


@pytest.mark.parametrize(("given", "told"), [
    ("backbones", "did you mean backbone?"), ("decoder", "encoder"), ("", "there are backbone, encoder, all-but-head"),
    ("backbone,nothing", "--freeze 'nothing' is no part"),
])  # fmt: skip
def test_a_wrong_name_is_one_line_with_those_there_are(given, told):
    recipe = recipes.load(recipes.resolve("rt_detr/tiny"))
    with pytest.raises(ValueError, match=told) as error:
        option.write(recipe, given)
    assert "\n" not in str(error.value)
    assert "all-but-head" in str(error.value)


def test_rules_of_the_recipe_come_after():
    recipe = recipes.load(recipes.resolve("rt_detr/tiny"))
    rules = list(recipe["model"]["init_args"]["schedule"]["rules"])
    (note,) = option.write(recipe, "backbone, encoder")
    frozen = [{"match": PARTS[name], "freeze": True} for name in ("backbone", "encoder")]
    assert recipe["model"]["init_args"]["schedule"]["rules"] == [*frozen, *rules]
    assert "no trained weights" in note
    recipe["init_from"]["source"] = "rt_detr_tiny.mine:1"
    assert option.write(recipe, ["backbone"]) == []
    assert option.write(recipe, None) == []
