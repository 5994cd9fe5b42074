"""The page of two models."""

import json
import re
from pathlib import Path

import pytest
from test_page import HOSTILE, Page, results_of, scene_of, some, write

from zoo.cli.main import run_command
from zoo.report.versus import minus, signed


@pytest.fixture
def two(tmp_path):
    objects = some(40, seed=4)
    data = write(tmp_path / "set", objects, HOSTILE)
    for name, seed, wrong in (("first", 1, 1.0), ("second", 1, 0.0)):
        Path(f"{name}.json").write_text(json.dumps(results_of(objects, seed, wrong)))
    return data


def compare(data, *arguments):
    return run_command(["compare", *arguments, "--data", str(data), "--output", "out"])


def test_which_is_better_and_where_they_disagree(two, capsys):
    assert compare(two, "first.json", "second.json") == 0
    numbers, page = json.loads(Path("out/compare.json").read_text()), Path("out/compare.html").read_text()
    said = capsys.readouterr().out
    assert numbers["AP"]["difference"] > 0
    assert numbers["AP"]["differs"]
    assert "second is better: AP" in said
    assert numbers["images"][0]["only_second"] > 0
    parsed = Page(page)
    assert not parsed.open
    assert not parsed.handlers
    assert parsed.addresses == []
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) == {"http://www.w3.org/2000/svg"}
    assert minus(numbers["verdict"][0]) in "".join(parsed.text)
    scene = scene_of(page)
    shown = scene["images"][0]["row"]
    assert {f"a{shown}", f"b{shown}"} <= set(scene["pictures"])
    assert scene["classes"] == [*HOSTILE]
    assert [row["name"] for row in numbers["classes"]] != []


def test_the_order_turns_the_sign(two):
    compare(two, "first.json", "second.json")
    forth = json.loads(Path("out/compare.json").read_text())
    compare(two, "second.json", "first.json")
    back = json.loads(Path("out/compare.json").read_text())
    page = Path("out/compare.html").read_text()
    assert f">{minus(signed(back['AP']['difference']))}</b>" in page
    assert not re.search(r"[>\s\[]-\d", re.sub(r"(?s)<(style|script).*?</\1>", "", page)), (
        "a hyphen as a sign"
    )
    assert back["AP"]["difference"] == pytest.approx(-forth["AP"]["difference"])
    assert back["AP"]["interval"] == pytest.approx([-v for v in forth["AP"]["interval"][::-1]])


@pytest.mark.parametrize(("value", "words"), [
    (0.0123, "+0.012"), (-0.0123, "-0.012"), (-0.0001, "+0.000"), (0.0, "+0.000"), (-0.0006, "-0.001"),
])  # fmt: skip
def test_nothing_has_no_minus(value, words):
    assert signed(value) == words


def test_only_signs_of_numbers_are_widened():
    assert (
        minus("of -0.100 [-0.2, +0.1] at t-shirt, a-1, x-2") == "of −0.100 [−0.2, +0.1] at t-shirt, a-1, x-2"
    )


def test_a_model_and_itself(two, capsys):
    assert compare(two, "first.json", "first.json") == 0
    assert "Neither is clearly better on these 40 images" in capsys.readouterr().out
    assert json.loads(Path("out/compare.json").read_text())["images"] == []


def test_a_side_that_is_not_there_is_one_line(two, capsys):
    assert compare(two, "first.json", "none.json") == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "none.json" in told[0]
