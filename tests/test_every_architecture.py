"""Contract over architectures/*.py: what every recipe of every family does, at a size that takes milliseconds.

A family is found by its file and its recipes; `tests/tiny/<family>.yaml` makes its networks small.
"""

from __future__ import annotations

import copy
import inspect
import json
import re
import typing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from tiny_families import ROOT, distinct, overlay, small_arguments, trained_recipes
from torch import nn

import zoo.training.criterion
from datamodules.shapes import generate_shapes
from zoo.cli.main import run_command
from zoo.contract.batch import Batch, Sample, Step, collate
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.layers.backbone import BackboneConfig
from zoo.prediction.masks import PanopticRule
from zoo.registry.weights import load_strictly
from zoo.runs import recipes
from zoo.training.ema import EmaConfig
from zoo.training.module import DetectionModule, build_module
from zoo.training.schedule import Schedule

FAMILIES = sorted(p.stem for p in (ROOT / "zoo" / "architectures").glob("[a-z]*.py"))
RECIPES = trained_recipes()
CLASSES, SIDE = 3, 64
HOOKS = {n for n in vars(LightningModule) if n.startswith(("on_", "configure_")) or n.endswith("_step")}


every_recipe = pytest.mark.parametrize("key", distinct(CLASSES))


def tiny_module(key: str) -> DetectionModule:
    """The recipe's module, small, in float64, its schedule's rules applied, without dropout."""
    torch.manual_seed(0)
    model = recipes.load(recipes.resolve(key))["model"]
    module = build_module(model | {"init_args": small_arguments(key) | {"num_classes": CLASSES}})
    module.schedule.groups(module.network.named_parameters())
    return module.double().train()


def batch_of(*counts: int) -> Batch:
    """A step of images of one size with as many objects, outlined too."""
    samples = []
    for number, count in enumerate(counts):
        generator = torch.Generator().manual_seed(number)
        samples.append(
            Sample(
                image=torch.rand(3, SIDE, SIDE, generator=generator, dtype=torch.float64),
                labels=torch.randint(CLASSES, (count,), generator=generator),
                boxes=0.25 + 0.3 * torch.rand(count, 4, generator=generator, dtype=torch.float64),
                image_id=number,
                original_size=(SIDE, SIDE),
                masks=torch.rand(count, SIDE, SIDE, generator=generator) < 0.3,
            )
        )
    return replace(collate(samples), step=Step(torch.tensor(counts), (SIDE, SIDE), 1, seed=5))


def gradients(module: DetectionModule, parts: list[Batch]) -> dict[str, torch.Tensor | None]:
    module.zero_grad()
    for part in parts:
        torch.stack([value.sum() for value in module.losses(part).values()]).sum().backward()
    return {n: p.grad for n, p in module.network.named_parameters() if p.requires_grad}


def fixed_statistics(module: DetectionModule) -> DetectionModule:
    """Batch statistics are those of a micro-batch: what depends on them is no fault of the loss."""
    for part in module.network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    return module


def test_every_family_has_recipes() -> None:
    assert {key.partition("/")[0] for key in RECIPES} == set(FAMILIES)
    assert {p.stem for p in (ROOT / "tests" / "tiny").glob("*.yaml")} <= set(FAMILIES)


@every_recipe
def test_no_hook_is_overridden(key: str) -> None:
    """Families differ in their parts, not in how a step runs."""
    kind = type(tiny_module(key))
    assert "training_step" in HOOKS
    assert [n for n in HOOKS if getattr(kind, n) is not getattr(DetectionModule, n)] == []


# arguments that the pipeline knows by name, and what each is
KNOWN = {"schedule": Schedule, "backbone": BackboneConfig, "ema": EmaConfig, "panoptic": PanopticRule}


@every_recipe
def test_arguments_that_the_pipeline_knows_have_their_names(key: str) -> None:
    module = tiny_module(key)
    hints = typing.get_type_hints(type(module).__init__)
    kinds = {name: {hint, *typing.get_args(hint)} for name, hint in hints.items()}
    parameters = inspect.signature(type(module)).parameters
    assert {"num_classes", "schedule"} <= set(parameters)
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())
    for name, kind in KNOWN.items():
        assert {n for n, of in kinds.items() if kind in of} == {name} & set(kinds)
    if "backbone" in parameters:
        assert any(n.startswith("backbone.") for n, _ in module.network.named_parameters())


@every_recipe
def test_it_finds_as_many_objects_as_it_says_it_has_queries(key: str) -> None:
    module = tiny_module(key).eval()
    queries = module.num_queries(module.init_args)
    assert queries == type(module).num_queries(small_arguments(key))
    with torch.no_grad():
        assert module.network(batch_of(1)).final.boxes.shape[1] == queries
    assert module.limits_of(module.init_args).queries in (None, queries)


@every_recipe
def test_class_rows_are_named_and_start_as_it_says(key: str) -> None:
    """Only tensors with a row a class change their shape with the classes; biases of logits tell the prior."""
    module = tiny_module(key)
    wider = build_module(
        module.model_block() | {"init_args": module.init_args | {"num_classes": CLASSES + 2}}
    )
    before, after = module.network.state_dict(), wider.network.state_dict()
    assert before.keys() == after.keys()
    of_classes = {n for n in before if re.search(module.class_tensors, n)}
    assert {n for n in before if before[n].shape != after[n].shape} == of_classes != set()
    assert all(len(after[n]) - len(before[n]) == 2 for n in of_classes)
    biases = torch.cat([before[n] for n in of_classes if n.endswith("bias")]).sigmoid()
    if module.class_prior is None:
        assert biases.std() > 0
    else:
        assert (biases - module.class_prior).abs().max() < 1e-6


@every_recipe
def test_masks_are_learned_where_it_says_so(key: str) -> None:
    module = tiny_module(key)
    assert module.learns_masks == (module.instances is not None)
    assert module.learns_masks or module.panoptic is None
    if module.added_tensors is not None:
        assert any(re.search(module.added_tensors, n) for n in module.network.state_dict())


@every_recipe
def test_fewer_decoder_layers_are_evaluated_where_it_says_so(key: str) -> None:
    module, batch = tiny_module(key).eval(), batch_of(2)
    whole = module.decoder_layers
    if whole is None:
        with pytest.raises(NotImplementedError):
            module.set_decoder_layers(1)
        return
    expected = module.detect(batch)[0].boxes_xyxy
    before = module.set_decoder_layers(1)
    assert not torch.equal(module.detect(batch)[0].boxes_xyxy, expected)
    assert module.set_decoder_layers(before) == 1
    assert torch.equal(module.detect(batch)[0].boxes_xyxy, expected)


@every_recipe
def test_every_parameter_that_trains_gets_a_gradient(key: str) -> None:
    for name, gradient in gradients(tiny_module(key), [batch_of(3, 1)]).items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name


def objects_of_step(found: int, objects: int, step: Step, device: torch.device) -> float:
    return float(step.num_boxes)


@every_recipe
def test_two_images_give_the_gradient_of_one_and_one(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, whole = fixed_statistics(tiny_module(key)), batch_of(3, 1)
    if module.estimates_pairs:  # how far off that is tests/test_partition_invariance.py tells
        monkeypatch.setattr(zoo.training.criterion, "pairs_of_step", objects_of_step)
    expected = {n: g.clone() for n, g in gradients(module, [whole]).items() if g is not None}
    split = gradients(module, [whole.part(0, 1), whole.part(1, 2)])
    assert expected
    for name, gradient in expected.items():
        other = split[name]
        assert other is not None
        assert (other - gradient).abs().max() <= 1e-9 * gradient.abs().max().clamp(min=1e-3), name


@every_recipe
@pytest.mark.parametrize("counts", [(0,), (0, 0)], ids=["one image", "two images"])
def test_images_without_objects_train(key: str, counts: tuple[int, ...]) -> None:
    module = fixed_statistics(tiny_module(key))
    for name, gradient in gradients(module, [batch_of(*counts)]).items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name


@every_recipe
def test_it_predicts_and_loads_what_it_saved(key: str) -> None:
    module = tiny_module(key).eval()
    module.adopt(
        LabelMap.contiguous(["a", "b", "c"], [1, 2, 3]), InputContract(resize="stretch", size=(SIDE, SIDE))
    )
    saved = copy.deepcopy(module.network.state_dict())
    again = tiny_module(key).eval()
    with torch.no_grad():
        for parameter in again.network.parameters():
            parameter.add_(1.0)
    load_strictly(again, saved)
    batch = batch_of(2, 0)
    ours, theirs = module.detect(batch), again.detect(batch)
    assert len(ours) == 2
    for one, other in zip(ours, theirs, strict=True):
        assert len(one.scores) > 0
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.boxes_xyxy, other.boxes_xyxy)


@pytest.mark.parametrize("family", FAMILIES)
def test_finetune_trains_one_step_of_it(family: str, tmp_path: Path) -> None:
    data = generate_shapes(tmp_path / "shapes", num_train=4, num_val=2, seed=0, size=SIDE)
    key = next(k for k in RECIPES if k.startswith(f"{family}/") and "panoptic" not in k)
    name = recipes.load(recipes.resolve(key))["about"]["name"]
    options = ["--weights", "random", "--max-steps", "1", "--batch-size", "2", "--image-size", str(SIDE)]
    for part, changes in overlay(family).items():
        for option, value in changes.items() if isinstance(changes, dict) else [("", changes)]:
            dotted = ".".join(filter(None, ("model", part, option)))
            options += [f"--{dotted}", json.dumps(value)]
    assert run_command(["finetune", name, "--data", str(data), *options, "--output", "run"]) == 0
    assert Path("run", "metrics.json").is_file()
