"""Contract over architectures/*.py: what every recipe of every family does, at a size that takes milliseconds.

A family is found by its file and its recipes; `tests/tiny/<family>.yaml` makes its networks small.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from torch import nn

from datamodules.shapes import generate_shapes
from zoo.cli.main import run_command
from zoo.contract.batch import Batch, Sample, Step, collate
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.registry.weights import load_strictly
from zoo.runs import recipes
from zoo.training.module import DetectionModule, build_module

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = sorted(p.stem for p in (ROOT / "zoo" / "architectures").glob("[a-z]*.py"))
RECIPES = [key for key in recipes.bundled() if not key.rpartition("/")[2].startswith("finetune")]
CLASSES, SIDE = 3, 64
HOOKS = {n for n in vars(LightningModule) if n.startswith(("on_", "configure_")) or n.endswith("_step")}


def overlay(family: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "tests" / "tiny" / f"{family}.yaml").read_text()))


def small_arguments(key: str) -> dict[str, Any]:
    """The model's arguments with the family's overlay; one that the class does not take fails when it is built."""
    recipe = recipes.load(recipes.resolve(key))
    arguments: dict[str, Any] = {**recipe["model"]["init_args"]}
    for name, changes in overlay(recipe["about"]["family"]).items():
        if name in arguments:
            arguments[name] = arguments[name] | changes if isinstance(changes, dict) else changes
    return arguments


def distinct() -> list[str]:
    """The first recipe of each network and each set of rules: sizes are overlaid, epochs play no part."""
    seen: dict[str, str] = {}
    for key in RECIPES:
        model = recipes.load(recipes.resolve(key))["model"]
        arguments = small_arguments(key)
        arguments["schedule"] = arguments["schedule"]["rules"]
        seen.setdefault(
            json.dumps([model["class_path"], arguments | {"num_classes": CLASSES}], sort_keys=True), key
        )
    return list(seen.values())


every_recipe = pytest.mark.parametrize("key", distinct())


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


def test_every_family_has_recipes_and_an_overlay() -> None:
    families = {key.partition("/")[0] for key in RECIPES}
    assert families == set(FAMILIES) == {p.stem for p in (ROOT / "tests" / "tiny").glob("*.yaml")}


@every_recipe
def test_no_hook_is_overridden(key: str) -> None:
    """Families differ in their parts, not in how a step runs."""
    kind = type(tiny_module(key))
    assert "training_step" in HOOKS
    assert [n for n in HOOKS if getattr(kind, n) is not getattr(DetectionModule, n)] == []


@every_recipe
def test_every_parameter_that_trains_gets_a_gradient(key: str) -> None:
    for name, gradient in gradients(tiny_module(key), [batch_of(3, 1)]).items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name


@every_recipe
def test_two_images_give_the_gradient_of_one_and_one(key: str) -> None:
    module, whole = fixed_statistics(tiny_module(key)), batch_of(3, 1)
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
