"""A training of a DETR of a few thousand parameters by the command line, alone or as one of several processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml

from datamodules.shapes import generate_shapes

SECONDS = 240  # a process imports for many where others compute
ROOT = Path(__file__).parents[2]
# no batch norm and no dropout: a step is the same however it is cut
TINY = {
    "model": {"init_args": {
        "num_classes": 4,
        "backbone": {
            "name": "residual", "weights": "random", "widths": [4, 8, 8, 8, 8, 8], "dilate_last": False,
        },
        "transformer": {
            "dim": 32, "num_heads": 4, "ffn_dim": 16, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 8,
            "dropout": 0.0,
        },
        "schedule": {"global_batch_size": 8},
    }},
    "data": {"class_path": "datamodules.custom.CustomDataModule", "init_args": {
        "root": "shapes", "seed": 0, "num_workers": 0, "batch_size": 4, "eval_batch_size": 4, "train_transform": "flip",
        "input": {"resize": "stretch", "size": [64, 64]},
    }},
    "trainer": {"accelerator": "cpu", "max_epochs": 3},
    "checkpoint": {"every_n_train_steps": 1},
    "tracking": {"experiment": "tiny"},
}  # fmt: skip
COMMAND = ("fit", "-c", "detr/r50_coco_150e", "-c", "tiny.yaml")


def folder_of(path):
    """`path` with the data and the recipe that `COMMAND` needs."""
    generate_shapes(path / "shapes", 32, 4, seed=0, size=64)
    (path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return path


def start(folder, *arguments, before=(), launcher=("-m", "zoo.cli.main"), **variables):
    """A Python process in `folder`; `before` are words before it. What it says comes together."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | variables
    return subprocess.Popen(
        [*before, sys.executable, *launcher, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def torchrun(*options):
    """The launcher of `start` that is torchrun's."""
    return ("-m", "torch.distributed.run", *options, "-m", "zoo.cli.main")


def wait_for_checkpoint(file, *processes):
    """Until the file is there; the processes must live."""
    until = time.monotonic() + SECONDS
    while not file.is_file():
        for process in processes:
            assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < until
        time.sleep(0.05)


def said(process, code=0):
    """All that it said, when it has ended."""
    text, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == code, text
    return text


def children(pid):
    """Its processes, youngest last."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


def weights(run):
    """{name: tensor} of last.ckpt, and its step."""
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    return checkpoint["state_dict"] | {"step": torch.tensor(checkpoint["zoo"]["step"])}


def assert_equal(one, two, tolerance=0.0):
    """To the bit, or within `tolerance` of the largest entry."""
    assert one.keys() == two.keys()
    for name, value in one.items():
        apart = (value - two[name]).abs().max() if value.numel() else torch.tensor(0)
        assert apart <= tolerance * value.abs().max(), (name, apart)
