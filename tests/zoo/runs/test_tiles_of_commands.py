"""Tiles from the command to the score: evaluation of whole images, and a model that was trained in tiles."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from blob_detector import blob_module, painted
from PIL import Image

import zoo
from datamodules.shapes import generate_shapes
from zoo.cli.main import run_command
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.contract.tiles import Tiles
from zoo.detector import Detector
from zoo.runs import report, subject
from zoo.runs.evaluate import folder_data
from zoo.runs.predict import predict

SIDE = 64
LABELS = LabelMap.contiguous(["red", "green", "blue"], [1, 2, 3])
INPUT = InputContract(resize="stretch", size=(SIDE, SIDE))
SIZES = ((150, 200), (64, 64), (40, 333), (1, 70))  # h, w


def objects_of(size):
    """Small ones on every seam, and one that is larger than a tile."""
    height, width = size
    small = [
        (n % 2, (x, y, x + 4, y + 3))
        for n, (y, x) in enumerate((y, x) for y in range(0, height - 3, 16) for x in range(0, width - 4, 13))
    ]
    return [*small, *([(2, (10, 10, 190, 140))] if min(size) > 140 else [])][:95]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("blobs")
    (folder / "annotations").mkdir()
    (folder / "val").mkdir()
    images, annotations = [], []
    for number, size in enumerate(SIZES):
        image = painted(size, [])
        for label, box in objects_of(size):
            bands = list(image.split())
            bands[label].paste(255, box)
            image = Image.merge("RGB", bands)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": LABELS.source_of_head[label],
                 "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "iscrowd": 0,
                 "area": (box[2] - box[0]) * (box[3] - box[1])}
            )  # fmt: skip
        image.save(folder / "val" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": size[1], "height": size[0]})
    categories = [{"id": LABELS.source_of_head[head], "name": LABELS.name_of_head[head]} for head in range(3)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def detector():
    return Detector(blob_module(INPUT, LABELS), "blobs")


@pytest.mark.parametrize("overlap", [0.1, 0.5])
def test_whole_images_are_scored_with_every_object_once(root, detector, overlap):
    scores = zoo.evaluate(detector, root, tiles=SIDE, tile_overlap=overlap, console=zoo.Silent())
    assert scores["images"] == len(SIZES)
    assert scores["AP50"] == pytest.approx(1.0), "nothing lost, nothing twice"
    assert scores["AP"] > 0.95
    without = zoo.evaluate(detector, root, console=zoo.Silent())
    assert without["AP"] < 0.6


def test_the_command_says_that_it_cuts_and_the_document_too(root, detector, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(subject, "load", lambda model, registry: detector)
    monkeypatch.setattr(zoo.runs.evaluate, "load", lambda model, registry: detector)
    out = tmp_path / "scores"
    command = ["validate", "blobs", "--data", str(root), "--output", str(out)]
    assert run_command([*command, "--tiles", "64x64"]) == 0
    assert (
        "tiles       64x64, overlap 0.2, and the whole image: 25 views of 4 images; scores are of whole"
        in capsys.readouterr().out
    )
    assert json.loads((out / "metrics.json").read_text())["tiles"] == {"size": [64, 64], "overlap": 0.2}
    assert run_command([*command, "--tiles", "x"]) == 2
    assert run_command(command) == 0
    assert "tiles" not in json.loads((out / "metrics.json").read_text())
    assert run_command(["validate", "--config", "rt_detr/tiny", "--ckpt-path", "x", "--tiles", "64"]) == 2
    assert "--data.input.tiles" in capsys.readouterr().err


def test_very_many_tiles_are_told_before_they_are_looked_at(detector, tmp_path, capsys):
    painted(
        (90, 100),
        [],
    ).save(tmp_path / "a.png")
    predict(lambda: detector, [str(tmp_path / "a.png")], None, tmp_path / "out", zoo.Console(), tiles=16)
    assert "tiles       16x16, overlap 0.2: 64 of an" not in capsys.readouterr().out
    predict(
        lambda: detector,
        [str(tmp_path / "a.png")],
        None,
        tmp_path / "out",
        zoo.Console(),
        tiles=16,
        tile_overlap=0.5,
    )
    assert (
        "tiles       16x16, overlap 0.5: 132 of an image of 90x100, each as costly" in capsys.readouterr().out
    )


def test_the_page_is_of_whole_images_that_were_cut(root, detector, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(zoo.runs.evaluate, "load", lambda model, registry: detector)
    command = ["evaluate", "blobs", "--data", str(root), "--output", str(tmp_path)]
    assert run_command([*command, "--tiles", str(SIDE), "--tile-overlap", "0.5"]) == 0
    assert "tiles       64x64, overlap 0.5, and the whole image" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert numbers["tiles"] == {"size": [64, 64], "overlap": 0.5}
    assert (numbers["images"], numbers["scores"]["AP50"]) == (len(SIZES), pytest.approx(1.0))
    assert "detected in tiles of 64x64, overlap 0.5" in (tmp_path / "report.html").read_text()
    assert run_command(command) == 0
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert numbers["tiles"] is None
    assert numbers["scores"]["AP"] < 0.6
    (tmp_path / "results.json").write_text("[]")
    results = ["--predictions", str(tmp_path / "results.json"), "--data", str(root)]
    assert run_command(["evaluate", *results, "--tiles", "64"]) == 2
    assert "--tiles says how a model looks at images" in capsys.readouterr().err


def test_the_gallery_shows_whole_images_with_what_their_tiles_found(root, detector, tmp_path, monkeypatch):
    data = folder_data(root, INPUT.with_tiles(Tiles(size=(SIDE, SIDE))), detector.module)
    data.setup("validate")
    shown = []
    monkeypatch.setattr(report, "compare", lambda *row: shown.append(row) or Image.new("RGB", (9, 9)))
    run = SimpleNamespace(data=data, module=detector.module, folder=tmp_path)
    assert report.write_gallery(run, 0.5).is_file()
    assert [(*image.shape[1:],) for image, *_ in shown] == [*SIZES]
    for size, (_, found, known, _, threshold) in zip(SIZES, shown, strict=True):
        assert threshold == 0.5
        assert len(found.scores) == len(known.labels) == len(objects_of(size))
        assert not known.crowd.any(), "none is trimmed, and so ignored"


@pytest.mark.slow
def test_a_model_trained_in_tiles_says_so_and_predicts_so(tmp_path, capsys):
    data = generate_shapes(tmp_path / "data", 8, 3, seed=1, size=96)
    command = (
        f"finetune rt_detr_tiny --data {data} --weights random --max-steps 2 --batch-size 4 --image-size 64 "
        f"--tiles 48x64 --tile-overlap 0.25 --output {tmp_path / 'run'} --registry {tmp_path / 'registry'}"
    )
    assert run_command(command.split()) == 0
    tiles, run = Tiles(size=(48, 64), overlap=0.25), zoo.Run.open(tmp_path / "run")
    assert "tiles 48x64, overlap 0.25: 8 of 8 images are larger" in capsys.readouterr().out
    recipe = run.recipe["data"]["init_args"]
    assert recipe["input"]["tiles"] == {"size": [48, 64], "overlap": 0.25}
    assert recipe["tile_sampling"] == {"visible": 0.4, "whole": 0.2, "empty": 0.25}
    registered = zoo.load("rt_detr_tiny.data", registry=tmp_path / "registry")
    assert registered.input.tiles == tiles
    assert registered.manifest.to_dict()["input"]["tiles"] == {"size": (48, 64), "overlap": 0.25}
    assert registered.predict(data / "val" / "00000.png").views == 7
    assert run.scores["val"]["images"] == 3


def test_models_with_masks_refuse_tiles_before_anything_is_read():
    with pytest.raises(ValueError, match=r"--tiles: .*only boxes are merged, not masks") as refused:
        zoo.finetune("detr_r50_panoptic", "nowhere", weights="random", tiles=640, console=zoo.Silent())
    assert "\n" not in str(refused.value)
