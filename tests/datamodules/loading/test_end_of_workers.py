"""A program that ends by an error ends, whatever its data workers are at."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from datamodules.index.image_store import StoreError
from datamodules.loading.loaders import batches_of

ROOT = Path(__file__).parents[3]
# the loader is kept, as the traceback of an error or a cycle keeps it; a training's handler only notes the signal
PROGRAM = """
import os, signal, sys, time
from torch.utils.data import DataLoader
from datamodules.loading.loaders import batches_of

class Images:
    def __len__(self):
        return 4

    def __getitem__(self, key):
        if key and sys.argv[1] == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        return key

signal.signal(signal.SIGTERM, lambda number, frame: None)
if sys.argv[1] == "starting":
    os.register_at_fork(after_in_child=lambda: time.sleep(5))
batches = batches_of(DataLoader(Images(), num_workers=2))
if sys.argv[1] != "starting":
    next(batches)
sys.exit(2)
"""


@pytest.mark.parametrize("workers", ["starting", "deaf"])
def test_an_error_ends_the_program_and_its_workers(workers: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, workers], start_new_session=True, text=True, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as program:  # fmt: skip
        try:
            # its end, and that of the workers, who hold the same stderr
            told = program.communicate(timeout=60)[1]
        finally:
            if program.returncode is None:
                os.killpg(program.pid, 9)
    assert program.returncode == 2
    assert "Error" not in told


class Failing:
    """Raises what it is given; a bare error has no message."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 2

    def __getitem__(self, key: int) -> int:
        raise self.error


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "error", [ValueError("a.jpg is bad"), StoreError("b: two\nlines, ValueError: quoted"), OSError("c")]
)
def test_an_error_of_a_worker_is_raised_as_it_is(error: Exception, workers: int) -> None:
    with pytest.raises(type(error)) as told:
        next(batches_of(DataLoader(Failing(error), num_workers=workers)))
    assert (type(told.value), str(told.value)) == (type(error), str(error))
