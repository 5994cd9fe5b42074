"""The first hour of somebody new: the demo, then images of their own; each step does what the last has said."""

import json
import re
import shlex
import shutil
import signal
from pathlib import Path

import pytest
from empty_store import put_empty_store
from PIL import Image
from tiny_training import said, start, wait_for_checkpoint

import zoo
from datamodules.shapes import generate_shapes
from zoo.cli.main import run_command
from zoo.runs import demo
from zoo.storage.checkpoint_io import read_checkpoint
from zoo.tracking.backend import TrackingStore, connect, resolve_store

SMALL = ("--image-size", "64", "--batch-size", "4")


@pytest.fixture
def run(capsys):
    """A command; what it says on stdout and stderr together, if it ends with `code`."""

    def run_(line, code=0):
        assert run_command(shlex.split(line)) == code
        both = capsys.readouterr()
        return both.out + both.err

    return run_


def with_a_broken_image(folder):
    images = generate_shapes(folder, 24, 8, seed=0, size=64)
    whole = sorted((images / "train").glob("*.png"))[0]
    broken = whole.with_suffix(".jpg")
    Image.open(whole).save(broken, quality=95)
    whole.unlink()
    broken.write_bytes(broken.read_bytes()[:-300])
    annotations = images / "annotations/instances_train.json"
    annotations.write_text(annotations.read_text().replace(whole.name, broken.name))
    return broken.name


def with_one_class_more(clean, folder):
    shutil.copytree(clean, folder)
    for file in sorted((folder / "annotations").glob("*.json")):
        content = json.loads(file.read_text())
        content["categories"].append({"id": 99, "name": "star"})
        content["annotations"][0]["category_id"] = 99
        file.write_text(json.dumps(content))


def names_in(store: TrackingStore) -> tuple[list[str], set[str]]:
    """Of the runs in MLflow, without their times, and of the registered models."""
    client = connect(store)
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = sorted(r.info.run_name.partition(" ")[0] for r in client.search_runs(experiments))
    return runs, {m.name for m in client.search_registered_models()}


@pytest.mark.slow
def test_the_demo_tells_its_steps_and_leaves_one_folder(tmp_path, run, monkeypatch):
    monkeypatch.setattr(demo, "NUM_TRAIN", 48)  # of 2500
    monkeypatch.setattr(demo, "NUM_VAL", 8)
    told = run("demo --steps 3")
    for step in (
        "1/5  data: 48 + 8 images of circle, ",
        "2/5  training",
        "3/5  the result",
        "4/5  registered",
        "5/5  ",
    ):
        assert f"\n{step}" in f"\n{told}"
    assert re.search(r"\nAP +0\.\d{3} \[", told)
    assert "nan" not in told.lower().split()
    assert {p.name for p in tmp_path.iterdir()} - {"zoo_cache"} == {"mlruns"}
    folder = tmp_path / "mlruns" / "demo"
    assert {p.name for p in (tmp_path / "mlruns").iterdir()} == {"demo"}
    named = [
        line.strip() for line in told.partition("All is below ")[2].splitlines() if line.startswith("  /")
    ]
    assert len(named) == 6
    assert all(Path(file).is_file() and Path(file).is_relative_to(folder) for file in named)
    store = resolve_store(folder / "mlruns")
    assert f"mlflow ui --backend-store-uri {store.uri}\n" in told
    assert names_in(store) == (["rt_detr_tiny.shapes"], {"rt_detr_tiny.shapes"})
    # the line that it ends with, on the image that it made
    line = re.search(r"predict: +zoo (predict \S+) IMAGE (--threshold .*)", told)
    assert "predictions.json" in run(f"{line[1]} mlruns/demo/new_image.png {line[2]}")
    # a second one takes the place of the first
    (folder / "mine.txt").write_text("")
    run("demo --steps 1")
    assert not (folder / "mine.txt").exists()


@pytest.mark.slow
def test_from_images_with_a_mistake_to_a_model_that_learns_one_class_more(tmp_path, run):
    put_empty_store(tmp_path / "mlruns")
    broken = with_a_broken_image(tmp_path / "birds")
    # the mistake is named before anything is trained, with ways out that work
    assert broken in run("data check birds", 1)
    refused = run(f"finetune rt_detr_tiny --data birds {shlex.join(SMALL)}", 2)
    assert broken in refused
    assert "--fix CLEAN" in refused
    assert not Path("mlruns/checkpoints").exists()
    assert "next: zoo data check clean" in run("data check birds --fix clean")
    assert "next: zoo finetune MODEL --data clean" in run("data check clean")

    # it is trained, interrupted, and gone on with by the line that it says
    arguments = (
        "rt_detr_tiny",
        "--data",
        "clean",
        *SMALL,
        "--epochs",
        "400",
        "--output",
        "run",
        "--seed",
        "1",
    )
    process = start(tmp_path, "finetune", *arguments)
    wait_for_checkpoint(tmp_path / "run" / "last.ckpt", process)
    process.send_signal(signal.SIGINT)
    line = re.search(r"go on with: zoo (.*)", said(process, 130))[1]
    step = read_checkpoint(tmp_path / "run" / "last.ckpt")["zoo"]["step"]
    resumed = run(f"{line} --trainer.max_steps {step + 2}")
    assert f"step {step}\n" in resumed
    assert "registered  rt_detr_tiny.clean:1 " in resumed
    for name in ("curves.png", "gallery.png", "metrics.json", "recipe.yaml"):
        assert (tmp_path / "run" / name).is_file()
    picture = re.search(r"zoo (predict rt_detr_tiny.clean:1 .*)", resumed)[1]
    assert "drawn       mlruns/predictions/" in run(picture)

    # it is one version, however often it is published, and has its alias
    published = run("publish run --name rt_detr_tiny.clean --alias champion")
    assert "there is no new version" in published
    assert re.search(r"rt_detr_tiny.clean +1 .*@champion", run("list"))
    assert "is rt_detr_tiny.clean:1" in run("alias rt_detr_tiny.clean:1 first")
    detector = zoo.load("rt_detr_tiny.clean@first")
    image = next((tmp_path / "clean/val").glob("*.png"))
    assert len(detector.predict(image, threshold=0.0).scores) > 0
    assert 0 <= zoo.Run.open("run").scores["val"]["AP"] <= 1

    # one class more: the rows of the others are kept
    with_one_class_more(tmp_path / "clean", tmp_path / "more")
    again = run(f"finetune rt_detr_tiny.clean --data more {shlex.join(SMALL)} --max-steps 2")
    assert "classes of the same name keep their rows" in again
    assert ", 5 classes, input 64x64" in again
    assert "registered  rt_detr_tiny.more:1 " in again
    assert "star" in run("info rt_detr_tiny.more")

    # all of it lies in mlruns and where it was asked for
    assert {p.name for p in tmp_path.iterdir()} - {"zoo_cache"} == {"birds", "clean", "more", "mlruns", "run"}
    names = ["rt_detr_tiny.clean", "rt_detr_tiny.more"]
    assert names_in(resolve_store()) == (names, set(names))
