"""A training in workers of Ray Train; with Ray where it is installed."""

import importlib.util
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from tiny_training import COMMAND, assert_equal, folder_of, said, start, wait_for_checkpoint, weights

from zoo.cli.main import run_command
from zoo.runs.on_ray import fit_on_ray

HERE = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
installed = importlib.util.find_spec("ray") is not None


def test_without_the_extra_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run_command(["fit", "--config", "rt_detr/tiny", "--output", "run", "--ray-workers", "2"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: a training by Ray needs Ray Train (")
    assert said.endswith("pip install 'detr-zoo[ray]'\n")
    assert said.count("\n") == 1


@pytest.mark.skipif(not installed, reason="Ray is not installed: pip install 'detr-zoo[ray]'")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"output": None}, "needs --output FOLDER"),
        ({"resume": "some.ckpt"}, "goes on with the run in --output alone"),
        ({"recipe": "rt_detr/tinny"}, "did you mean 'rt_detr/tiny'"),
        ({}, "not_there is not a folder"),
    ],
)
def test_what_is_wrong_is_told_before_ray_is_started(tmp_path, options, says):
    given = {"recipe": "rt_detr/tiny", "output": tmp_path, "overrides": {"data.root": "not_there"}} | options
    with pytest.raises((ValueError, OSError), match=says):
        fit_on_ray(given.pop("recipe"), workers=2, **given)


def workers_below(pid):
    """Processes of Ray's training workers that descend from `pid`."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        parents[int(stat.parent.name)] = (int(text.rpartition(")")[2].split()[1]), text)
    found = []
    for process, (_, text) in parents.items():
        above = process
        while above in parents and above != pid:
            above = parents[above][0]
        if above == pid and "RayTrain" in text:
            found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not installed, reason="Ray is not installed: pip install 'detr-zoo[ray]'")
def test_ray_starts_all_workers_again_when_one_is_killed_and_trains_the_same_weights(tmp_path):
    folder_of(tmp_path)
    said(start(tmp_path, *COMMAND, "--trainer.devices", "2", "--output", "plain"))
    by_ray = start(tmp_path, *COMMAND, "--output", "by_ray", "--ray-workers", "2", **HERE)
    wait_for_checkpoint(tmp_path / "by_ray" / "last.ckpt", by_ray)
    os.kill(workers_below(by_ray.pid)[-1], signal.SIGKILL)
    text = said(by_ray)
    assert len(re.findall(r"^\S*\(RayTrainWorker.*\) ?\S* ?resume ", text, flags=re.MULTILINE)) == 1, text
    assert_equal(weights(tmp_path / "plain"), weights(tmp_path / "by_ray"))
    assert (tmp_path / "by_ray" / "metrics.json").is_file()
