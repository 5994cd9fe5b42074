"""`zoo data show --augmented`: the pixels that a training gets, in a grid of images and epochs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.shapes import generate_shapes
from zoo.cli.main import run_command
from zoo.runs import show_augmented as shown
from zoo.runs.recipes import read

LIST = "- torchvision.transforms.v2.RandomAffine: {degrees: 30}\n- train_transform\n- distort\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return generate_shapes(tmp_path_factory.mktemp("shapes"), 10, 2, seed=1, size=48)


def test_a_picture_by_the_command_is_the_same_again(root, tmp_path, capsys):
    (tmp_path / "own.yaml").write_text(LIST)
    command = ["data", "show", str(root), "--augmented", "--config", "rt_detr/tiny", "--count", "2", "--epochs", "3",
               "--augmentations", str(tmp_path / "own.yaml"), "--json"]  # fmt: skip
    pictures = []
    for name in ("a.png", "b.png"):
        assert run_command([*command, "--output", str(tmp_path / name)]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (len(told["images"]), told["epochs"]) == (2, [0, 2])
        assert "RandomAffine, train_transform, distort" in told["notes"][0]
        pictures.append(Image.open(tmp_path / name).tobytes())
    assert pictures[0] == pictures[1]
    assert run_command([*command, "--seed", "5", "--output", str(tmp_path / "c.png")]) == 0
    assert Image.open(tmp_path / "c.png").tobytes() != pictures[0]


def test_it_shows_what_the_loader_gives_also_where_images_are_mixed(root):
    recipe = {"data.dense_o2o": {"group": 4, "mixup": {"epochs": [0, 9], "probability": 1.0}}}
    from zoo.runs import recipes

    data = shown._data(recipes.read("rt_detr/tiny", recipe), root, None, 3, {})
    data.set_epoch(1)
    batches = list(data.train_dataloader())
    index = data.read().splits["train"]
    seen = {int(i): image for b in batches for i, image in zip(b.image_ids, b.images, strict=True)}
    compared = 0
    for row in range(len(index)):
        if index.image_id(row) in seen:
            assert torch.equal(data.augmented(row, 1).image, seen[index.image_id(row)])
            compared += 1
    assert compared == 8


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a: 1", "own.yaml holds keys and values; it is a list of operations"),
        ("text", "own.yaml holds a text; it is"),
        ("", "own.yaml holds nothing; it is"),
        ("- os.system", "none of the operations"),
        ("- [", "own.yaml"),
    ],
)
def test_a_bad_list_is_one_line(root, tmp_path, capsys, content, told):
    (tmp_path / "own.yaml").write_text(content)
    command = ["data", "show", str(root), "--augmented", "--augmentations", str(tmp_path / "own.yaml")]
    assert run_command([*command, "--output", str(tmp_path / "a.png")]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "a.png").exists()


def test_keys_of_the_recipe_are_taken_and_tiles_are_named_by_their_images(root, tmp_path, capsys):
    command = ["data", "show", str(root), "--augmented", "--config", "rt_detr/tiny", "--count", "3", "--epochs", "2",
               "--output", str(tmp_path / "a.png"), "--json"]  # fmt: skip
    pictures = []
    for keys in (
        [],
        ["--data.input.size", "[64, 96]"],
        ["--data.input.tiles={size: [32, 32]}", "--data.limit_train=2"],
    ):
        assert run_command([*command, *keys]) == 0
        told = json.loads(capsys.readouterr().out)
        pictures.append(Image.open(tmp_path / "a.png").size)
    assert pictures[0] != pictures[1]
    assert {Path(file).name for file in told["images"]} <= {"00000.png", "00001.png"}, "tiles of two images"
    items = shown._data(
        read("rt_detr/tiny"), root, None, None, {"data.input.tiles": {"size": [32, 32]}}
    ).tile_items
    numbers = sorted(np.random.default_rng(0).permutation(len(items))[:9].tolist())
    more = shown.show_augmented(
        root, config="rt_detr/tiny", overrides={"data.input.tiles": {"size": [32, 32]}}, count=9, epochs=1
    )
    assert [Path(file).name for file in more.files] == [f"{items.item(0, n).row:05d}.png" for n in numbers]
    assert run_command([*command, "--data.nothing", "1"]) == 2
    assert "nothing" in capsys.readouterr().err
    assert run_command(["data", "show", str(root), "--data.min_box_side", "4"]) == 2
    assert "add --augmented" in capsys.readouterr().err
    assert run_command(["data", "check", str(root), "--data.min_box_side", "4"]) == 2
    assert "only finetune" in capsys.readouterr().err


def test_options_of_augmented_images_need_it(root, capsys):
    assert run_command(["data", "show", str(root), "--config", "rt_detr/tiny"]) == 2
    assert "add --augmented" in capsys.readouterr().err
