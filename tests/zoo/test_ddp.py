"""Two processes train the weights that one process trains: real DDP over gloo."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_module import build

from datamodules.shapes import generate_shapes

ROOT = Path(__file__).parents[2]

TRAIN = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]) / "tests" / "zoo")]
import torch
torch.set_num_threads(1)
from lightning.pytorch.strategies import DDPStrategy
from test_module import EvalNorms, build, make_data, trainer
root, out, devices, batch_size = sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
strategy = DDPStrategy(process_group_backend="gloo") if devices > 1 else "auto"
run = trainer(out, max_steps=3, callbacks=[EvalNorms()], devices=devices, strategy=strategy, limit_val_batches=None)
module = build()
run.fit(module, make_data(root, batch_size))
if run.is_global_zero:
    scores = {k: float(v) for k, v in run.callback_metrics.items() if k.startswith("val/")}
    torch.save({"state": module.network.state_dict(), "scores": scores}, out / "result.pt")
"""


def train(root: Path, out: Path, devices: int, batch_size: int) -> dict:
    out.mkdir()
    script = out / "train.py"
    script.write_text(TRAIN)
    arguments = [str(ROOT), str(root), str(out), str(devices), str(batch_size)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={devices}", f"--master-port={port}"]
    command = [sys.executable, *(launch if devices > 1 else []), str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=out, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out / "result.pt", weights_only=True)


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    """Steps of 8 images: 1 rank x 8, and 2 ranks x 2 micro-batches x 2."""
    root = generate_shapes(tmp_path / "shapes", 32, 5, seed=0, size=64)
    one, two = train(root, tmp_path / "one", 1, 8), train(root, tmp_path / "two", 2, 2)
    for name, start in build().network.named_parameters():
        moved = (one["state"][name] - start).norm()
        assert (one["state"][name] - two["state"][name]).norm() <= 0.02 * moved + 1e-7, name
    assert two["scores"].keys() == one["scores"].keys()
