"""The layers that D-FINE and DEIMv2 share equal Peterande/D-FINE@4a1f73a and Intellindust-AI-Lab/DEIMv2@0fff8d4."""

from functools import partial

import pytest
from official_cases import assert_all_pass, official_dir
from torch.nn import functional as F

from zoo.verification.cases import COMMITTED, find_cases
from zoo.verification.refinement import run_attention, run_backbone, run_distributions

KINDS = {"backbone": run_backbone, "msda_core": run_attention}
ACTIVATIONS = {"dfine": F.relu, "deimv2": F.silu}


@pytest.mark.skipif(official_dir() == COMMITTED, reason="these numbers are not committed with the package")
@pytest.mark.parametrize("folder", ACTIVATIONS)
@pytest.mark.parametrize("kind", [*KINDS, "fdr"])
def test_shared_layers_are_equal(folder, kind):
    run = {**KINDS, "fdr": partial(run_distributions, activation=ACTIVATIONS[folder])}[kind]
    cases = [case for case in find_cases(official_dir(), folder) if case.name.startswith(kind)]
    assert cases
    for case in cases:
        assert_all_pass(run(case))
