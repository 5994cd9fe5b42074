"""RT-DETRv2 equals lyuwenyu/RT-DETR@068dfde on every stored case."""

import pytest
from official_cases import assert_all_pass, collect, structure_facts

from zoo.verification.cases import COMMITTED, Case, find_cases
from zoo.verification.proof import build_recipe
from zoo.verification.rt_detrv2 import CASES


@pytest.mark.parametrize("case", collect("rtdetrv2"))
def test_official_case(case):
    assert isinstance(case, Case), str(case)
    assert_all_pass(CASES.compare(case))


@pytest.mark.parametrize("name", CASES.recipes, ids=lambda name: f"structure/{name}")
def test_full_size_network_has_the_official_structure(name):
    """Tensor names, shapes, parameter counts, frozen parameters and optimizer groups, from the recipe."""
    module = build_recipe(CASES.recipes[name])
    assert_all_pass(CASES.compare_structure(structure_facts(name), module.network, module.schedule))


def test_cases_of_each_kind_are_committed():
    kinds = {CASES.kind_of(case) for case in find_cases(COMMITTED, "rtdetrv2")}
    assert kinds >= {"criterion", "denoising", "msda"}
