"""Two machines: network namespaces of this one, joined by a cable that is cut. They need root, and iproute2."""

import itertools
import shutil
import signal
import subprocess
import time

import pytest
from tiny_training import COMMAND, SECONDS, folder_of, start, torchrun, wait_for_checkpoint

from zoo.storage.checkpoint_io import read_checkpoint

pytestmark = pytest.mark.slow
ADDRESSES = ("10.213.0.1", "10.213.0.2")
NAMES = itertools.count()


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def machines():
    """Names of two namespaces and of the cable's end in each."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` here: apt-get install iproute2")
    number = next(NAMES)
    names, made = [f"zoo{number}a", f"zoo{number}b"], []
    try:
        try:
            for name in names:
                ip("netns", "add", name)
                made.append(name)
            ip(
                "link",
                "add",
                "cable0",
                "netns",
                names[0],
                "type",
                "veth",
                "peer",
                "name",
                "cable1",
                "netns",
                names[1],
            )
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
        for name, end, address in zip(names, ("cable0", "cable1"), ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in made:
            ip("netns", "delete", name)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("tiny"))


def start_both(machines, tiny, run, *more):
    """A rank on each machine, after their first step; Lightning finds both by the variables that a person sets."""
    words = [
        *COMMAND,
        "--trainer.devices",
        "1",
        "--trainer.num_nodes",
        "2",
        "--trainer.max_epochs",
        "400",
        "--output",
        run,
    ]
    both = [
        start(
            tiny, *words, *more, before=("ip", "netns", "exec", name), MASTER_ADDR=ADDRESSES[0], MASTER_PORT="29400",
            NODE_RANK=str(rank), GLOO_SOCKET_IFNAME=f"cable{rank}",
        )
        for rank, name in enumerate(machines)
    ]  # fmt: skip
    wait_for_checkpoint(tiny / run / "last.ckpt", *both)
    return both


def end(both):
    for process in both:
        if process.poll() is None:
            process.kill()
        process.communicate()


def the_error(process, within):
    """Its one line of error, which ends it in time."""
    text, _ = process.communicate(timeout=within)
    assert process.returncode == 2, text
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if "error: " in line and "gloo" not in line]
    return line


def step_of(run):
    return read_checkpoint(run / "last.ckpt")["zoo"]["step"]


def test_a_cut_of_20_seconds_is_waited_for(machines, tiny):
    both = start_both(machines, tiny, "cut")
    try:
        ip("-n", machines[1], "link", "set", "cable1", "down")
        time.sleep(20)
        assert [process.poll() for process in both] == [None, None]
        ip("-n", machines[1], "link", "set", "cable1", "up")
        step, until = step_of(tiny / "cut"), time.monotonic() + SECONDS
        while step_of(tiny / "cut") < step + 3:
            assert [process.poll() for process in both] == [None, None]
            assert time.monotonic() < until
            time.sleep(0.5)
    finally:
        end(both)


def test_a_cut_that_stays_ends_both_after_the_longest_wait(machines, tiny):
    both = start_both(machines, tiny, "away", "--distributed.timeout_minutes", "0.25")
    try:
        ip("-n", machines[1], "link", "set", "cable1", "down")
        for process in both:
            assert "another process of this training has ended or cannot be reached" in the_error(
                process, 120
            )
    finally:
        end(both)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_machine_that_is_killed_ends_the_other_with_one_line(machines, tiny, victim):
    both = start_both(machines, tiny, f"killed{victim}")
    try:
        both[victim].send_signal(signal.SIGKILL)
        line = the_error(both[1 - victim], 60)
        assert "another process of this training has ended or cannot be reached" in line
        assert line.endswith(f"go on with: zoo fit --ckpt-path {tiny / f'killed{victim}' / 'last.ckpt'}")
        assert line.startswith("error: " if victim else "rank 1: error: ")
    finally:
        end(both)


def test_two_agents_of_torchrun_meet_over_the_cable(machines, tiny):
    words = [*COMMAND, "--output", "agents", "--ckpt-path", "auto"]
    both = [
        start(
            tiny, *words, before=("ip", "netns", "exec", name), GLOO_SOCKET_IFNAME=f"cable{rank}",
            launcher=torchrun(
                "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(rank), "--master-addr", ADDRESSES[0],
                "--master-port", "29400",
            ),
        )
        for rank, name in enumerate(machines)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=SECONDS)[0] for process in both]
    finally:
        end(both)
    assert [process.returncode for process in both] == [0, 0], told
    assert step_of(tiny / "agents") == 12
    assert "best " in told[0]
    assert "best " not in told[1]
