"""Regular expressions of recipes: the usual ones match, those that would run for hours are refused."""

from __future__ import annotations

import pytest

from zoo.runs import recipes
from zoo.storage.patterns import compiled
from zoo.training.schedule import ParamRule

NAME = "decoder.layers.5.cross_attn.sampling_offsets.weight.weight.weight"


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "reference_points|sampling_offsets",
        r"layers\.\d+\..*weight$",
        r"(?i)SAMPLING",
        r"(^|\.)(norm|cross_attn)\.",
    ],
)
def test_usual_patterns_match(pattern):
    assert compiled(pattern).search(NAME)


def test_every_recipe_of_the_package_has_patterns_that_are_taken():
    rules = [
        rule["match"]
        for file in recipes.bundled().values()
        for rule in recipes.load(file)["model"]["init_args"]["schedule"]["rules"]
    ]
    assert len([compiled(rule) for rule in rules]) > 20


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(a+)+$", "too many ways"),
        (r"([a-z]*\.?)*!", "too many ways"),
        ("(a|ab)*!", "too many ways"),
        (".*.*.*.*!", "too many ways"),
        ("(w?){30}", "too many ways"),
        ("(dec|cod|od)" * 12, "too many ways"),
        ("(?P<a>w)(?(a)b|c)", "too many ways"),
        ("(?=(w+)+)!", "too many ways"),
        ("[", "no regular expression"),
        ("a" * 400, "at most 300"),
    ],
)
def test_slow_and_broken_patterns_are_refused_by_the_rule_that_holds_them(pattern, says):
    with pytest.raises(ValueError, match=says):
        ParamRule(match=pattern)


@pytest.mark.parametrize("pattern", [".*.*.*!", r"(dec|\w\w\w)" * 7 + "!", r"\w*\w*\w*!"])
def test_the_slowest_that_are_taken_are_quick(pattern):
    # one that goes through every way to match would not come back
    assert not compiled(pattern).search(NAME)
