"""Where official numbers lie, and their cases as parameters of a test; ids are `<folder>/<case>`.

`GOLDEN_DIR` names a directory of official numbers; without it, `../shared/golden` beside the checkout
where that exists, else the cases committed with the package.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from zoo.training.module import DetectionModule
from zoo.verification.cases import COMMITTED, Case, Comparison, FamilyCases, find_cases
from zoo.verification.proof import build_recipe, structure_files

ROOT = Path(__file__).parents[2]


def official_dir() -> Path:
    if os.environ.get("GOLDEN_DIR"):
        return Path(os.environ["GOLDEN_DIR"])
    beside = ROOT.parent / "shared" / "golden"
    return beside if beside.is_dir() else COMMITTED


def collect(folder: str) -> list[Any]:
    """An empty directory becomes a test that fails, not a collection of nothing."""
    try:
        return [pytest.param(case, id=case.id) for case in find_cases(official_dir(), folder)]
    except FileNotFoundError as error:
        return [pytest.param(error, id=f"{folder}/no_cases_found")]


def official_case(folder: str, name: str) -> Case:
    """A case by name; skipped where only the committed part of the numbers is at hand and it is not in it."""
    _skip_uncommitted(f"{folder}/{name}.npz")
    return Case(official_dir(), folder, name)


def structure_facts(name: str) -> dict[str, Any]:
    """Facts of a full-size network; skipped as a case is."""
    _skip_uncommitted(f"structure/{name}.json")
    facts: dict[str, Any] = json.loads((official_dir() / "structure" / f"{name}.json").read_text())
    return facts


def _skip_uncommitted(file: str) -> None:
    if official_dir() == COMMITTED and not (COMMITTED / file).exists():
        pytest.skip(f"{file} is not among the numbers committed with the package")


def assert_all_pass(comparisons: Sequence[Comparison]) -> None:
    assert comparisons
    failed = [f"{c.what}: {c.difference:.3g} > {c.tolerance:.3g}" for c in comparisons if not c.passed]
    assert not failed, "\n".join(failed)


def full_size(cases: FamilyCases, name: str) -> tuple[dict[str, Any], DetectionModule]:
    """Stored facts of a full-size network of the family, and ours from the recipe; see `skip_structures`."""
    path = structure_files(cases, official_dir()).get(name)
    if path is None:
        skip_structures(cases.folder)
    return json.loads(path.read_text()), build_recipe(cases.recipes[name])


def skip_structures(folder: str) -> NoReturn:
    """Skips where a directory of official numbers lacks its constant material; fails where it has no case at all."""
    if not any((official_dir() / folder).glob("*.npz")):
        pytest.fail(f"{official_dir()} has no official numbers of {folder}")
    pytest.skip("no structures in this directory")
