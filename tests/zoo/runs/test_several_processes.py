"""One training in several processes: of Lightning and of torchrun, killed and ended in between."""

import os
import re
import signal
import time

import pytest
from tiny_training import (
    COMMAND,
    assert_equal,
    children,
    folder_of,
    said,
    start,
    torchrun,
    wait_for_checkpoint,
    weights,
)

from zoo.storage.checkpoint_io import read_checkpoint

pytestmark = pytest.mark.slow
LOST = "another process of this training has ended or cannot be reached"


def errors(text):
    return [line for line in text.splitlines() if re.match(r"(rank \d+: )?error: ", line)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("tiny"))


def test_launchers_train_the_same_weights_also_when_a_rank_is_killed(tiny):
    """Lightning's processes and torchrun's to the bit, one process to rounding."""
    said(start(tiny, *COMMAND, "--data.batch_size", "8", "--output", "one"))
    text = said(start(tiny, *COMMAND, "--trainer.devices", "2", "--output", "two"))
    for line in ("recipe ", "run ", "preflight: first step", "epoch   3", "best ", "metrics "):
        assert len(re.findall(f"^{line}", text, flags=re.MULTILINE)) == 1, text
    launcher = torchrun("--nproc-per-node", "2", "--max-restarts", "1")
    killed = start(tiny, *COMMAND, "--output", "killed", "--ckpt-path", "auto", launcher=launcher)
    wait_for_checkpoint(tiny / "killed" / "last.ckpt", killed)
    os.kill(children(killed.pid)[-1], signal.SIGKILL)
    text = said(killed)
    assert len(errors(text)) <= 1  # none if the agent was faster
    assert len(re.findall("^resume ", text, flags=re.MULTILINE)) == 1
    one, two, again = (weights(tiny / run) for run in ("one", "two", "killed"))
    assert two["step"] == 12
    assert_equal(two, again)
    assert_equal(one, two, 1e-4)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_other_with_one_line(tiny, victim):
    run = f"lost{victim}"
    process = start(tiny, *COMMAND, "--trainer.devices", "2", "--trainer.max_epochs", "400", "--output", run)
    wait_for_checkpoint(tiny / run / "last.ckpt", process)
    (child,) = children(process.pid)
    os.kill((process.pid, child)[victim], signal.SIGKILL)
    begun = time.monotonic()
    text, _ = process.communicate(timeout=60)  # until both have closed it
    assert time.monotonic() - begun < 60
    (line,) = errors(text)
    assert LOST in line
    assert line.endswith(f"go on with: zoo fit --ckpt-path {tiny / run / 'last.ckpt'}")
    assert line.startswith("rank 1: error: " if victim == 0 else "error: ")
    assert "Traceback" not in text


def test_sigterm_to_torchrun_ends_with_a_checkpoint_and_the_line_that_goes_on(tiny):
    launcher = torchrun("--nproc-per-node", "2")
    words = [*COMMAND, "--trainer.max_epochs", "400", "--output", "ended", "--ckpt-path", "auto"]
    process = start(tiny, *words, launcher=launcher)
    last = tiny / "ended" / "last.ckpt"
    wait_for_checkpoint(last, process)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert f"go on, started by torchrun as before, with: zoo fit --ckpt-path {last}" in text
    assert errors(text) == ["error: ended by SIGTERM"]
    step = read_checkpoint(last)["zoo"]["step"]
    said(
        start(
            tiny,
            *words,
            "--trainer.max_epochs",
            "-1",
            "--trainer.max_steps",
            str(step + 1),
            launcher=launcher,
        )
    )
    assert read_checkpoint(last)["zoo"]["step"] == step + 1


SIGNALLED = """
import os, signal
from lightning.pytorch import Trainer
from zoo.cli.main import main

run_stage = Trainer._run_stage

def signalled(trainer):
    if os.environ.get("LOCAL_RANK") == "1" and trainer.state.fn == os.environ["STAGE"]:
        os.kill(os.getpid(), signal.SIGTERM)
    return run_stage(trainer)

Trainer._run_stage = signalled
main()
"""


@pytest.mark.parametrize(
    ("stage", "says"), [("fit", "before a step was saved"), ("validate", "go on with: zoo fit")]
)
def test_a_signal_to_one_process_before_its_first_step_or_while_they_score_ends_both(tiny, stage, says):
    """They are in a collective then, which Lightning's handler would never come back from."""
    (tiny / "signalled.py").write_text(SIGNALLED)
    words = [
        *COMMAND,
        "--trainer.devices",
        "2",
        "--trainer.max_epochs",
        "1",
        "--output",
        f"signalled-{stage}",
    ]
    text = said(start(tiny, *words, launcher=("signalled.py",), STAGE=stage), 143)
    assert f"interrupted; {says}" in text.replace("interrupted before", "interrupted; before")
    assert errors(text) == ["error: ended by SIGTERM"]
