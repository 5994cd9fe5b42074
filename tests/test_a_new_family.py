"""An architecture is three files: those of `toy_family` go through the commands, and nothing else is edited."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import test_every_architecture as contract
import torch
import yaml

import zoo
from datamodules.shapes import generate_shapes
from zoo.cli.main import run_command
from zoo.registry.manifest import read_manifest
from zoo.runs import catalogue, recipes, schema
from zoo.runs.draft import draft
from zoo.runs.finetune import Choices, complete_recipe, fit_to_data, read_data, starting_point
from zoo.training.module import build_module

TOY = Path(__file__).parent / "toy_family"
RECIPE, NAME, TAGGED = "nutshell/small_shapes_2e", "nutshell_small", "nutshell_small.shapes_2e"
PACKAGES = ("zoo.architectures", "zoo.verification")


def reload_packages() -> None:
    """As a new process finds them: they look at ZOO_PATH when they are imported."""
    for name in PACKAGES:
        importlib.reload(importlib.import_module(name))


@pytest.fixture(autouse=True)
def _visible(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ZOO_PATH", str(TOY))
    reload_packages()
    yield
    monkeypatch.delenv("ZOO_PATH", raising=False)
    reload_packages()
    for package in PACKAGES:
        sys.modules.pop(f"{package}.nutshell", None)


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return generate_shapes(tmp_path / "data" / "shapes", num_train=4, num_val=2, seed=0, size=48)


def test_it_is_three_files() -> None:
    files = {str(p.relative_to(TOY)) for p in TOY.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert files == {
        "zoo/architectures/nutshell.py",
        f"recipes/{RECIPE}.yaml",
        f"zoo/manifests/{TAGGED}.yaml",
    }


def test_none_of_its_own_names_is_one_of_another_family() -> None:
    own = set(recipes.load(recipes.resolve(RECIPE))["model"]["init_args"])
    others = [path for key, path in recipes.bundled().items() if not key.startswith("nutshell/")]
    known = {name for path in others for name in recipes.load(path)["model"]["init_args"]}
    assert own & known == {"num_classes", "schedule"}


@pytest.mark.parametrize(
    "check",
    [value for name, value in vars(contract).items() if name.startswith("test_") and hasattr(value, "pytestmark")],
    ids=lambda check: check.__name__,
)  # fmt: skip
def test_it_keeps_the_contract(check, monkeypatch: pytest.MonkeyPatch) -> None:
    names = check.__code__.co_varnames[: check.__code__.co_argcount]
    if "family" in names:
        pytest.skip("finetuned below, and timed there")
    given = {"key": RECIPE, "counts": (0, 0), "monkeypatch": monkeypatch}
    check(**{name: given[name] for name in names})


def test_list_and_info_tell_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["list"]) == 0
    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith(NAME)]
    assert row.split() == [
        NAME,
        "0.0",
        "M",
        "0.125",
        "0.250",
        "not",
        "yet",
        f"{RECIPE};",
        *"AP on val of shapes".split(),
    ]
    assert run_command(["info", NAME]) == 0
    text = capsys.readouterr().out
    assert "parameters    3 364" in text
    assert "2 epochs, learning rate 0.001" in text


def test_it_trains_from_its_recipe_and_is_published(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["fit", "--config", RECIPE, "--data.root", str(shapes), "--output", "run"]) == 0
    assert run_command(["publish", "run", "--name", "nutshell_small.mine"]) == 0
    assert run_command(["validate", "nutshell_small.mine", "--data", str(shapes)]) == 0
    capsys.readouterr()
    assert run_command(["verify", "nutshell_small.mine"]) == 0
    said = capsys.readouterr().out
    assert "model.safetensors" in said
    assert "no official numbers of nutshell to compare with" in said
    found = zoo.load("nutshell_small.mine").predict(next((shapes / "val").glob("*.png")))
    assert len(found) <= 6


def test_it_is_finetuned_by_its_own_schedule(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--weights", "random", "--max-steps", "1", "--image-size", "64", "--output", "run", "--json"]
    assert run_command(["finetune", NAME, "--data", str(shapes), "--name", "toy.shapes", *options]) == 0
    assert json.loads(capsys.readouterr().out)["registered"] == "toy.shapes:1"
    recipe = yaml.safe_load(Path("run", "recipe.yaml").read_text())
    assert recipe["model"]["init_args"]["schedule"]["lr"] == 1e-3
    assert recipe["data"]["init_args"]["input"]["size"] == [64, 64]


def test_advice_about_queries_names_its_key(shapes: Path) -> None:
    choices = Choices(model=NAME, data=shapes, weights="random", overrides={"model.reader.slots": 1})
    recipe, _ = complete_recipe(starting_point(NAME, None), choices)
    notes = fit_to_data(recipe, read_data(recipe), choices)
    assert any("give the model more with --model.reader.slots 50" in note for note in notes)


def test_a_size_that_it_does_not_take_is_told(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run_command(["finetune", NAME, "--data", str(shapes), "--weights", "random", "--image-size", "56"])
        == 2
    )
    assert "both sides must be multiples of 16; the nearest is 64x64" in capsys.readouterr().err  # 3.5 -> 4


def test_its_published_file_is_converted_and_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = build_module(recipes.load(recipes.resolve(RECIPE))["model"]).network
    torch.save(
        {f"shell.{key}": value for key, value in network.state_dict().items()},
        tmp_path / "nutshell_small.pth",
    )
    assert run_command(["pull", NAME, "--source", str(tmp_path / "nutshell_small.pth")]) == 0
    assert torch.equal(zoo.load(NAME).module.network.slots, network.slots)
    assert run_command(["verify", NAME]) == 0
    assert "no official numbers" in capsys.readouterr().out


def test_without_files_and_official_numbers_there_is_nothing_to_verify(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(["verify", NAME]) == 2
    assert "there is nothing to verify" in capsys.readouterr().err


VERIFICATION = """
from zoo.verification.cases import FamilyCases, compare

CASES = FamilyCases(
    folder="nutshell",
    kinds={"shell": ("hardness of shells", lambda case: [compare("shell", case["ours"], case["official"], 1e-6)])},
    recipes={},
    compare_structure=lambda facts, network, schedule: [],
)
"""


@pytest.mark.parametrize(("official", "code"), [(2.0, 0), (2.1, 1)])
def test_a_fourth_file_says_what_is_compared_with_official_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], official, code
) -> None:
    """Also a kind of case that no other family has; nothing that families share is edited."""
    folder = shutil.copytree(TOY, tmp_path / "family") / "zoo" / "verification"
    folder.mkdir()
    (folder / "nutshell.py").write_text(VERIFICATION)
    monkeypatch.setenv("ZOO_PATH", str(tmp_path / "family"))
    reload_packages()
    numbers = tmp_path / "golden" / "nutshell"
    numbers.mkdir(parents=True)
    (numbers / "shell_thin.json").write_text('{"source": "somebody/nutshell@1234567"}')
    np.savez(numbers / "shell_thin.npz", ours=np.array([2.0]), official=np.array([official]))
    assert run_command(["verify", "nutshell", "--golden", str(tmp_path / "golden")]) == code
    said = capsys.readouterr().out
    assert "nutshell against somebody/nutshell@1234567" in said
    assert ["hardness", "of", "shells", "1", "1"] == said[said.index("hardness") :].split()[:5]


def test_its_manifest_is_what_the_command_drafts(shapes: Path) -> None:
    committed = read_manifest(TOY / "zoo" / "manifests" / f"{TAGGED}.yaml")
    drafted = draft(RECIPE, {"data.root": str(shapes)})
    assert drafted == msgspec.structs.replace(committed, created=drafted.created)


def test_a_draft_is_written_to_a_new_file(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["manifest", RECIPE, "--data.root", str(shapes), "--output", "mine.yaml"]
    assert run_command(command) == 0
    assert read_manifest(Path("mine.yaml")).name == TAGGED
    assert run_command(command) == 2
    assert "mine.yaml is there already" in capsys.readouterr().err


def test_a_draft_of_a_published_model_is_its_manifest_but_for_what_a_person_knows() -> None:
    committed = read_manifest(Path(zoo.__file__).parent / "manifests" / "rt_detr_r18.coco_72e.yaml").to_dict()
    drafted = draft("rt_detr/r18_coco_72e", labels_of="rt_detr_r18").to_dict()
    differ = {key for key in committed if committed[key] != drafted[key]}
    assert differ == {"terms", "sources", "origin", "trained_by", "data", "published", "counted", "created"}
    assert committed["sources"][0] == drafted["sources"][0]
    assert committed["origin"]["file"] == drafted["origin"]["file"]
    assert committed["published"]["AP"] == drafted["published"]["AP"]


@pytest.mark.parametrize(
    ("recipe", "said"),
    [("rt_detr/tiny", "does not tell about.sources"), (RECIPE, "--labels-of MODEL")],
)
def test_what_a_draft_lacks_is_told(recipe: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["manifest", recipe]) == 2
    assert said in capsys.readouterr().err


def test_two_files_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = (
        "recipes/rt_detr/tiny.yaml",
        "zoo/manifests/rt_detr_r18.coco_72e.yaml",
        "zoo/architectures/detr.py",
    )
    for file in ours:
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("")
    monkeypatch.setenv("ZOO_PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"tiny\.yaml has the same name as .*give one of them another name"):
        recipes.bundled()
    with pytest.raises(ValueError, match="another name"):
        zoo.available()
    with pytest.raises(ValueError, match=r"detr\.py has the same name as"):
        reload_packages()


def test_a_folder_may_be_named_twice_or_stand_beside_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_PATH", os.pathsep.join(["", str(TOY), str(TOY), ""]))
    assert RECIPE in recipes.bundled()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("just: text", "lacks about.name"),
        ("about: [1]", "lacks about.name"),
        (f"about: {{{', '.join(f'{key}: null' for key in recipes.ABOUT)}}}", "lacks model.class_path"),
        (f"about: {{{', '.join(f'{key}: 3' for key in recipes.ABOUT)}}}", "about.published is 3; it is null"),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_listed_is_told(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipes" / "mine").mkdir(parents=True)
    (tmp_path / "recipes" / "mine" / "first.yaml").write_text(text)
    monkeypatch.setenv("ZOO_PATH", str(tmp_path))
    assert run_command(["list"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "mine/first.yaml" in line
    assert said in line


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nothing_there", "imports nothing_there, which is not there"),
        ("def f(:", "mine.py:1: invalid syntax"),
    ],
)
def test_an_architecture_that_cannot_be_imported_is_told(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zoo" / "architectures").mkdir(parents=True)
    (tmp_path / "zoo" / "architectures" / "mine.py").write_text(code)
    monkeypatch.setenv("ZOO_PATH", str(tmp_path))
    reload_packages()
    with pytest.raises(ValueError, match=said):
        schema.load_class("model", "zoo.architectures.mine.Mine")


def test_a_folder_of_the_path_that_is_not_there_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZOO_PATH", "nowhere")
    assert run_command(["list"]) == 2
    assert "ZOO_PATH names nowhere, which is not a folder" in capsys.readouterr().err


def test_without_the_path_nobody_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_PATH")
    assert NAME not in catalogue.models()
    assert TAGGED not in zoo.available()
