"""The benchmarks run and print what they promise; how fast anything is, is not asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
ROOT = Path(__file__).parents[1]
ALWAYS = {"family", "size", "ours_ms", "transformers_ms", "ratio_transformers", "transfers"}


def rows(script: str, *arguments: str) -> list[dict]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--tiny", "--rounds", "1", "--json"]
    ended = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])["rows"]


def assert_schema(row: dict) -> None:
    assert set(row) >= ALWAYS
    assert all(row[name] > 0 for name in ("ours_ms", "transformers_ms", "ratio_transformers"))
    assert row["transfers"] == 1


def test_loss():
    found = rows("loss.py")
    assert [row["family"] for row in found] == ["detr", "deformable_detr", "rt_detr"]
    for row in found:
        assert_schema(row)
        assert row["loss_difference"] < 1e-4
        assert row["gradient_difference"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("family", ["detr", "deformable_detr", "rt_detr"])
def test_train_step(family):
    (row,) = rows("train_step.py", "--side", "64", "--families", family)
    assert row["family"] == family
    assert_schema(row)
    ours, theirs = row["trained_parameters"]
    assert ours == theirs
