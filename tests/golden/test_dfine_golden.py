"""D-FINE equals Peterande/D-FINE@4a1f73a on every stored case."""

import pytest
from official_cases import assert_all_pass, collect, full_size, official_dir

from zoo.verification.cases import Case
from zoo.verification.dfine import CASES
from zoo.verification.proof import structure_files


@pytest.mark.parametrize("case", collect("dfine"))
def test_official_case(case):
    assert isinstance(case, Case), str(case)
    assert_all_pass(CASES.compare(case))


# constant material: other directories of official numbers need not have it
@pytest.mark.parametrize("name", structure_files(CASES, official_dir()) or ["structure_n"])
def test_full_size_network_has_the_official_structure(name):
    """Tensor names, shapes, parameter counts, frozen parameters and optimizer groups, from the recipe."""
    facts, module = full_size(CASES, name)
    assert_all_pass(CASES.compare_structure(facts, module.network, module.schedule))
    assert sum(p.numel() for p in module.network.parameters()) == facts["params_total"]
