"""A small panoptic model learns eight real images: the benchmark's budget of steps is enough for PQ 0.6."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_eight_real_images_are_learned_in_the_budget(test_data, tmp_path):
    folder = test_data / "coco_panoptic"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    command = [sys.executable, str(ROOT / "benchmarks" / "panoptic_overfit.py"), str(folder), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["images"] == 8
    assert found["rows"][-1]["PQ"] >= 0.6
