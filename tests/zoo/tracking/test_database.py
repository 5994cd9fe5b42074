"""MLflow's database: there whole or not at all, mended where it was half made, refused in one line otherwise."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from empty_store import empty_database, made_by_mlflow, put_empty_store

from zoo.tracking import backend
from zoo.tracking.backend import connect, experiment_id, resolve_store
from zoo.tracking.database import prepare
from zoo.tracking.logger import MLflowTracker


def make(uri):
    Path(uri.removeprefix("sqlite:///")).write_bytes(empty_database())


@pytest.fixture
def file(tmp_path):
    put_empty_store(tmp_path / "mlruns")
    return tmp_path / "mlruns" / "mlflow.db"


def change(file, *statements):
    with closing(sqlite3.connect(file)) as database, database:
        for statement in statements:
            database.execute(statement)


def new_run():
    store = resolve_store()
    client = connect(store)
    return client.create_run(experiment_id(client, store)).info.run_id


def _half(file):
    change(file, "DROP TABLE runs", "UPDATE alembic_version SET version_num = 'a8c4a736bde6'")


def _emptied(file):
    file.write_bytes(b"")


def _without_revision(file):
    change(file, "DROP TABLE alembic_version")


@pytest.mark.parametrize("spoil", [_half, _emptied, _without_revision])
def test_half_a_database_is_made_anew_and_says_so(file, caplog, spoil):
    spoil(file)
    (file.parent / "mlflow.db-journal").write_bytes(b"of the process that was killed")
    (file.parent / ".new-store-abc").mkdir()
    (file.parent / ".new-store-abc" / "mlflow.db").write_bytes(b"half")
    prepare(file, make)
    assert new_run()
    assert "half made" in caplog.text
    assert not list(file.parent.glob(".new-store-*")) + list(file.parent.glob("*-journal"))


def test_a_database_that_cannot_be_finished_is_not_there(tmp_path):
    file = tmp_path / "mlflow.db"
    (tmp_path / "mlflow.db-journal").write_bytes(b"of a database that was removed")

    def dies(uri):
        make(uri)
        assert not file.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(file, dies)
    assert [p.name for p in tmp_path.iterdir()] == ["mlflow.db-journal"]
    prepare(file, make)
    assert [p.name for p in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize(
    ("revision", "said"),
    [("a8c4a736bde6", "an older MLflow .* mlflow db upgrade sqlite:"), ("f" * 12, "a newer MLflow .* pip install")],
)  # fmt: skip
def test_a_store_of_another_version_with_runs_is_left_and_the_line_says_what_to_do(
    file, caplog, revision, said
):
    new_run()
    change(file, f"UPDATE alembic_version SET version_num = '{revision}'")
    before = file.read_bytes()
    with pytest.raises(ConnectionError, match=said):
        connect(resolve_store())
    tracker = MLflowTracker()
    tracker.log_metrics({"a": 1.0})
    assert tracker.is_offline
    assert file.read_bytes() == before


def test_an_empty_store_of_a_newer_version_is_left(file):
    change(file, f"UPDATE alembic_version SET version_num = '{'f' * 12}'")
    with pytest.raises(ConnectionError, match="newer"):
        connect(resolve_store())


def test_a_database_that_the_user_names_is_made_the_same_way(tmp_path, monkeypatch):
    place = tmp_path / "else where"
    monkeypatch.setattr(backend, "_touch", made_by_mlflow)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mine.db")
    assert new_run()
    assert [p.name for p in place.iterdir()] == ["mine.db"]
