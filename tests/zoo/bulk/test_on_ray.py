"""The same job by Ray Data, also when its actors are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from registry_case import tiny_checkpoint

from zoo.cli.main import run_command

pytest.importorskip("ray.data", reason="Ray is not installed: pip install 'detr-zoo[ray]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("by ray")
    tiny_checkpoint(root / "tiny.ckpt")
    (root / "images").mkdir()
    drawn = np.random.default_rng(0)
    for number in range(150):
        pixels = drawn.integers(0, 255, (40 + number % 3, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number:03}.png")
    (root / "images" / "damaged.png").write_bytes(b"no image")
    return root


def command(place, name, *options):
    data = ["--data", str(place / "images"), "--threshold", "0", "--output", str(place / name)]
    return ["predict", str(place / "tiny.ckpt"), *data, *options]


@pytest.fixture(scope="module")
def expected(place):
    assert run_command(command(place, "local.json", "--workers", "0")) == 1
    return (place / "local.json").read_bytes()


def actors_below(parent: int) -> list[int]:
    """Processes of Ray's actors that descend from a process of ours."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text()
                names[int(entry.name)] = (entry / "cmdline").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])

    def descends(process: int) -> bool:
        while process in parents and process != parent:
            process = parents[process]
        return process == parent

    return [
        process for process, name in names.items() if name.startswith("ray::MapWorker") and descends(process)
    ]


def test_an_actor_that_is_killed_loses_nothing_and_nothing_is_twice(place, expected):
    words = command(place, "killed.json", "--engine", "ray", "--workers", "2")
    running = subprocess.Popen([sys.executable, "-m", "zoo", *words], stdout=subprocess.PIPE, text=True)
    journal, killed = place / "killed.json.unfinished", 0
    while running.poll() is None and not killed:
        # the first line is the job's, later ones are batches
        begun = journal.exists() and journal.read_bytes().count(b"\n") > 1
        for actor in actors_below(running.pid)[:1] if begun else ():
            os.kill(actor, signal.SIGKILL)
            killed += 1
        time.sleep(0.01)
    said = running.communicate(timeout=300)[0]
    assert (running.returncode, killed) == (1, 1), said  # 1 is for the damaged image
    assert (place / "killed.json").read_bytes() == expected
    assert len(json.loads((place / "killed.json.images.json").read_text())["info"]["unreadable"]) == 1


def test_a_driver_that_is_killed_goes_on_without_ray(place, expected):
    words = command(place, "driver.json", "--engine", "ray", "--workers", "1")
    running = subprocess.Popen([sys.executable, "-m", "zoo", *words], stdout=subprocess.DEVNULL)
    journal = place / "driver.json.unfinished"
    while running.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 1):
        time.sleep(0.01)
    running.kill()
    running.wait()
    assert not (place / "driver.json").exists()
    assert run_command(command(place, "driver.json", "--workers", "0")) == 1
    assert (place / "driver.json").read_bytes() == expected


def test_what_fails_in_an_actor_is_said_in_a_line(place, monkeypatch, capsys):
    monkeypatch.setattr("zoo.bulk.on_ray.weights_of", lambda detector: "0" * 64)
    assert run_command(command(place, "other.json", "--engine", "ray", "--workers", "1")) == 2
    assert "has other weights on another machine" in capsys.readouterr().err
