"""However a step is cut over ranks and micro-batches, its gradient is that of all its images at once.

By the real training loop, and for every family that has recipes; benchmarks/invariance.py prints the numbers.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from nursery import Nursery
from partitions import (
    PARTITIONS,
    WHOLE,
    Case,
    Partition,
    Result,
    difference,
    has_batch_norm,
    results,
    small_module,
)
from tiny_families import ROOT, distinct, first_of_each_class

ONE = [p for p in PARTITIONS if p.ranks == 1]
FOUR = [p for p in PARTITIONS if p.ranks == 4]
UNEVEN = next(p for p in ONE if len(set(p.parts)) > 1)
TWO = Partition("2 ranks x 4", 2, (4,))
TWO_TWICE = Partition("2 ranks x 2, 2 times", 2, (2, 2))
LIMIT = 1e-10


def of_one_process(*works: tuple[Case, Partition]) -> list[Result]:
    return [found for found in results(list(works)) if found is not None]


def of_ranks(nursery: Nursery, *works: tuple[Case, Partition]) -> list[Result]:
    return nursery.answers_of_ranks(functools.partial(results, list(works)), works[0][1].ranks)[0]


def limit_of(case: Case, partition: Partition) -> float:
    """A family that estimates what later micro-batches find may be a little off: plain accumulation is off by 0.4."""
    return 0.02 if small_module(case).estimates_pairs and len(partition.parts) > 1 else LIMIT


def assert_equal(found: Result, whole: Result, limit: float = LIMIT) -> None:
    apart = difference(found.gradients, whole.gradients)
    assert apart.whole <= limit
    assert apart.worst <= 100 * limit, apart.worst_name


@pytest.mark.parametrize("key", first_of_each_class())
def test_every_family_on_one_process_and_two(key: str, nursery: Nursery) -> None:
    case = Case(key)
    whole, uneven = of_one_process((case, WHOLE), (case, UNEVEN))
    assert_equal(uneven, whole, limit_of(case, UNEVEN))
    works = [(case, TWO), (case, TWO_TWICE)]
    if has_batch_norm(key):
        works.append((replace(case, statistics="synchronised"), TWO))
    two, twice, *synchronised = of_ranks(nursery, *works)
    assert_equal(two, whole)
    assert_equal(twice, whole, limit_of(case, TWO_TWICE))
    if synchronised:
        (whole,) = of_one_process((replace(case, statistics="synchronised"), WHOLE))
        assert_equal(synchronised[0], whole)
        assert difference(synchronised[0].statistics, whole.statistics).worst <= LIMIT


def test_what_is_measured_can_differ() -> None:
    """Plain accumulation, other batch statistics and padding to the micro-batch give another gradient."""
    case, twice = Case("rt_detr/tiny"), Partition("1 x 4, 2 times", 1, (4, 4))
    padded = Case("detr/r50_panoptic_coco_25e")
    changed = [
        replace(case, plain=True),
        replace(case, statistics="synchronised"),
        replace(padded, padding="batch"),
    ]
    for work in changed:
        reference = replace(work, plain=False, padding="step")
        found, whole = of_one_process((work, twice), (reference, WHOLE))
        assert difference(found.gradients, whole.gradients).whole > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("key", distinct(num_classes=3))
def test_every_network_on_one_process_and_four(key: str, nursery: Nursery) -> None:
    case = Case(key)
    whole, *cut = of_one_process((case, WHOLE), *((case, p) for p in ONE))
    partitions = (*ONE, *FOUR)
    all_cuts = (*cut, *of_ranks(nursery, *((case, p) for p in FOUR)))
    for found, partition in zip(all_cuts, partitions, strict=True):
        assert_equal(found, whole, limit_of(case, partition))
    single = replace(case, dtype=torch.float32)
    rounded, *cut = of_one_process((single, WHOLE), *((single, p) for p in ONE))
    all_cuts = (*cut, *of_ranks(nursery, *((single, p) for p in FOUR)))
    for found, partition in zip(all_cuts, partitions, strict=True):
        assert_equal(found, rounded, max(1e-5, limit_of(case, partition)))


@pytest.mark.slow
def test_the_benchmark_measures_every_family() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "invariance.py"), "--quick", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert {row["family"] for row in rows} == {key.partition("/")[0] for key in first_of_each_class()}
    for row in rows:
        assert (row["relative_difference"] <= LIMIT) == (not row["note"]), row
        assert row["plain_accumulation"] is None or row["plain_accumulation"] > 0.01
