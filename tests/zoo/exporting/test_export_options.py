"""Options of `zoo export` to the end: of each class of network a file that is certified, scored, shown and checked."""

from __future__ import annotations

import json

import pytest
import torch
from exported_case import LABELS, data
from registry_case import write_checkpoint
from test_every_family import contract_of, module_of
from tiny_families import first_of_each_class

from zoo.cli.main import run_command
from zoo.detector import Detector

KEYS = first_of_each_class()
REFINING = [key for key in KEYS if not key.startswith(("detr/", "deformable_detr/"))]
RAW, LAYERS = ("--raw", "--image-size"), ("--decoder-layers",)
SIZES = {"stretch": "96x64", "shortest": "96x160"}  # others than the contracts have


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    cases = {}

    def of(key):
        if key not in cases:
            root = tmp_path_factory.mktemp("options")
            module, contract = module_of(key), contract_of(key)
            module.adopt(LABELS, contract)
            write_checkpoint(root / "model.ckpt", module, LABELS, contract.to_dict(), 20)
            images = data(root / "data", 3, Detector(module, key))
            move_edges(images / "annotations" / "instances_val.json")
            cases[key] = (str(root / "model.ckpt"), str(images), SIZES[contract.resize])
        return cases[key]

    return of


def move_edges(file):
    """Boxes of random weights overlap objects by round numbers, where rounding decides whether one is found."""
    content = json.loads(file.read_text())
    for row in content["annotations"]:
        row["bbox"][2] *= 1.0137
        row["bbox"][3] *= 1.0211
    file.write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "options"), [(key, RAW) for key in KEYS] + [(key, LAYERS) for key in REFINING]
)
def test_options_give_a_file_that_is_certified_scored_and_shown(key, options, made, tmp_path, capsys):
    def run(*arguments):
        capsys.readouterr()
        assert run_command([*arguments, "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    torch.set_num_threads(1)
    model, images, size = made(key)
    words = {
        "--raw": ["--raw"],
        "--image-size": ["--image-size", size],
        "--decoder-layers": ["--decoder-layers", "1"],
    }
    given = [word for option in options for word in words[option]]
    document = run("export", model, "--output", str(tmp_path / "out"), "--data", images, *given)
    assert document["passed"]
    file, ap = str(tmp_path / "out" / "model.onnx"), document["scores"]["AP"]
    assert abs(ap["difference"]) <= 1e-4
    scored = run("validate", file, "--data", images, "--output", str(tmp_path / "scores"))
    assert scored["val"]["AP"] == pytest.approx(ap["file"], abs=1e-6)
    facts = run("info", file)
    if "--raw" in options:
        assert set(facts["outputs"]) - {"masks"} == {"logits", "pred_boxes"}
        assert facts["input"]["size"] == [int(side) for side in size.split("x")]
    else:
        assert facts["decoder_layers"] == 1
        whole = run(
            "validate", model, "--data", images, "--decoder-layers", "1", "--output", str(tmp_path / "w")
        )
        assert whole["decoder_layers"][0]["AP"] == pytest.approx(ap["source"], abs=1e-6)
    picture = f"{images}/val/0.png"
    shown = run("predict", file, picture, "--threshold", "0.06", "--output", str(tmp_path / "shown"))
    assert shown["predictions"][0]["detections"]
    assert run("export", model, "--check", str(tmp_path / "out"), "--data", images)["passed"]


@pytest.mark.parametrize("key", [key for key in KEYS if key not in REFINING])
def test_networks_that_cannot_leave_out_layers_say_so(key, made, tmp_path, capsys):
    model, _, _ = made(key)
    assert run_command(["export", model, "--decoder-layers", "1", "--output", str(tmp_path / "out")]) == 2
    assert "does not evaluate with fewer decoder layers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
