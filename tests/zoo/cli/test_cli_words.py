"""What the commands say of data: names shown and not obeyed, the same note once, the next step that works."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.index.faults import Fault, visible
from datamodules.shapes import generate_shapes
from zoo.cli.data.check import fault_lines
from zoo.cli.main import run_command
from zoo.runs import image_check as looking
from zoo.runs.finetune import Choices, complete_recipe, read_data, starting_point
from zoo.runs.image_check import image_check

BAD = "a\x1b[2Jb\x07c\u202egpj.exe\x9bd\r.png"


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    return generate_shapes(tmp_path / "shapes", 12, 4, seed=0, size=64)


def dangerous(text: str) -> list[str]:
    return [c for c in text if c != "\n" and not c.isprintable()]


def test_visible_keeps_what_is_text():
    for text in ("plain", "Żubr 图 é e\u0301 \U0001f600", "a\u200db", "tab" + " " * 4):
        assert visible(text) == text
    assert visible("a\x1b[31m\nb", keep="\n") == "a\\x1b[31m\nb"
    assert not dangerous(visible(BAD))
    assert str(Fault("error", "x", "a\nb.png", None, "c\nd")) == "error x: a\\nb.png: c\\nd"


def test_names_are_shown_and_not_obeyed(shapes, capsys, tmp_path):
    file = shapes / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = BAD  # missing
    content["categories"][0]["name"] = f"class {BAD}"
    file.write_text(json.dumps(content))
    (shapes / "train" / BAD.replace("a", "z")).write_bytes(b"no picture")
    moved = tmp_path / BAD
    shutil.move(shapes, moved)
    run_command(["data", "check", str(moved), "--fix", str(tmp_path / "out")])
    run_command(["data", "check", str(tmp_path / f"none{BAD}")])
    run_command(["predict", "rt_detr_tiny", str(moved / BAD)])
    run_command(["data", "convert", str(moved), "--to", "yolo", "--output", str(tmp_path / "yolo")])
    printed = capsys.readouterr()
    assert "\\x1b[2J" in printed.out
    assert dangerous(printed.out) == []
    assert [c for c in dangerous(printed.err) if c != "\r"] == []  # the bar's own
    assert dangerous((tmp_path / "out/fix_log.md").read_text()) == []


def test_a_note_that_is_said_of_many_is_one_line():
    many = [Fault("note", "grayscale", f"{k}.png", k, "a grey picture") for k in range(343)]
    assert fault_lines(many) == [
        "note grayscale: 343",
        "  0.png (image 0), 1.png (image 1), 2.png (image 2) and 340 more: a grey picture",
    ]
    mixed = [*many, Fault("note", "grayscale", "x.png", None, "another")]
    assert fault_lines(mixed)[2:] == ["  ... and 1 more (--json lists all)"]


@pytest.mark.parametrize("number", [1, 2])
def test_the_next_step_of_a_tiny_set_is_one_that_works(number, tmp_path, capsys):
    root = tmp_path / "a set"
    (root / "images").mkdir(parents=True)
    names = [f"{k}.png" for k in range(number)]
    for k, name in enumerate(names):
        pixels = np.random.default_rng(k).integers(0, 256, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / name)
    images = [{"id": k, "file_name": name, "width": 64, "height": 64} for k, name in enumerate(names)]
    boxes = [
        {"id": k, "image_id": k, "category_id": 1, "bbox": [4, 4, 40, 40], "area": 1600}
        for k in range(number)
    ]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    (root / "annotations.json").write_text(json.dumps(content))
    assert run_command(["data", "check", str(root)]) == 0
    *before, last = capsys.readouterr().out.splitlines()
    held_out = (
        "no val split: zoo finetune holds out some of the training images to score on; to choose them: "
    )
    assert before[-1] == f"{held_out}zoo data split '{root}' --val 0.1 --output OUT"
    recipe, _ = complete_recipe(
        starting_point("rt_detr_tiny", None), Choices(model="rt_detr_tiny", data=root)
    )
    if number == 1:
        assert last.startswith("next: add images")
        with pytest.raises(ValueError, match="cannot be divided"):
            read_data(recipe)
    else:
        assert last == f"next: zoo finetune MODEL --data '{root}'"
        read_data(recipe)


def read(root: Path):
    recipe, _ = complete_recipe(
        starting_point("rt_detr_tiny", None), Choices(model="rt_detr_tiny", data=root)
    )
    return read_data(recipe)


def leak(root: Path) -> None:
    """Two val images become a training image: one byte for byte, one saved anew."""
    ours, theirs = (sorted(p for p in (root / split).rglob("*") if p.is_file()) for split in ("train", "val"))
    shutil.copy(ours[0], theirs[0])
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8))
    picture = coarse.resize((64, 64))
    picture.save(ours[1])
    picture.save(theirs[1], "BMP")


def test_finetune_looks_for_copies_in_a_small_set(shapes):
    faults, notes = image_check(read(shapes), str(shapes))
    assert not [f for f in faults if "leak" in f.kind]
    assert notes[0].startswith("images: all 16 decoded and compared in")
    leak(shapes)
    faults, notes = image_check(read(shapes), str(shapes))
    assert sorted(f.kind for f in faults if "leak" in f.kind) == ["leak", "near_leak"]
    assert notes[1].startswith("2 of 4 val images are in another split too, or nearly")


@pytest.mark.parametrize("limit", ["MOST_IMAGES", "MOST_BYTES"])
def test_finetune_says_who_looks_at_a_large_set(limit, shapes, monkeypatch):
    monkeypatch.setattr(looking, limit, 3)
    monkeypatch.setattr(looking, "image_faults_of", None)
    place = f"{os.fspath(shapes)} x"
    faults, [note] = image_check(read(shapes), place)
    assert faults == []
    assert "not looked at" in note
    assert f"`zoo data check '{place}'` finds them" in note


def test_finetune_refuses_what_cannot_be_decoded_before_training(shapes):
    broken = next(p for p in (shapes / "train").rglob("*") if p.is_file())
    with Image.open(broken) as image:
        image.convert("RGB").save(broken, "JPEG")
    broken.write_bytes(broken.read_bytes()[:-300])  # its header is whole
    data = read(shapes)
    with pytest.raises(ValueError, match=r"1 image that cannot be decoded:\n.*" + broken.name) as told:
        image_check(data, str(shapes))
    assert (
        "with --fix CLEAN it writes a copy without them; or train on the others: --data.skip_broken true"
        in str(told.value)
    )
    data.skip_broken = True
    assert [f.kind for f in image_check(data, str(shapes))[0]] == ["corrupt_image"]
