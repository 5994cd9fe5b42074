import errno
import functools
import json
import math
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import mlflow  # first, so that processes of the nursery have it
import pytest
import torch
from empty_store import made_by_mlflow, put_empty_store
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

from zoo.contract.labels import LabelMap
from zoo.storage.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from zoo.tracking import backend
from zoo.tracking.backend import connect, experiment_id, resolve_store
from zoo.tracking.lineage import git_state
from zoo.tracking.logger import MLflowTracker, metric_key
from zoo.tracking.spool import replay_spool

DEAD = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    put_empty_store(tmp_path / "mlruns")
    return tmp_path


def run_of(tracker):
    return connect(tracker.store).get_run(tracker.run_id)


def artifacts(tracker, folder=None):
    return {a.path for a in connect(tracker.store).list_artifacts(tracker.run_id, folder)}


def test_everything_stays_under_mlruns(place, capsys):
    tracker = MLflowTracker(run_name="first")
    (place / "a.png").write_bytes(b"x")
    tracker.log_metrics({"val/AP": 0.5}, step=3)
    tracker.log_start(recipe="a: 1\n", label_map=LabelMap.contiguous(["a"], [1]), data_digest="d" * 64)
    tracker.log_figure_file(place / "a.png")
    tracker.log_dict({"b": [1]}, "b.yaml")
    tracker.finalize("success")
    run = run_of(tracker)
    assert (run.info.status, run.info.run_name, run.data.metrics) == ("FINISHED", "first", {"val/AP": 0.5})
    assert artifacts(tracker) == {"recipe.yaml", "label_map.json", "pictures", "b.yaml"}
    assert artifacts(tracker, "pictures") == {"pictures/a.png"}
    assert run.data.tags["zoo.data_digest"] == "d" * 64
    state = git_state()
    if state is not None:
        assert run.data.tags["zoo.git_commit"] == state.commit
    assert sorted(p.name for p in place.iterdir()) == ["a.png", "mlruns"]
    assert (place / "mlruns" / "mlflow.db").is_file()
    assert not tracker.is_offline
    assert capsys.readouterr().out == ""


def test_the_address_is_read_when_the_tracker_is_made(place, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD)
    assert MLflowTracker().store.uri == DEAD
    assert MLflowTracker(tracking_uri="http://x").store.uri == "http://x"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert MLflowTracker(root=str(place / "r")).store.uri == f"sqlite:///{place}/r/mlflow.db"


def test_an_address_that_mlflow_refuses_is_an_error_at_once(place):
    with pytest.raises(ValueError, match="refuses the tracking address"):
        MLflowTracker(tracking_uri=f"file:{place}/old").log_metrics({"a": 1.0})


def interrupted(tracker, error):
    try:
        raise error
    except BaseException:
        tracker.finalize("failed")


@pytest.mark.parametrize(
    ("error", "status"),
    [(SIGTERMException(), "KILLED"), (KeyboardInterrupt(), "KILLED"), (RuntimeError(), "FAILED")],
)
def test_status_tells_interrupted_from_failed(error, status):
    tracker = MLflowTracker()
    tracker.log_metrics({"a": 1.0})
    interrupted(tracker, error)
    assert run_of(tracker).info.status == status


def test_a_resumed_run_runs_again_and_keeps_its_first_parameters():
    first = MLflowTracker()
    first.log_hyperparams({"lr": 0.1, "layers": {"dim": 8}, "rules": [1, 2]})
    interrupted(first, SIGTERMException())
    second = MLflowTracker(run_id=first.run_id)
    second.log_hyperparams({"lr": 0.2, "layers": {"dim": 8}, "new": 1})
    run = run_of(second)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"lr": "0.1", "layers/dim": "8", "new": "1"}
    assert (run.data.tags["changed/lr"], run.data.tags["zoo.attempt"]) == ("0.2", "2")
    second.finalize("success")
    assert run_of(second).info.status == "FINISHED"


def test_more_parameters_than_mlflow_takes_at_once_are_all_there():
    first = MLflowTracker()
    first.log_params({f"p{k}": k for k in range(250)})
    second = MLflowTracker(run_id=first.run_id)
    second.log_params({f"p{k}": k + 1 for k in range(250)})
    data = run_of(second).data
    assert data.params == {f"p{k}": str(k) for k in range(250)}
    assert data.tags["changed/p249"] == "250"


@pytest.mark.parametrize("place", ["/data/birds", "s3://bucket/birds"])
def test_a_data_set_that_is_logged_at_each_start_is_one_input(place):
    tracker = MLflowTracker()
    for _ in range(2):
        tracker.log_dataset("birds", "d" * 64, place, {"images": 3})
    [entry] = run_of(tracker).inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("birds", "d" * 32)
    assert entry.dataset.source_type == ("s3" if place.startswith("s3") else "local")
    assert json.loads(entry.dataset.source)["uri"] == place
    assert {tag.key: tag.value for tag in entry.tags} == {"mlflow.data.context": "training"}


def test_a_data_set_waits_for_a_dead_server_and_one_that_knows_none_stops_nothing(monkeypatch, caplog):
    tracker = MLflowTracker(tracking_uri=DEAD)
    tracker.log_dataset("birds", "d" * 64, "/data/birds", {})
    assert tracker.is_offline
    run_id = replay_spool().run_ids[0]
    client = connect(resolve_store())
    [entry] = client.get_run(run_id).inputs.dataset_inputs
    assert entry.dataset.name == "birds"

    def unknown(*arguments):
        raise mlflow.MlflowException("no such endpoint", ENDPOINT_NOT_FOUND)

    monkeypatch.setattr("mlflow.MlflowClient.log_inputs", unknown)
    old = MLflowTracker()
    old.log_dataset("birds", "d" * 64, "/data/birds", {})
    assert not old.is_offline
    assert "knows no data sets" in caplog.text


def test_steps_that_a_resume_trains_again_stand_there_once():
    first = MLflowTracker()
    for step in range(4):
        first.log_metrics({"loss": 1.0 / (step + 1), "AP": math.nan}, step)
    interrupted(first, SIGTERMException())
    second = MLflowTracker(run_id=first.run_id)
    second.run_id  # noqa: B018 - as the fit does before its first step
    for step in range(2, 6):
        second.log_metrics({"loss": 1.0 / (step + 1), "AP": math.nan}, step)
    second.log_metrics({"loss": 7.0}, 2)  # not what was there: another training, which is seen
    client = connect(second.store)
    for name, also in (("loss", [2]), ("AP", [])):
        found = [metric.step for metric in client.get_metric_history(second.run_id, name)]
        assert sorted(found) == sorted([*range(6), *also])


@pytest.mark.parametrize("gone", ["never there", "deleted"])
def test_resuming_a_run_that_is_not_in_the_store_begins_a_new_one(caplog, gone):
    lost = "0" * 32
    if gone == "deleted":
        first = MLflowTracker()
        first.log_metrics({"a": 1.0})
        lost = first.run_id
        connect(first.store).delete_run(lost)
    tracker = MLflowTracker(run_id=lost)
    tracker.log_metrics({"a": 2.0})
    assert tracker.run_id != lost
    assert run_of(tracker).data.metrics == {"a": 2.0}
    assert f"the MLflow run {lost} is not at sqlite:" in caplog.text
    assert not tracker.is_offline


def _full(*arguments, **keywords):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_records_that_can_be_kept_nowhere_wait_in_memory_with_one_warning(place, monkeypatch, caplog):
    monkeypatch.setattr("zoo.tracking.logger.connect", _full)
    monkeypatch.setattr("zoo.tracking.spool.os.fsync", _full)
    tracker = MLflowTracker()
    for step in range(3):
        tracker.log_metrics({"a": float(step)}, step=step)
    (place / "a.png").write_bytes(b"x")
    tracker.log_figure_file(place / "a.png")
    tracker.finalize("success")
    assert caplog.text.count("records cannot be kept in") == 1
    assert caplog.text.count("5 records are lost: there is still no place for them") == 1
    assert tracker.run_id is None
    assert tracker.spool_file.read_text() == ""  # no half of a record


@pytest.mark.parametrize("both", [True, False])
def test_records_that_were_held_arrive_once_when_there_is_room(place, monkeypatch, caplog, both):
    """Room for the database and the spool, or for the spool alone."""
    with monkeypatch.context() as full:
        full.setattr("zoo.tracking.logger.connect", _full)
        full.setattr("zoo.tracking.spool.os.fsync", _full)
        tracker = MLflowTracker()
        tracker.log_params({"a": 1})
        for step in range(3):
            tracker.log_metrics({"a": float(step)}, step=step)
    if both:
        tracker._rest_until = 0.0
    tracker.log_metrics({"a": 3.0}, step=3)
    if not both:
        assert tracker.is_offline
    tracker.finalize("success")
    client, run_id = connect(tracker.store), tracker.run_id
    assert [m.value for m in client.get_metric_history(run_id, "a")] == [0.0, 1.0, 2.0, 3.0]
    assert client.get_run(run_id).data.params == {"a": "1"}
    assert client.get_run(run_id).info.status == "FINISHED"
    assert "records are lost" not in caplog.text
    assert not tracker.is_offline


def test_a_file_that_finds_no_room_in_the_spool_leaves_no_half(place, monkeypatch):
    monkeypatch.setattr("zoo.tracking.logger.connect", _full)
    (place / "a.png").write_bytes(b"x")

    def half(source, target):
        Path(target).write_bytes(b"")
        _full()

    monkeypatch.setattr("zoo.tracking.spool.shutil.copy2", half)
    tracker = MLflowTracker()
    tracker.log_figure_file(place / "a.png")
    assert not [
        path for path in (place / "mlruns" / "spool").rglob("*") if path.is_file() and path.suffix == ".png"
    ]


def test_a_read_only_place_for_store_and_spool_stops_nothing(place, monkeypatch, caplog):
    monkeypatch.setattr("pathlib.Path.mkdir", _read_only)
    tracker = MLflowTracker(root=str(place / "elsewhere"))
    tracker.log_metrics({"a": 1.0})
    tracker.finalize("failed")
    assert "records are lost" in caplog.text


def _read_only(*arguments, **keywords):
    raise OSError(errno.EROFS, "Read-only file system")


def test_a_database_of_another_kind_is_a_store_that_does_not_answer(place, caplog):
    (place / "mlruns" / "mlflow.db").write_bytes(b"no database at all" * 100)
    tracker = MLflowTracker()
    tracker.log_metrics({"a": 1.0})
    assert "cannot be used" in caplog.text
    assert tracker.is_offline


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_old_and_new_artifacts_lie_in_the_store_wherever_it_is(place, monkeypatch, how):
    old = place / "old place"
    old.mkdir()
    put_empty_store(old / "mlruns")
    monkeypatch.chdir(old)
    first = MLflowTracker()
    first.log_text("a: 1", "recipe.yaml")
    first.set_tags(
        {"zoo.checkpoint": str(old / "mlruns" / "checkpoints" / "x" / "last.ckpt"), "other": str(old)}
    )
    first.finalize("success")
    new = place / "new"
    if how == "moved":
        old.rename(new)
    else:
        shutil.copytree(old, new)
        kept = sorted(old.rglob("*"))
    monkeypatch.chdir(new)
    second = MLflowTracker()
    second.log_text("b: 2", "recipe.yaml")
    second.finalize("success")
    assert sorted(old.rglob("*")) == (kept if how == "copied" else [])
    client = connect(resolve_store())
    for tracker in (first, second):
        assert [a.path for a in client.list_artifacts(tracker.run_id)] == ["recipe.yaml"]
        assert (new / "mlruns" / "artifacts" / tracker.run_id / "artifacts" / "recipe.yaml").is_file()
    tags = client.get_run(first.run_id).data.tags
    assert tags["zoo.checkpoint"] == str(new / "mlruns" / "checkpoints" / "x" / "last.ckpt")
    assert tags["other"] == str(old)


def test_experiments_that_lie_elsewhere_stay_there(place):
    client = connect(resolve_store())
    there = (place / "shared disk" / "artifacts").as_uri()
    client.create_experiment("mine", artifact_location=there)
    (place / "mlruns").rename(place / "moved")
    (place / "p").mkdir()
    (place / "moved").rename(place / "p" / "mlruns")
    assert (
        connect(resolve_store(place / "p" / "mlruns")).get_experiment_by_name("mine").artifact_location
        == there
    )


def test_names_that_mlflow_refuses_are_rewritten_and_stay_apart():
    assert metric_key("val/AP50 a-b.c_d:e") == "val/AP50 a-b.c_d:e"
    names = {metric_key(f"val/AP/{name}") for name in ("a@b", "a#b", "größe")}
    assert len(names) == 3
    tracker = MLflowTracker()
    tracker.log_metrics({"val/AP/größe": 0.5, "nan": float("nan"), "word": "x"}, step=1)
    metrics = run_of(tracker).data.metrics
    assert set(metrics) == {metric_key("val/AP/größe"), "nan"}


def test_a_dead_server_spools_quickly_and_the_replay_loses_nothing(place):
    tracker = MLflowTracker(tracking_uri=DEAD, run_name="offline", tags={"mine": "yes"})
    picture = place / "a.png"
    picture.write_bytes(b"picture")
    started = time.monotonic()
    for step in range(50):
        tracker.log_metrics({"train/loss": step / 2, "bad": float("nan")}, step=step)
    tracker.log_figure_file(picture)
    picture.unlink()
    tracker.log_text("a: 1", "recipe.yaml")
    tracker.log_params({"lr": 0.1})
    tracker.finalize("success")
    assert time.monotonic() - started < 15
    assert tracker.run_id is None
    assert tracker.is_offline

    with pytest.raises(ConnectionError, match="54 still wait"):
        replay_spool(tracking_uri=DEAD)
    report = replay_spool()  # the embedded store is there
    assert (report.sent, report.waiting) == (54, 0)
    client = connect(resolve_store())
    run = client.get_run(report.run_ids[0])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "offline")
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 50
    assert (run.data.params, run.data.tags["mine"]) == ({"lr": "0.1"}, "yes")
    assert {a.path for a in client.list_artifacts(run.info.run_id)} == {"pictures", "recipe.yaml"}
    assert not list((place / "mlruns" / "spool").glob("*.jsonl"))
    assert replay_spool().sent == 0


def test_a_server_that_dies_and_comes_back_gets_everything_into_one_run(monkeypatch):
    tracker = MLflowTracker()
    tracker.log_metrics({"a": 0.0}, step=0)
    client = tracker._client()
    with monkeypatch.context() as dead:
        dead.setattr(client, "log_batch", _raise)
        tracker.log_metrics({"a": 1.0}, step=1)
    tracker.log_metrics({"a": 2.0}, step=2)  # rests: not even tried
    assert tracker.is_offline
    tracker._rest_until = 0.0
    tracker.log_metrics({"a": 3.0}, step=3)
    tracker.finalize("success")
    assert not tracker.is_offline
    history = connect(tracker.store).get_metric_history(tracker.run_id, "a")
    assert sorted(m.step for m in history) == [0, 1, 2, 3]
    assert run_of(tracker).info.status == "FINISHED"


def _raise(*arguments, **keywords):
    raise ConnectionError("server died")


def test_a_replay_that_is_cut_goes_on_where_it_ended(monkeypatch):
    tracker = MLflowTracker(tracking_uri=DEAD)
    for step in range(4):
        tracker.log_metrics({"a": float(step)}, step=step)
    from mlflow import MlflowClient

    real, calls = MlflowClient.log_batch, []

    def dies_at_the_third(self, *arguments, **keywords):
        calls.append(1)
        if len(calls) == 3:
            raise ConnectionError("gone")
        return real(self, *arguments, **keywords)

    monkeypatch.setattr(MlflowClient, "log_batch", dies_at_the_third)
    with pytest.raises(ConnectionError, match="2 still wait"):
        replay_spool()
    report = replay_spool()
    client = connect(resolve_store())
    assert len(client.search_runs(["0", "1"])) == 1
    assert len(client.get_metric_history(report.run_ids[0], "a")) == 4


def test_a_record_cut_by_a_kill_is_not_read(place):
    tracker = MLflowTracker(tracking_uri=DEAD)
    tracker.log_metrics({"a": 1.0})
    with open(tracker.spool_file, "a") as file:
        file.write('{"kind": "metr')
    assert replay_spool().sent == 1


def test_the_spool_of_a_living_process_is_left_to_it(place):
    tracker = MLflowTracker(tracking_uri=DEAD)
    tracker.log_metrics({"a": 1.0})
    lines = tracker.spool_file.read_text().splitlines()
    header = {**json.loads(lines[0]), "pid": os.getppid()}
    tracker.spool_file.write_text("\n".join([json.dumps(header), *lines[1:]]) + "\n")
    assert replay_spool().sent == 0
    assert tracker.is_offline


def test_an_artifact_that_is_not_there_is_said_and_training_goes_on(caplog):
    tracker = MLflowTracker()
    tracker.log_artifact("none.png")
    assert "none.png does not exist" in caplog.text
    assert not tracker.is_offline


def new_run(place):
    os.chdir(place)
    store = resolve_store()
    client = connect(store)
    return client.create_run(experiment_id(client, store)).info.run_id


def new_run_by_mlflow(place):
    backend._touch = made_by_mlflow  # in a process of its own
    return new_run(place)


def test_three_processes_that_first_touch_one_database_all_log(place, nursery):
    shutil.rmtree(place / "mlruns")
    ids = set(nursery.answers([functools.partial(new_run_by_mlflow, place)] * 3))
    assert len(ids) == 3
    assert len(connect(resolve_store()).search_runs(["1"])) == 3


def test_git_state_is_none_outside_git_and_for_untracked_code(place):
    assert git_state(place) is None
    subprocess.run(["git", "init", "-q", str(place)], check=True)
    (place / "__init__.py").touch()
    assert git_state(place) is None
    commit = ["git", "-C", str(place), "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]
    subprocess.run(["git", "-C", str(place), "add", "__init__.py"], check=True)
    subprocess.run(commit, check=True)
    state = git_state(place)
    assert (len(state.commit), state.dirty) == (40, False)
    (place / "__init__.py").write_text("x = 1\n")
    assert git_state(place).dirty


class Net(LightningModule):
    """A loop that gets a SIGTERM in its third epoch."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.save_hyperparameters({"width": 1})

    def training_step(self, batch, batch_idx):
        if self.current_epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        loss = self.layer(batch).square().mean()
        self.log("train/loss", loss)
        self.log("val/AP", float(self.current_epoch), on_epoch=True, on_step=False)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("uri", [None, DEAD])
def test_a_fit_that_is_terminated_is_a_killed_run_with_a_checkpoint_that_loads(place, uri):
    tracker = MLflowTracker(tracking_uri=uri)
    checkpoint = ModelCheckpoint(dirpath=place / "ckpt", monitor="val/AP", mode="max", save_last=True)
    trainer = Trainer(
        max_epochs=5,
        accelerator="cpu",
        logger=tracker,
        callbacks=[checkpoint],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    with pytest.raises(SIGTERMException):
        trainer.fit(Net(), torch.utils.data.DataLoader(torch.ones(2, 1)))
    if uri is not None:
        assert tracker.is_offline
        report = replay_spool()
        tracker = MLflowTracker(run_id=report.run_ids[0])
        run = connect(tracker.store).get_run(report.run_ids[0])
    else:
        run = run_of(tracker)
    assert run.info.status == "KILLED"
    assert run.data.params == {"width": "1"}
    assert run.data.tags["zoo.checkpoint"] == checkpoint.best_model_path
    assert read_checkpoint(checkpoint.best_model_path)["epoch"] == 1
    history = connect(tracker.store).get_metric_history(run.info.run_id, "train/loss")
    assert [m.step for m in history][:4] == [0, 1, 2, 3]
