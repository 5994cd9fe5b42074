"""Rates, averages and optimizer groups of every size of D-FINE and DEIMv2 equal the official ones."""

import json
from dataclasses import replace

import pytest
from official_cases import assert_all_pass, official_case, official_dir
from torch import nn

from zoo.storage.patterns import compiled
from zoo.verification.schedule import compare_schedules, schedule_of

FOLDERS = ("dfine", "deimv2")
STRUCTURES = sorted(p for f in FOLDERS for p in (official_dir() / f).glob("structure_*.json"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_rates_and_averages(folder):
    assert_all_pass(compare_schedules(official_case(folder, "schedule")))


@pytest.mark.parametrize("path", STRUCTURES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_official_patterns_make_the_official_groups(path):
    facts = json.loads(path.read_text())
    configs = official_case(path.parent.name, "schedule").facts["schedules"]
    schedule = schedule_of(configs[path.stem.removeprefix("structure_")])
    official = {(g["lr"], g["weight_decay"], n) for g in facts["param_groups"] for n in g["names"]}
    names = [n for _, _, n in official]
    # the official pattern of backbone norms matches nothing in most sizes
    rules = [r for r in schedule.rules if any(map(compiled(r.match).search, names))]
    groups = replace(schedule, rules=rules).groups([(n, nn.Parameter()) for n in names])
    assert {(g["lr"], g["weight_decay"], n) for g in groups for n in g["param_names"]} == official
