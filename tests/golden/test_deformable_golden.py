"""Deformable DETR equals fundamentalvision/Deformable-DETR@11169a6 on every stored case.

`GOLDEN_DIR` names a directory of official numbers; without it, `../shared/golden` beside the checkout
where that exists, else the cases committed with the package.
"""

import json
import os
from pathlib import Path

import pytest
import yaml

from zoo.training.module import build_module
from zoo.verification.cases import COMMITTED, Case, find_cases
from zoo.verification.deformable_detr import SCHEDULE, run_structure, runner_of

ROOT = Path(__file__).parents[2]
RECIPES = {
    "deformable_r50_single_scale": "r50_single_scale",
    "deformable_r50_single_scale_dc5": "r50_single_scale_dc5",
    "deformable_r50_multi_scale": "r50",
    "deformable_r50_refine": "r50_refine",
    "deformable_r50_two_stage": "r50_two_stage",
}


def golden_dir() -> Path:
    if os.environ.get("GOLDEN_DIR"):
        return Path(os.environ["GOLDEN_DIR"])
    beside = ROOT.parent / "shared" / "golden"
    return beside if beside.is_dir() else COMMITTED


def collect() -> list:
    """An empty directory becomes a test that fails, not a collection of nothing."""
    try:
        return [pytest.param(case, id=case.id) for case in find_cases(golden_dir(), ["deformable"])]
    except FileNotFoundError as error:
        return [pytest.param(error, id="deformable/no_cases_found")]


def structures() -> list:
    """Stored structures; the package itself carries some of them only."""
    found = [n for n in RECIPES if (golden_dir() / "structure" / f"{n}.json").is_file()]
    return [pytest.param(n, id=f"structure/{n}") for n in found or RECIPES]


def assert_all_pass(comparisons) -> None:
    assert comparisons
    failed = [f"{c.what}: {c.difference:.3g} > {c.tolerance:.3g}" for c in comparisons if not c.passed]
    assert not failed, "\n".join(failed)


def recipe(name: str) -> dict:
    text = (ROOT / "recipes" / "deformable_detr" / f"{name}_coco_50e.yaml").read_text()
    return yaml.safe_load(text)


@pytest.mark.parametrize("case", collect())
def test_official_case(case):
    assert isinstance(case, Case), str(case)
    assert_all_pass(runner_of(case)(case))


@pytest.mark.parametrize("name", structures())
def test_full_size_network_has_the_official_structure(name):
    """Tensor names, shapes, ties, parameter counts, frozen parameters and groups, from the recipe."""
    facts = json.loads((golden_dir() / "structure" / f"{name}.json").read_text())
    module = build_module(recipe(RECIPES[name])["model"], backbone_weights="random")
    assert_all_pass(run_structure(facts, module.network, module.schedule))
    about = recipe(RECIPES[name])["about"]
    assert (about["params"], about["macs"]) == (facts["params_total"], facts["macs"]["800x1066"])


@pytest.mark.parametrize("name", RECIPES.values())
def test_recipes_have_the_schedule_that_the_official_steps_were_compared_with(name):
    module = build_module(recipe(name)["model"], backbone_weights="random")
    assert module.schedule == SCHEDULE


@pytest.mark.parametrize("folder", ["deformable", "structure"])
def test_committed_cases_are_found(folder):
    assert list((COMMITTED / folder).glob("*.json"))


def test_find_cases_fails_on_an_empty_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="no official numbers"):
        find_cases(tmp_path, ["deformable"])
