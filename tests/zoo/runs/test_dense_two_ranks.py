"""Dense O2O, augmentation by epoch and the second stage in real processes: alone, as two ranks, killed and resumed."""

import json
import re
import signal

import pytest
import yaml
from empty_store import put_empty_store
from tiny_training import assert_equal, said, start, weights

from datamodules.shapes import generate_shapes
from zoo.storage.checkpoint_io import read_checkpoint

pytestmark = pytest.mark.slow
IMAGES, STEPS, EPOCHS, RESTART = 12, 3, 6, 4
# `zoo`, with a line for each image that a step gets; ends itself as a lost machine would, where END is "step rank"
NOTED = """
import json, os, signal, zlib
from pathlib import Path
from zoo.cli.main import main
from zoo.training.module import DetectionModule

begin = DetectionModule.on_train_batch_start

def on_train_batch_start(self, batch, batch_idx):
    trainer = self.trainer
    if os.environ.get("END") == f"{trainer.global_step} {trainer.global_rank}":
        os.kill(os.getpid(), signal.SIGKILL)
    begin(self, batch, batch_idx)
    with Path(os.environ["NOTES"], f"{os.getpid()}.jsonl").open("a") as file:
        counts, targets = list(batch.targets.counts), batch.targets
        pieces = zip(batch.images, batch.image_ids, targets.labels.split(counts), targets.boxes.split(counts))
        for image, number, *objects in pieces:
            of_image = [zlib.crc32(tensor.numpy().tobytes()) for tensor in (image, *objects)]
            file.write(json.dumps([trainer.global_rank, trainer.current_epoch, number, of_image]) + "\\n")

DetectionModule.on_train_batch_start = on_train_batch_start
if __name__ == "__main__":
    main()
"""
DENSE = {
    "model": {"init_args": {
        "num_classes": 4,
        "backbone": {"widths": [4, 8, 8, 8, 8]},
        "encoder": {"dim": 16, "ffn_dim": 16},
        "decoder": {"dim": 16, "ffn_dim": 16},
        "ema": {"decay": 0.99, "warmup_steps": 10},
        "schedule": {
            "global_batch_size": IMAGES // STEPS, "warmup_steps": 2, "decay": "flat_cosine", "flat_epochs": 3,
            "tail_epochs": 1, "final_factor": 0.5, "first_factor": 0.002, "restart_epoch": RESTART,
        },
    }},
    "data": {"init_args": {
        "root": "shapes", "input": {"size": [64, 64]}, "num_workers": 0, "train_transform": "rt_detr_clean",
        "later_transforms": [{"from_epoch": 1, "name": "rt_detr"}, {"from_epoch": RESTART, "name": "rt_detr_clean"}],
        "min_box_side": 1, "eval_batch_size": 2,
        "dense_o2o": {
            "group": 4,
            "mosaic": {
                "epochs": [1, 3], "probability": 0.5, "side": 32, "rotation": 10.0, "translation": 0.1,
                "scale": [0.5, 1.5],
            },
            "mixup": {"epochs": [1, 3], "probability": 0.5},
            "copy_blend": {
                "epochs": [1, RESTART], "probability": 0.8, "objects": 3, "least_area": 20, "expand": [0.1, 0.25],
            },
        },
    }},
    "trainer": {"accelerator": "cpu", "max_epochs": EPOCHS},
    "checkpoint": {"every_n_train_steps": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("dense")
    generate_shapes(path / "shapes", IMAGES, 4, seed=0, size=64)
    put_empty_store(path / "mlruns")
    (path / "dense.yaml").write_text(yaml.safe_dump(DENSE))
    (path / "noted.py").write_text(NOTED)
    return path


def begin(folder, run, *arguments, devices=2, batch_size=1, **variables):
    (folder / f"{run}.notes").mkdir(exist_ok=True)
    words = [
        "fit",
        "-c",
        "rt_detr/tiny",
        "-c",
        "dense.yaml",
        "--output",
        run,
        "--trainer.devices",
        str(devices),
    ]
    return start(
        folder, *words, "--data.batch_size", str(batch_size), *arguments,
        launcher=("noted.py",), NOTES=str(folder / f"{run}.notes"), **variables,
    )  # fmt: skip


def images_of(folder, run, ranks):
    """{(epoch, image): crc of its pixels, labels and boxes} over all processes; each must be the same every time."""
    found, seen = {}, set()
    for file in (folder / f"{run}.notes").iterdir():
        for rank, epoch, image, of_image in map(json.loads, file.read_text().splitlines()):
            assert found.setdefault((epoch, image), of_image) == of_image, (epoch, image)
            seen.add(rank)
    assert seen == set(range(ranks))
    assert len(found) == EPOCHS * IMAGES
    return found


def restarts(text):
    return re.findall(r"epoch +(\d+)  starts from step (\d+)", text)


def test_two_ranks_get_the_images_of_one_and_go_on_where_they_were_killed(folder):
    """Killed in the step that begins the second stage and within it: the weights are those of a run that was not."""
    said(begin(folder, "one", devices=1, batch_size=4))
    whole = images_of(folder, "one", 1)
    text = said(begin(folder, "two"))
    assert restarts(text)[0][0] == str(RESTART + 1)
    assert images_of(folder, "two", 2) == whole

    told = []
    first = RESTART * STEPS
    for step, rank in ((first, 1), (first + 1, 0)):
        resume = ["--ckpt-path", "killed/last.ckpt"] if told else []
        killed = begin(folder, "killed", *resume, END=f"{step} {rank}")
        words, _ = killed.communicate(timeout=240)
        assert killed.returncode == (-signal.SIGKILL if rank == 0 else 2), words
        assert read_checkpoint(folder / "killed" / "last.ckpt")["zoo"]["step"] == step
        told.append(words)
    told.append(said(begin(folder, "killed", "--ckpt-path", "killed/last.ckpt")))
    assert images_of(folder, "killed", 2) == whole
    assert dict(restarts("".join(told))) == dict(restarts(text))
    assert_equal(weights(folder / "two"), weights(folder / "killed"))
    one, two = (read_checkpoint(folder / run / "last.ckpt") for run in ("two", "killed"))
    assert one["callbacks"]["SecondStage"] == two["callbacks"]["SecondStage"]
    for mine, theirs in zip(*(c["optimizer_states"][0]["state"].values() for c in (one, two)), strict=True):
        assert_equal(mine, theirs)
