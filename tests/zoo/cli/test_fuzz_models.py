"""What comes from other people besides data sets: YAML, recipes, manifests, weights, checkpoints and pictures, damaged.

Whatever comes out is what the commands turn into one line, `mutations.TOLD`.
"""

from __future__ import annotations

import gzip
import io
import logging
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import mutations
import numpy as np
import pytest
import torch
from PIL import Image
from registry_case import INPUT, LABELS, safetensors_bytes, tiny_checkpoint, tiny_manifest

from datamodules.published.unpacking import unpack
from zoo.cli.main import run_command
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.prediction.image_input import read_rgb
from zoo.registry.manifest import parse_manifest
from zoo.registry.weights import ready_module, released_from_checkpoint
from zoo.runs import catalogue, recipes
from zoo.runs.finetune import Choices, Start, complete_recipe, registered_recipe
from zoo.runs.lightning import ZooCLI
from zoo.runs.run_folder import document_of
from zoo.storage.checkpoint_io import read_checkpoint
from zoo.storage.plain_yaml import parse_yaml
from zoo.storage.safetensors_file import check_safetensors, read_safetensors

One = Callable[[random.Random], None]
DATA_YAML = b"""# of a data set
path: ../set   # above
train: images/train
val: [images/val, 'more images']
names:
  0: no
  1: &cat "c\\u00e4t"
  2: |
    two lines
nc: 3
base: &base {a: 1.5e+3, b: [yes, ~, 0x1f]}
other: {<<: *base, c: *cat}
"""


def yaml(folder: Path) -> One:
    def one(draw: random.Random) -> None:
        parse_yaml(
            mutations.damaged_bytes(DATA_YAML, draw), "data.yaml", as_text=("names", "path", "train", "val")
        )

    return one


def tiny_recipe() -> dict[str, Any]:
    recipe = recipes.load(recipes.resolve("rt_detr/tiny"))
    recipe["data"]["init_args"]["root"] = "absent"
    return recipe


def recipe_file(folder: Path) -> One:
    """Up to the data, which are absent: all that is checked before anything is built."""
    whole, file = tiny_recipe(), folder / "recipe.yaml"

    def one(draw: random.Random) -> None:
        if draw.random() < 0.2:
            file.write_bytes(mutations.damaged_bytes(recipes.dump(whole).encode(), draw))
        else:
            file.write_bytes(mutations.as_json(mutations.damaged_value(whole, draw)))
        assert run_command(["fit", "--config", str(file), "--output", str(folder / "run")]) == 2

    return one


def registered_recipe_file(folder: Path) -> One:
    whole, file = tiny_recipe(), folder / "recipe.yaml"

    def one(draw: random.Random) -> None:
        file.write_bytes(mutations.as_json(mutations.damaged_value(whole, draw)))
        recipe, left_out = registered_recipe(file, "rt_detr")
        choices = Choices(model="rt_detr_tiny.theirs", data="images", lr=1e-3)
        complete_recipe(Start(recipe, "rt_detr_tiny", None, left_out=left_out), choices)

    return one


def archive(folder: Path) -> One:
    files = []
    for name in ("a.zip", "a.tar.gz"):
        if name == "a.zip":
            with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as made:
                made.writestr("images/a.png", b"abc" * 50)
                made.writestr("a.json", b"{}" * 50)
        else:
            with tarfile.open(folder / name, "w:gz") as packed:
                packed.add(folder / "a.zip", "images/a.png")
        files.append((folder / name, (folder / name).read_bytes()))

    def one(draw: random.Random) -> None:
        path, whole = draw.choice(files)
        if path.suffix == ".gz" and draw.random() < 0.8:  # below the checksum of gzip
            whole = gzip.compress(mutations.damaged_bytes(gzip.decompress(whole), draw), 1)
        else:
            whole = mutations.damaged_bytes(whole, draw)
        path.write_bytes(whole)
        shutil.rmtree(folder / "out", ignore_errors=True)
        unpack(path, folder / "out", folder / "staging")

    return one


def built_recipe(folder: Path) -> One:
    whole = tiny_recipe()

    def one(draw: random.Random) -> None:
        damaged = parse_yaml(mutations.as_json(mutations.damaged_value(whole, draw)), "recipe")
        ZooCLI(damaged, folder, [], with_tracker=False)

    return one


def manifest(folder: Path) -> One:
    whole = msgspec.to_builtins(tiny_manifest())
    place = folder / "registry" / "rt_detr_tiny.shapes" / "1"
    place.mkdir(parents=True)

    def one(draw: random.Random) -> None:
        text = mutations.damaged_json(whole, draw)
        (place / "manifest.yaml").write_bytes(text)
        catalogue.registered(folder / "registry")
        found = parse_manifest(text)
        InputContract.from_dict(found.to_dict()["input"])
        found.to_yaml()

    return one


def weights(folder: Path) -> One:
    whole, file = safetensors_bytes(), folder / "model.safetensors"

    def one(draw: random.Random) -> None:
        header = mutations.damaged_json(
            {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {"format": "pt"}},
            draw,
        )
        length = len(header).to_bytes(8, "little")
        file.write_bytes(
            mutations.damaged_bytes(whole, draw) if draw.random() < 0.4 else length + header + b"abcd"
        )
        check_safetensors(file)
        assert all(isinstance(value, torch.Tensor) for value in read_safetensors(file).values())

    return one


def checkpoint(folder: Path) -> One:
    """Its facts, and now and then its bytes."""
    file = folder / "a.ckpt"
    tiny_checkpoint(file)
    raw, whole = file.read_bytes(), read_checkpoint(file)
    plain = {key: whole["zoo"][key] for key in ("model", "label_map", "input")}

    def one(draw: random.Random) -> None:
        if draw.random() < 0.3:
            file.write_bytes(mutations.damaged_bytes(raw, draw))
        else:
            torch.save({**whole, "zoo": {**whole["zoo"], **mutations.damaged_value(plain, draw)}}, file)
        ready_module(released_from_checkpoint(file))

    return one


def facts(folder: Path) -> One:
    def one(draw: random.Random) -> None:
        if draw.random() < 0.5:
            LabelMap.from_dict(mutations.damaged_value(LABELS.to_dict(), draw)).to_dict()
        else:
            contract = InputContract.from_dict(
                mutations.damaged_value({**INPUT, "mean": [0.5] * 3, "std": [0.5] * 3}, draw)
            )
            assert min(contract.resized_size(480, 640)) > 0

    return one


def metrics(folder: Path) -> One:
    def one(draw: random.Random) -> None:
        (folder / "metrics.json").write_bytes(
            mutations.damaged_json({"checkpoint": "a.ckpt", "val": {"AP": 0.5}}, draw)
        )
        document_of(folder)

    return one


def picture(folder: Path) -> One:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8))
    files = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        files.append(buffer.getvalue())

    def one(draw: random.Random) -> None:
        found = read_rgb(mutations.damaged_bytes(draw.choice(files), draw))
        assert isinstance(found, Image.Image)
        assert found.mode == "RGB"

    return one


TARGETS: dict[str, tuple[Callable[[Path], One], int]] = {
    "yaml": (yaml, 400),
    "recipe": (recipe_file, 60),
    "recipe that is built": (built_recipe, 12),
    "recipe of a registered model": (registered_recipe_file, 25),
    "archive": (archive, 150),
    "manifest": (manifest, 200),
    "safetensors": (weights, 300),
    "checkpoint": (checkpoint, 25),
    "facts": (facts, 300),
    "metrics": (metrics, 100),
    "picture": (picture, 200),
}


@pytest.mark.parametrize("name", TARGETS)
def test_damage_is_told(name, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    make, inputs = TARGETS[name]
    mutations.run(make(tmp_path), inputs, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_damage_is_told_for_a_long_time(name, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    mutations.run(TARGETS[name][0](tmp_path), 0, slow=True)
