"""What the commands say of terms of use: `list --commercial`, and one line of `info`, `pull` and `finetune`."""

import json

import pytest
from registry_case import tiny_checkpoint

from zoo.cli.main import run_command
from zoo.cli.models.commercial import left_out
from zoo.registry.publish import publish
from zoo.registry.terms import Terms
from zoo.runs import run as runs
from zoo.runs.finetune import Start, fetch_published
from zoo.runs.recipes import load, resolve

UNCLEAR = "commercial use is unclear: weights (not stated), data custom (not stated)"
OWN = Terms(licence="our own images", source="us", date="2026-01-02", commercial="allowed")
PARENT = "rt_detr_r18.coco_72e"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint(tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_a_commercial_list_has_what_is_clearly_free_and_nothing_else(place, capsys):
    publish(place, "rt_detr_tiny.unclear")
    publish(place, "rt_detr_tiny.free", parent=PARENT, data_terms=OWN)
    assert run_command(["list", "--json"]) == 0
    every = json.loads(capsys.readouterr().out)
    assert run_command(["list", "--commercial", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    free = document["models"]
    assert {e["name"] for e in every if e.get("commercial") == "allowed"} == {e["name"] for e in free}
    names = {e["name"] for e in free}
    assert {"detr_r50", "rt_detr_r18", "rt_detr_tiny.free"} <= names
    assert (
        not {"rt_detr_tiny.unclear", "rt_detr_tiny", "rt_detr_r18.o365_12e", "rt_detr_r50.o365_coco_24e"}
        & names
    )
    for entry in free:
        terms = entry["terms"]
        for one in (terms["code"], terms["weights"], *terms["data"].values()):
            assert one["commercial"] == "allowed"
            assert all((one["source"], one["date"]))
    unclear = {e["name"] for e in every} - names
    assert {name for reason in document["left_out"] for name in reason["models"]} == unclear
    assert run_command(["list", "--commercial"]) == 0
    said = capsys.readouterr().out
    assert f"left out: {len(unclear)} models whose terms do not clearly allow commercial use" in said
    assert "o365_" not in said
    assert run_command(["list"]) == 0
    assert "left out" not in capsys.readouterr().out


def test_what_a_commercial_list_leaves_out_is_told_by_reason(place, capsys):
    """How many for which reason, and what would clear each; a model stands under all of its reasons."""
    forbidden = Terms(licence="CC-BY-NC-4.0", source="their page", date="2026-01-02", commercial="forbidden")
    publish(place, "rt_detr_tiny.unclear")
    publish(place, "rt_detr_tiny.research", parent=PARENT, data_terms=forbidden)
    assert run_command(["list", "--commercial", "--json"]) == 0
    found = {(r["part"], r["licence"]): r for r in json.loads(capsys.readouterr().out)["left_out"]}
    counts = [len(r["models"]) for r in found.values()]
    assert counts == sorted(counts, reverse=True)
    for key, name, needs in (
        (("weights", "Apache-2.0"), "dfine_s", "its authors' word that it covers the weights"),
        (("weights", "Apache-2.0"), "dfine_s.o365_36e", "its authors' word that it covers the weights"),
        (("weights", "not stated"), "rt_detr_tiny.unclear", "a licence of the weights with source and date"),
        (
            ("weights", "none: no weights are published"),
            "rt_detr_tiny",
            "weights that are published with terms",
        ),
        (("data custom", "CC-BY-NC-4.0"), "rt_detr_tiny.research", "another licence from its owner"),
        (
            ("data custom", "not stated"),
            "rt_detr_tiny.unclear",
            "its owner's terms, with source and date, or ",
        ),
    ):
        assert name in found[key]["models"]
        assert found[key]["needs"].startswith(needs)
    objects365 = next(r for (part, _), r in found.items() if part == "data objects365")
    assert "dfine_s.o365_36e" in objects365["models"]
    assert "dfine_s" not in objects365["models"]
    assert found[("data custom", "CC-BY-NC-4.0")]["commercial"] == "forbidden"
    assert run_command(["list", "--commercial"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for (part, licence), reason in found.items():
        row = [str(len(reason["models"])), part, reason["commercial"], licence, reason["needs"]]
        assert any(line.split() == " ".join(row).split() for line in lines), row


def test_a_model_without_terms_of_an_older_manifest_is_left_out_and_told():
    entry = {"name": "old", "version": 1, "license": "Apache-2.0", "terms": None}
    assert left_out([entry]) == [
        {
            "part": "all", "licence": "Apache-2.0, without a source", "commercial": "unclear",
            "needs": "terms in its manifest: publish it again", "models": ["old"],
        }
    ]  # fmt: skip
    assert left_out([]) == []


def test_info_and_pull_tell_in_one_line_what_is_not_clearly_free(place, capsys):
    publish(place, "rt_detr_tiny.unclear")
    publish(place, "rt_detr_tiny.free", parent=PARENT, data_terms=OWN)
    for command in ("info", "pull"):
        assert run_command([command, "rt_detr_tiny.unclear"]) == 0
        assert UNCLEAR in capsys.readouterr().out
        assert run_command([command, "rt_detr_tiny.unclear", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["commercial"], document["restriction"]) == ("unclear", UNCLEAR)
        assert run_command([command, "rt_detr_tiny.free"]) == 0
        said = capsys.readouterr().out
        assert "unclear" not in said
        assert "forbidden" not in said


@pytest.mark.parametrize("name", ["rt_detr_r18.o365_12e", "rt_detr_r18.o365_coco_60e"])
def test_info_of_a_model_of_the_zoo_tells_every_source(name, capsys):
    assert run_command(["info", name]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "commercial use is unclear: " in said
    assert "data objects365 (Objects365's own terms of use" in said
    assert "LICENSE of lyuwenyu/RT-DETR@068dfde, 2026-11-29" in said
    assert run_command(["info", "detr_r50"]) == 0
    assert "commercial allowed" in " ".join(capsys.readouterr().out.split())


def test_finetune_says_what_its_weights_pass_on(place):
    publish(place, "rt_detr_tiny.unclear")
    publish(place, "rt_detr_tiny.free", parent=PARENT, data_terms=OWN)
    recipe = load(resolve("rt_detr/tiny"))
    assert fetch_published(Start(recipe, "rt_detr_tiny", "rt_detr_tiny.unclear:1"), None) == [
        f"rt_detr_tiny.unclear:1: {UNCLEAR}; what you train from it inherits that"
    ]
    assert fetch_published(Start(recipe, "rt_detr_tiny", "rt_detr_tiny.free:1"), None) == []


def test_a_run_folder_is_published_with_the_terms_of_what_it_started_from(place, monkeypatch):
    folder = place.parent / "run"
    folder.mkdir()
    recipe = f"init_from: {{source: {PARENT}}}\ndata: {{init_args: {{root: /images/cells}}}}\n"
    (folder / "recipe.yaml").write_text(recipe)
    monkeypatch.setattr(runs, "document_of", lambda _: {"checkpoint": str(place), "run": None})
    manifest = runs.publish(folder, "rt_detr_tiny.mine").manifest
    assert manifest.lineage.parent == PARENT
    assert list(manifest.terms.data) == ["coco_2017", "cells"]
    assert manifest.license == "Apache-2.0"
