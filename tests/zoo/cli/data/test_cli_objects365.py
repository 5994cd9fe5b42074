"""From Objects365 to COCO with the real recipes, a tiny network and synthetic images, through `zoo fit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from datamodules.formats.objects365 import class_names
from zoo.cli.main import run_command
from zoo.contract.labels import LabelMap
from zoo.registry.manifest import read_manifest
from zoo.registry.store import builtin_manifests
from zoo.runs import recipes
from zoo.storage.checkpoint_io import read_checkpoint

SIZE = 64


def coco_labels() -> LabelMap:
    manifest = read_manifest(builtin_manifests()["rt_detr_r50.coco_72e"])
    return LabelMap.from_dict(manifest.to_dict()["label_map"])


def write_split(folder: Path, json_file: Path, names: list[str], classes: dict[int, str]) -> None:
    """Noise with two boxes an image, of the first classes in turn."""
    ids = list(classes)
    images, annotations = [], []
    for i, name in enumerate(names, start=1):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": i, "file_name": name, "width": SIZE, "height": SIZE})
        for k in (0, 1):
            annotations.append(
                {"id": 2 * i + k, "image_id": i, "category_id": ids[(2 * i + k) % len(ids)],
                 "bbox": [4 + 20 * k, 6, 24, 30], "area": 720, "iscrowd": 0}
            )  # fmt: skip
    categories = [{"id": i, "name": name} for i, name in classes.items()]
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def write_objects365(root: Path) -> None:
    names = [f"images/v{1 + i % 2}/patch{16 * (i % 2)}/objects365_v{1 + i % 2}_{i:08}.jpg" for i in range(4)]
    for split in ("train", "val"):
        write_split(root / split, root / split / f"zhiyuan_objv2_{split}.json", names, class_names())


def write_coco(root: Path) -> None:
    labels = coco_labels()
    classes = dict(zip(labels.source_ids, labels.names, strict=True))
    for split in ("train2017", "val2017"):
        names = [f"{split}_{i}.jpg" for i in range(4)]
        write_split(root / split, root / "annotations" / f"instances_{split}.json", names, classes)


def overlay(root: Path, num_classes: int, init_from: dict[str, str]) -> dict[str, Any]:
    """What makes a published recipe small: the network of rt_detr/tiny, one step of two images."""
    small = recipes.load(recipes.resolve("rt_detr/tiny"))["model"]["init_args"]
    keep = ("backbone", "encoder", "decoder", "ema")
    schedule = {
        "global_batch_size": 2,
        "rules": [],
        "lr": 0.0,  # what a step does to the rows is not asked here
    }
    return {
        "model": {
            "init_args": {
                **{k: small[k] for k in keep},
                "num_classes": num_classes,
                "schedule": schedule,
                "multi_scale": [],
            }
        },
        "data": {
            "init_args": {
                "root": str(root),
                "input": {"size": [SIZE, SIZE]},
                "batch_size": 2,
                "eval_batch_size": 2,
                "num_workers": 0,
            }
        },
        "trainer": {"max_epochs": 1, "max_steps": 1, "accelerator": "cpu", "devices": 1},
        "init_from": init_from,
    }


def fit(recipe: str, over: dict[str, Any], run: Path) -> dict[str, torch.Tensor]:
    file = run.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(over))
    command = ["fit", "--config", recipe, "--config", str(file), "--output", str(run)]
    assert run_command(command) == 0
    state: dict[str, torch.Tensor] = read_checkpoint(run / "last.ckpt")["state_dict"]
    return state


@pytest.mark.slow
def test_pre_training_then_coco_with_the_rows_of_the_same_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_objects365(tmp_path / "objects365")
    write_coco(tmp_path / "coco")
    nothing = {"source": "none", "head": "keep"}
    before = fit("rt_detr/r18_o365_12e", overlay(tmp_path / "objects365", 365, nothing), tmp_path / "first")
    capsys.readouterr()
    start = {"source": str(tmp_path / "first" / "last.ckpt"), "head": "by_class_name"}
    after = fit("rt_detr/r18_o365_coco_60e", overlay(tmp_path / "coco", 80, start), tmp_path / "second")

    said = capsys.readouterr().out
    assert (
        "class rows carried over for 79 of 80 classes by name or alias; 9 by alias: bird from Wild Bird"
        in said
    )
    assert "class rows that start new, for the weights do not know them: sports ball" in said
    name = "network.decoder.enc_score_head.weight"
    assert (before[name].shape[0], after[name].shape[0]) == (365, 80)
    rows = coco_labels().names
    person, tv, ball = rows.index("person"), rows.index("tv"), rows.index("sports ball")
    assert torch.equal(after[name][person], before[name][0])
    assert torch.equal(after[name][tv], before[name][37])
    assert not (before[name] == after[name][ball]).all(1).any(), "sports ball is nobody's row"
