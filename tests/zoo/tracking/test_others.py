"""TensorBoard and W&B beside MLflow: what they get, and that nothing they do stops a training."""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger

from zoo.runs import recipes
from zoo.runs.lightning import ZooCLI
from zoo.runs.options.chosen import Options
from zoo.tracking import others
from zoo.tracking.logger import MLflowTracker
from zoo.tracking.others import OtherTracker, other_trackers, require


class Broken(Logger):
    """Fails from a call on."""

    name = version = "broken"

    def __init__(self, error=None, wait=None):
        super().__init__()
        self.error, self.wait, self.calls = error, wait, []

    def log_metrics(self, metrics, step=None):
        self.calls.append((dict(metrics), step))
        if self.wait is not None:
            self.wait.wait(20)
        if self.error is not None:
            raise self.error

    def log_hyperparams(self, params):
        self.calls.append(params)

    def finalize(self, status):
        self.calls.append(status)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("no key\nmore"), SystemExit(1)]
)
def test_a_tracker_that_fails_is_told_once_and_asked_no_more(error, caplog):
    broken = Broken(error)
    tracker = OtherTracker("wandb", lambda: broken)
    tracker.log_hyperparams({"a": 1})
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            tracker.log_metrics({"x": 1.0}, step)
        tracker.finalize("success")
    assert broken.calls == [{"a": 1}, ({"x": 1.0}, 0)]
    (record,) = caplog.records
    assert record.getMessage().startswith("wandb failed (")
    assert "\n" not in record.getMessage()
    assert record.getMessage().endswith("gets nothing more. The training goes on, and MLflow has all of it")


def test_a_tracker_that_cannot_be_made_stops_nothing(caplog):
    def make():
        raise ImportError("half installed")

    tracker = OtherTracker("tensorboard", make)
    tracker.log_metrics({"x": 1.0}, 0)
    tracker.save()
    (record,) = caplog.records
    assert "tensorboard failed (half installed)" in record.getMessage()


def test_a_tracker_that_does_not_answer_is_waited_for_no_longer_than_its_time(monkeypatch, caplog):
    monkeypatch.setattr(others, "_PATIENCE", 0.05)
    monkeypatch.setattr(others, "_PATIENCE_AT_THE_ENDS", 0.05)
    done = threading.Event()
    tracker = OtherTracker("wandb", lambda: slow)
    slow = Broken(wait=done)
    tracker.log_metrics({"x": 1.0}, 0)
    tracker.log_metrics({"x": 2.0}, 1)
    done.set()
    assert len(slow.calls) == 1
    (record,) = caplog.records
    assert "no answer within 0.05 s" in record.getMessage()


def recipe(**tracking):
    found = recipes.read("rt_detr/tiny", {"data.root": "."})
    found["tracking"] |= tracking
    return found


def loggers(folder, monkeypatch, values):
    monkeypatch.setattr(others.importlib.util, "find_spec", lambda name: object())
    return ZooCLI(values, folder, [], parts=("trainer",)).trainer.loggers


def test_they_come_after_mlflow_which_names_their_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {}
    monkeypatch.setattr(others, "_wandb", lambda **options: given.update(options) or Broken())
    first, *rest = loggers(tmp_path, monkeypatch, recipe(also=["tensorboard", "wandb"], run_name="mine"))
    assert isinstance(first, MLflowTracker)
    assert [tracker.kind for tracker in rest] == ["tensorboard", "wandb"]
    rest[1].log_hyperparams({})
    assert given == {
        "name": "mine", "id": first.local_id, "project": "rt_detr", "save_dir": tmp_path, "resume": "allow",
        "log_model": False,
    }  # fmt: skip


def test_they_are_there_without_mlflow_and_beside_another_logger(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alone = recipe(also=["tensorboard"])
    alone["trainer"]["logger"] = False
    assert [type(one) for one in loggers(tmp_path, monkeypatch, alone)] == [OtherTracker]
    beside = recipe(also=["tensorboard"])
    beside["trainer"]["logger"] = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": "x"},
    }
    assert [type(one) for one in loggers(tmp_path, monkeypatch, beside)] == [CSVLogger, OtherTracker]


@pytest.mark.parametrize("kinds", [["comet"], ["wandb", "wandb"], ["tensorboard", "comet"], [""]])
def test_what_is_none(kinds):
    with pytest.raises(
        ValueError, match=r"tracking.also is \[.*it has some of tensorboard, wandb, each once, beside"
    ):
        require(kinds)


def test_a_package_that_is_not_there_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setattr(others.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed: pip install 'detr-zoo\[wandb\]'$"):
        Options(logger="wandb").write(recipe(), ())


def test_the_option_stands_in_the_recipe(monkeypatch):
    monkeypatch.setattr(others.importlib.util, "find_spec", lambda name: object())
    values = recipe()
    Options(logger="tensorboard, wandb").write(values, ())
    assert values["tracking"] == {"experiment": "rt_detr", "also": ["tensorboard", "wandb"]}


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="the extra tensorboard is not installed"
)
def test_tensorboard_has_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tracker,) = other_trackers(["tensorboard"], tmp_path, "shapes", None, None)
    tracker.log_hyperparams(recipes.flat(recipe()))
    for step in (1, 2):
        tracker.log_metrics({"val/AP": step / 10}, step)
    tracker.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, round(e.value, 3)) for e in events.Scalars("val/AP")] == [(1, 0.1), (2, 0.2)]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="the extra wandb is not installed")
def test_wandb_has_the_numbers_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tracker,) = other_trackers(["wandb"], tmp_path, "shapes", "mine", "abc123")
    tracker.log_hyperparams(recipes.flat(recipe()))
    tracker.log_metrics({"val/AP": 0.25}, 7)
    tracker.finalize("success")
    assert not tracker._failed
    (file,) = Path(tmp_path, "wandb").glob("offline-run-*/run-abc123.wandb")
    until = time.monotonic() + 30  # another process of W&B writes it
    while b"val/AP" not in (content := file.read_bytes()) and time.monotonic() < until:
        time.sleep(0.1)
    for text in (b"val/AP", b"trainer/global_step", b"data.batch_size", b"shapes", b"mine"):
        assert text in content, text
