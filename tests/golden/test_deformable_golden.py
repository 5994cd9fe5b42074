"""Deformable DETR equals fundamentalvision/Deformable-DETR@11169a6 on every stored case."""

import pytest
import yaml
from official_cases import ROOT, assert_all_pass, collect, official_dir, structure_facts

from zoo.verification.cases import COMMITTED, Case
from zoo.verification.deformable_detr import CASES, SCHEDULE
from zoo.verification.proof import build_recipe


def structures() -> list:
    """Stored structures; the package itself carries some of them only."""
    found = [n for n in CASES.recipes if (official_dir() / "structure" / f"{n}.json").is_file()]
    return [pytest.param(n, id=f"structure/{n}") for n in found or CASES.recipes]


def recipe(name: str) -> dict:
    text = (ROOT / "recipes" / f"{name}.yaml").read_text()
    return yaml.safe_load(text)


@pytest.mark.parametrize("case", collect("deformable"))
def test_official_case(case):
    assert isinstance(case, Case), str(case)
    assert_all_pass(CASES.compare(case))


@pytest.mark.parametrize("name", structures())
def test_full_size_network_has_the_official_structure(name):
    """Tensor names, shapes, ties, parameter counts, frozen parameters and groups, from the recipe."""
    facts, module = structure_facts(name), build_recipe(CASES.recipes[name])
    assert_all_pass(CASES.compare_structure(facts, module.network, module.schedule))
    about = recipe(CASES.recipes[name])["about"]
    assert (about["params"], about["macs"]) == (facts["params_total"], facts["macs"]["800x1066"])


@pytest.mark.parametrize("name", CASES.recipes.values())
def test_recipes_have_the_schedule_that_the_official_steps_were_compared_with(name):
    assert build_recipe(name).schedule == SCHEDULE


@pytest.mark.parametrize("folder", ["deformable", "structure"])
def test_committed_cases_are_found(folder):
    assert list((COMMITTED / folder).glob("*.json"))
