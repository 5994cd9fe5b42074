import errno
import logging
import zipfile

import pytest
import torch
from empty_store import put_empty_store
from registry_case import LABELS, tiny_checkpoint, tiny_module

import zoo
from zoo.cli.main import run_command
from zoo.registry.publish import publish
from zoo.registry.pull import pull
from zoo.registry.store import LocalRegistry
from zoo.tracking.backend import connect, experiment_id, resolve_store

NAME = "rt_detr_tiny.shapes"
COMMIT = "1" * 40


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a checkpoint of step 20; returns its path."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "ZOO_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    put_empty_store(tmp_path / "mlruns")
    tiny_checkpoint(tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt"


@pytest.fixture
def client(place):
    return connect(resolve_store())


def make_run(client, checkpoint, commit=COMMIT):
    """A run with AP .3 at step 10, .5 at 20 and .4 at 30."""
    tags = {"zoo.checkpoint": str(checkpoint), "zoo.git_dirty": "true"} | (
        {"zoo.git_commit": commit} if commit else {}
    )
    run = client.create_run(experiment_id(client, resolve_store()), tags=tags)
    for step, value in ((10, 0.3), (20, 0.5), (30, 0.4)):
        client.log_metric(run.info.run_id, "val/AP", value, step=step)
        client.log_metric(run.info.run_id, "val/APs", -1.0, step=step)
    client.log_text(run.info.run_id, "a: 1\n", "recipe.yaml")
    return run.info.run_id


def test_a_run_becomes_a_version_with_the_score_of_its_checkpoint(place, client):
    run_id = make_run(client, place)
    published = publish(run_id, NAME, aliases=["champion"], parent="rt_detr_r18.coco_72e")
    measured = published.manifest.measured
    assert (measured.AP, measured.APs, measured.run, measured.git_commit) == (0.5, -1.0, run_id, COMMIT)
    assert published.manifest.lineage.dirty is True
    assert published.manifest.data.digest == "d" * 64
    assert {f.path for f in published.manifest.files} == {"model.safetensors", "recipe.yaml"}
    assert pull(f"{NAME}@champion").manifest == published.manifest
    assert published.note == ""


def test_a_full_disk_leaves_what_was_published_and_says_so(place, monkeypatch):
    publish(place, NAME)

    def full(state, target):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    with monkeypatch.context() as patched:
        patched.setattr("zoo.registry.publish.save_weights", full)
        with pytest.raises(
            OSError, match="nothing was published and what was there is whole: make room"
        ) as told:
            publish(place, NAME)
    store = LocalRegistry()
    assert told.value.filename == str(store.root)
    assert [p.name for p in store.root.iterdir()] == [NAME]
    assert publish(place, NAME).manifest.version == 2


def test_weights_that_are_published_once_stay_one_version_also_in_mlflow(place, client, tmp_path):
    first = publish(place, NAME)
    client.delete_model_version(NAME, "1")  # as if a kill had come before it
    again = [publish(place, NAME, once=True, aliases=["champion"]) for _ in range(2)]
    assert [(p.manifest, p.is_new, p.mlflow_version) for p in again] == [(first.manifest, False, 2)] * 2
    assert LocalRegistry().aliases(NAME) == {"champion": 1}
    assert int(client.get_model_version_by_alias(NAME, "champion").version) == 2
    other = torch.load(place, weights_only=True)
    for value in other["state_dict"].values():
        value += 1
    torch.save(other, tmp_path / "other.ckpt")
    assert publish(tmp_path / "other.ckpt", NAME, once=True).reference == f"{NAME}:2"
    assert publish(place, NAME).reference == f"{NAME}:3"


def test_every_alias_of_a_publication_is_mlflows_too(place, client):
    published = zoo.publish(place, NAME, aliases=["champion", "candidate"])
    for alias in ("champion", "candidate"):
        assert LocalRegistry().aliases(NAME)[alias] == published.manifest.version
        assert int(client.get_model_version_by_alias(NAME, alias).version) == published.mlflow_version
    with pytest.raises(ValueError, match="1st"):
        zoo.publish(place, f"{NAME}s", aliases=["champion", "1st"])
    assert LocalRegistry().names() == [NAME]  # a wrong one is told before anything is published


def test_an_alias_is_given_to_a_version_that_is_there_also_in_mlflow(place, client, capsys):
    for _ in range(3):
        publish(place, NAME)
    client.delete_model_version(NAME, "1")
    publish(place, NAME, once=True)  # MLflow's version 4 is version 1
    for version, known in ((2, 2), (1, 4)):
        assert run_command(["alias", f"{NAME}:{version}", "champion"]) == 0
        assert LocalRegistry().aliases(NAME) == {"champion": version}
        assert int(client.get_model_version_by_alias(NAME, "champion").version) == known
    assert f"{NAME}@champion is {NAME}:1  (was version 2)" in capsys.readouterr().out
    assert run_command(["alias", NAME, "newest"]) == 0
    assert run_command(["alias", f"{NAME}:7", "champion"]) == 2
    assert "has no version 7; it has [1, 2, 3]" in capsys.readouterr().err
    assert run_command(["alias", NAME, "v3"]) == 2
    assert run_command(["list"]) == 0
    assert "@champion (version 1), @newest\n" in capsys.readouterr().out
    client.delete_model_version(NAME, "2")
    assert run_command(["alias", f"{NAME}:2", "champion"]) == 0
    assert "has no such version, and so no alias" in capsys.readouterr().out


def test_what_is_released_is_the_average_and_loads_as_such(place):
    publish(place, NAME)
    expected = tiny_module().ema.network.state_dict()
    module = zoo.load(NAME).module
    assert module.label_map == LABELS
    for state in (module.evaluation_network.state_dict(), module.network.state_dict()):
        assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_raw_weights_are_released_where_there_is_no_average(place, tmp_path):
    checkpoint = torch.load(place)
    checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith("ema.")}
    checkpoint["zoo"]["model"]["init_args"]["ema"] = None
    torch.save(checkpoint, place)
    publish(place, NAME)
    raw = tiny_module().network.state_dict()
    state = zoo.load(NAME).module.evaluation_network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in raw.items())


def test_a_checkpoint_without_a_run_is_a_version_of_mlflow_too(place, tmp_path):
    assert publish(place, NAME).mlflow_version == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.ckpt", "mlruns"]


def test_params_and_macs_are_counted(place):
    manifest = publish(place, NAME).manifest
    assert manifest.params == sum(p.numel() for p in tiny_module().network.parameters())
    assert manifest.macs > 0
    assert "64x64" in manifest.counted
    assert "e9 that the authors' network does besides" in manifest.counted


def test_mlflow_holds_version_alias_and_logged_model_and_no_pickle(place, client, tmp_path):
    run_id = make_run(client, place)
    published = [publish(run_id, NAME, aliases=["champion"]) for _ in range(2)]
    assert [p.mlflow_version for p in published] == [1, 2]
    version = client.get_model_version_by_alias(NAME, "champion")
    assert (int(version.version), version.run_id, version.tags["zoo.version"]) == (2, run_id, "2")
    model = client.get_logged_model(version.tags["zoo.logged_model"])
    assert (model.name, model.source_run_id) == ("rt_detr_tiny__shapes", run_id)
    assert version.source == model.artifact_location
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.ckpt", "mlruns"]
    files = [p for p in (tmp_path / "mlruns" / "artifacts").rglob("*") if p.is_file()]
    assert {p.suffix for p in files} <= {".safetensors", ".yaml", ".json", ".txt", ""}
    assert [p.name for p in files if not p.suffix] == ["MLmodel", "MLmodel"]
    assert not any(zipfile.is_zipfile(p) for p in files)


def test_measured_json_of_the_run_wins_and_carries_interval_and_protocol(place, client):
    run_id = make_run(client, place)
    scores = {"AP": 0.45, "interval": {"AP": [0.4, 0.5]}, "split": "test", "protocol": {"evaluator": "x"}}
    client.log_dict(run_id, {**scores, "step": 20}, "measured.json")
    measured = publish(run_id, NAME).manifest.measured
    assert (measured.AP, measured.interval, measured.split) == (0.45, {"AP": (0.4, 0.5)}, "test")
    client.log_dict(run_id, {**scores, "step": 30}, "measured.json")
    assert publish(run_id, NAME).manifest.measured.AP == 0.5  # measured on another checkpoint


def test_nothing_to_score_is_no_score_and_stops_no_publishing(place, client):
    run_id = make_run(client, place)
    scores = {"AP": 0.4, "APs": None, "interval": {"AP": [0.3, 0.5], "APs": [None, None]}, "split": "val"}
    client.log_dict(run_id, scores, "measured.json")
    assert publish(run_id, NAME).manifest.measured.interval["APs"] == (None, None)
    client.log_dict(run_id, {**scores, "AP": None}, "measured.json")
    assert publish(run_id, NAME).manifest.measured is None


def test_measured_without_run_or_commit_is_refused(place, client, caplog):
    scores = {"AP": 0.5, "dataset": "shapes", "split": "val"}
    with pytest.raises(ValueError, match="no run"):
        publish(place, NAME, measured=scores)
    run_id = make_run(client, place, commit=None)
    with pytest.raises(ValueError, match="without a git commit"):
        publish(place, NAME, run_id=run_id, measured=scores)
    assert LocalRegistry().names() == []
    with caplog.at_level(logging.WARNING):
        assert publish(run_id, NAME).manifest.measured is None
    assert "without a git commit" in caplog.text


def test_a_typo_in_measured_scores_is_an_error(place, client):
    with pytest.raises(ValueError, match="AP_50"):
        publish(
            place, NAME, run_id=make_run(client, place), measured={"AP": 0.5, "split": "val", "AP_50": 0.9}
        )


@pytest.mark.parametrize(
    ("source", "name", "error", "says"),
    [
        ("nothing.ckpt", NAME, FileNotFoundError, "no run folder and no checkpoint file"),
        ("f" * 32, NAME, ValueError, "there is no run"),
        ("best.ckpt", "rt_detr_r18.coco_72e", ValueError, "built-in"),
        ("best.ckpt", "Bad Name", ValueError, "no model name"),
        ("plain.ckpt", NAME, ValueError, "no `zoo` block"),
        ("before_data.ckpt", NAME, ValueError, "no label map"),
    ],
)
def test_what_cannot_be_published_says_why(place, tmp_path, source, name, error, says):
    checkpoint = torch.load(place)
    checkpoint["zoo"]["label_map"] = None
    torch.save(checkpoint, tmp_path / "before_data.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "plain.ckpt")
    with pytest.raises(error, match=says):
        publish(source, name)
    assert LocalRegistry().names() == []


def test_a_run_whose_checkpoint_is_gone_says_so(place, client):
    run_id = make_run(client, place)
    place.unlink()
    with pytest.raises(FileNotFoundError, match=r"best\.ckpt is gone"):
        publish(run_id, NAME)


def test_weights_of_another_network_are_not_published(place):
    checkpoint = torch.load(place)
    checkpoint["zoo"]["model"]["init_args"]["decoder"]["num_layers"] = 2
    checkpoint["zoo"]["model"]["init_args"]["decoder"]["eval_layers"] = 2
    torch.save(checkpoint, place)
    with pytest.raises(ValueError, match="another network"):
        publish(place, NAME)


def test_a_dead_server_does_not_stop_publishing_a_checkpoint(place, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    published = publish(place, NAME, run_id="0" * 32, measured={"AP": 0.5, "split": "val"})
    assert published.mlflow_version is None
    assert "not in MLflow" in published.note
    assert published.manifest.measured is None
    assert pull(NAME).manifest == published.manifest
