"""More queries than places, and sizes that no network takes: refused before training, in one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_precision import batch_of, tiny

from datamodules.custom import CustomDataModule
from datamodules.shapes import generate_shapes
from zoo.cli.main import run_command
from zoo.contract.input_limits import InputLimits
from zoo.contract.preprocess import InputContract
from zoo.runs import recipes
from zoo.runs.finetune import parse_size
from zoo.runs.input_sizes import input_sizes, most_places
from zoo.runs.schema import load_class
from zoo.training.module import build_module
from zoo.training.preflight import queries_advice


def limits_of(name: str, **changes) -> InputLimits:
    model = recipes.load(recipes.resolve(name))["model"]
    for key, value in changes.items():
        if isinstance(value, dict):
            model["init_args"][key] |= value
        else:
            model["init_args"][key] = value
    return load_class("model", model["class_path"]).limits_of(model["init_args"])


@pytest.mark.parametrize(
    ("size", "places"), [((32, 32), 21), ((96, 96), 189), ((128, 128), 336), ((480, 640), 6300)]
)
def test_places_of_rt_detr(size, places):
    assert limits_of("rt_detr/r18_coco_72e").places(size) == places


@pytest.mark.parametrize("size", [(64, 96), (100, 37), (33, 129)])
def test_places_of_two_stages_are_those_of_the_feature_maps(size):
    module, batch = tiny("deformable_two_stage"), batch_of((1,), masks=False)
    images = torch.nn.functional.interpolate(batch.images, size)
    batch = replace(batch, images=images, padding=torch.zeros(1, *size, dtype=torch.bool))
    with torch.no_grad():
        memory, _ = module.network.tokens(batch)
    assert module.limits_of(module.init_args).places(size) == memory.tokens.shape[1]


@pytest.mark.parametrize("name", sorted(recipes.bundled()))
def test_the_sizes_of_every_recipe_are_taken(name):
    recipe = recipes.load(recipes.resolve(name))
    limits, contract = limits_of(name), recipe["data"]["init_args"]["input"]
    size = tuple(contract["size"]) if contract["resize"] == "stretch" else (800, 800)
    limits.refuse_any([size], name, "")


@pytest.mark.parametrize("name", ["detr/r50_coco_500e", "deformable_detr/r50_coco_50e"])
def test_learned_queries_need_no_places(name):
    limits_of(name).refuse((32, 32))


@pytest.mark.parametrize("family", ["rt_detr", "deformable_two_stage"])
def test_a_network_refuses_what_has_fewer_places_than_queries(family):
    block = tiny(family).model_block()
    part = "decoder" if family == "rt_detr" else "transformer"
    block["init_args"][part] |= {"num_queries": 10_000}
    module, batch = build_module(block), batch_of((1,), masks=False)
    with pytest.raises(ValueError, match=r"DETR has 10000 queries, .* have? \d+ places|has \d+ places"):
        module.predictions(batch)
    with pytest.raises(ValueError, match="places"):
        module.train().losses(batch)


def test_multi_scale_training_is_checked_at_its_smallest():
    limits = limits_of("rt_detr/r18_coco_72e", multi_scale=[640, 96])
    with pytest.raises(ValueError, match="mine has 300 queries, an input of 96x96 has 189 places; do this"):
        limits.refuse_any([(640, 640)], "mine", "do this")


def test_a_size_between_the_multiples_and_a_huge_one_are_refused():
    limits = limits_of("rt_detr/tiny")
    for size in ((33, 64), (64, 31)):
        with pytest.raises(ValueError, match="multiples of 32"):
            limits.refuse(size)
    with pytest.raises(ValueError, match="at most 8192 a side"):
        limits.refuse((64, 32000))


@pytest.mark.parametrize("resize", ["stretch", "shortest"])
@pytest.mark.parametrize(
    "text",
    ["0", "31", "0x640", "1e6", "1000000", "640x1000000", "-64", "", "9" * 30, "9" * 4000, "9" * 10**5],
)
def test_an_absurd_image_size_is_refused(text, resize):
    with pytest.raises(ValueError, match="--image-size") as caught:
        parse_size(text, resize)
    assert len(str(caught.value)) < 200


def strip(folder: Path) -> Path:
    """Three usual images and one of 400 x 4 pixels."""
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        images, boxes = [], []
        for number, size in enumerate([(64, 64), (80, 60), (60, 80), (400, 4)], start=1):
            Image.new("RGB", size, (number * 40, 9, 9)).save(folder / split / f"{split}{number}.png")
            images.append(
                {"id": number, "file_name": f"{split}{number}.png", "width": size[0], "height": size[1]}
            )
            boxes.append({"id": number, "image_id": number, "category_id": 1, "bbox": [1, 1, 3, 2], "area": 6,
                          "iscrowd": 0})  # fmt: skip
        document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "bee"}]}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return folder


def test_images_of_their_own_size_count_at_the_smallest_that_they_become(tmp_path):
    contract = InputContract(resize="shortest", size=(64, 128))
    data = CustomDataModule(
        root=str(strip(tmp_path / "set")), input=contract, train_transform="none", batch_size=1,
        eval_batch_size=1, num_workers=0, seed=0,
    )  # fmt: skip
    sizes = input_sizes(data, {"train_transform": "none"}, ("train", "val"))
    assert (1, 100) in sizes or (1, 128) in sizes
    limits = limits_of("deformable_detr/r50_two_stage_coco_50e")
    assert most_places(limits, sizes) == min(limits.places(s) for s in sizes) < 40
    assert most_places(limits_of("deformable_detr/r50_coco_50e"), sizes) is None


def test_advice_on_queries_stays_below_the_places():
    assert "num_queries 400" in queries_advice("decoder.num_queries", 361, 20)
    assert "num_queries 380" in queries_advice("decoder.num_queries", 361, 20, 380)
    few = queries_advice("decoder.num_queries", 361, 20, 336)
    assert "num_queries 336" in few
    assert "larger --image-size" in few
    assert "num_queries" not in queries_advice("decoder.num_queries", 361, 336, 336)


def test_finetune_says_it_in_one_line_before_training(tmp_path, capsys):
    shapes = generate_shapes(tmp_path / "shapes", 8, 4, 0, 64)
    arguments = ["finetune", "rt_detr_tiny", "--data", str(shapes), "--image-size", "32", "--output", "run"]
    assert run_command([*arguments, "--model.decoder.num_queries", "22"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == (
        "error: rt_detr_tiny has 22 queries, an input of 32x32 has 21 places; use a larger --image-size or fewer "
        "--model.decoder.num_queries"
    )
    assert not Path("run").exists()
    shutil.rmtree(shapes)


def test_fit_says_it_before_a_run_begins(tmp_path, capsys):
    shapes = generate_shapes(tmp_path / "shapes", 8, 4, 0, 64)
    options = [
        "--data.root",
        str(shapes),
        "--data.input.size",
        "[32, 32]",
        "--model.decoder.num_queries",
        "22",
    ]
    assert run_command(["fit", "--config", "rt_detr/tiny", *options, "--output", "run"]) == 2
    assert capsys.readouterr().err.strip() == (
        "error: rt_detr_tiny has 22 queries, an input of 32x32 has 21 places; use a larger --data.input.size or fewer "
        "--model.decoder.num_queries"
    )
    assert not Path("run", "recipe.yaml").exists()
