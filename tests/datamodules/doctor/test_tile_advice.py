"""Tiles are recommended where they help: by the sizes of objects at the network's input."""

from __future__ import annotations

import json

import pytest
from tiny_sets import write_image

from datamodules.doctor import examine
from zoo.cli.main import run_command


def write(root, size, boxes, number=4):
    """COCO with `number` images of (width, height) `size`; made of one colour, so small as files."""
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        images, annotations = [], []
        for n in range(number):
            images.append({"id": n, "file_name": f"{n}.png", "width": size[0], "height": size[1]})
            annotations += [
                {"id": len(annotations) + k + 1, "image_id": n, "category_id": 1, "bbox": list(box), "iscrowd": 0,
                 "area": box[2] * box[3]}
                for k, box in enumerate(boxes)
            ]  # fmt: skip
            write_image(root / split / f"{n}.png", size, n + 10 * (split == "val"))
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dot"}]}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


SMALL = [(100 + 20 * n, 200, 12, 12) for n in range(6)]
LARGE = [(300, 300, 200, 200), (10, 10, 80, 90)]


@pytest.mark.parametrize(
    ("view", "option"),
    [("640", "--tiles 640"), ("480x640", "--tiles 480x640"), ("800/1333", None), ("320", "--tiles 320")],
)
def test_small_objects_in_large_images_ask_for_tiles_of_the_input(tmp_path, view, option):
    root = write(tmp_path, (1400, 1000), [*SMALL, *LARGE], number=2)
    found = examine(root, quick=True, image_size=view)
    advice = [fault for fault in found.faults if fault.kind == "small_in_large_images"]
    if option is None:  # 12 pixels are 9.5 there
        assert not advice
        return
    assert found.tiles.option == option
    assert (found.tiles.objects, found.tiles.small, found.tiles.helped) == (32, 24, 24)
    assert "24 of 32 objects have fewer than 8 pixels" in advice[0].message
    assert advice[0].message.endswith(option)


def test_tiny_objects_ask_for_smaller_tiles(tmp_path):
    root = write(tmp_path, (1400, 1000), [(100 + 20 * n, 200, 5, 5) for n in range(6)], number=1)
    assert examine(root, quick=True, image_size="640").tiles.option == "--tiles 320"


@pytest.mark.parametrize(("size", "boxes"), [((640, 480), SMALL), ((1400, 1000), LARGE), ((1400, 1000), [])])
def test_no_tiles_where_they_would_not_help(tmp_path, size, boxes):
    root = write(tmp_path, size, boxes, number=1)
    found = examine(root, quick=True)
    assert found.tiles is None
    assert not [fault for fault in found.faults if fault.kind == "small_in_large_images"]


def test_the_command_ends_with_the_line_to_copy(tmp_path, capsys):
    root = write(tmp_path / "a set", (1400, 1000), [*SMALL, *LARGE], number=2)
    assert run_command(["data", "check", str(root), "--quick"]) == 0
    assert capsys.readouterr().out.rstrip().endswith(f"next: zoo finetune MODEL --data '{root}' --tiles 640")
    assert run_command(["data", "check", str(root), "--quick", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tiles"] == {
        "size": [640, 640], "objects": 32, "small": 24, "helped": 24
    }  # fmt: skip
