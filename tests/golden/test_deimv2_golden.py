"""DEIMv2 equals Intellindust-AI-Lab/DEIMv2@0fff8d4 on every stored case, and with weights trained on COCO."""

import hashlib
import re

import pytest
from official_cases import ROOT, assert_all_pass, collect, full_size, official_case, official_dir

from zoo.verification.cases import COMMITTED, Case, find_cases
from zoo.verification.deimv2 import CASES, run_real
from zoo.verification.proof import structure_files

WEIGHTS = "data/weights/deimv2_hgnetv2_atto_coco_recovered.pth"


@pytest.mark.parametrize("case", collect("deimv2"))
def test_official_case(case):
    assert isinstance(case, Case), str(case)
    if why := CASES.why_left_out(case):
        pytest.skip(why)
    assert_all_pass(CASES.compare(case))


# constant material: other directories of official numbers need not have it
@pytest.mark.parametrize("name", structure_files(CASES, official_dir()) or ["structure_atto"])
def test_full_size_network_has_the_official_structure(name):
    """Tensor names, shapes, parameter counts, frozen parameters and optimizer groups, from the recipe."""
    facts, module = full_size(CASES, name)
    assert_all_pass(CASES.compare_structure(facts, module.network, module.schedule))


def test_weights_trained_on_coco_detect_as_in_the_official_code():
    case = official_case("deimv2", "real_atto_coco")
    beside = (folder / WEIGHTS for folder in (official_dir().parent, ROOT.parent / "shared"))
    path = next((p for p in beside if p.is_file()), None)
    if path is None:
        pytest.skip("the weights are not beside the official numbers")
    expected = re.search(r"sha256 of the file ([0-9a-f]{64})", str(case.facts["notes"]))
    assert expected is not None
    assert hashlib.sha256(path.read_bytes()).hexdigest() == expected[1]
    assert_all_pass(run_real(case, path))


def test_cases_of_each_kind_are_committed():
    kinds = {CASES.kind_of(case) for case in find_cases(COMMITTED, "deimv2")}
    assert kinds >= {"criterion", "forward", "formula", "denoising"}
