"""`zoo runs sync`; here for registry_case, beside which it lies."""

import json

import pytest
from empty_store import put_empty_store

from zoo.cli.main import run_command
from zoo.tracking.backend import connect, resolve_store
from zoo.tracking.logger import MLflowTracker

DEAD = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _store(tmp_path):
    put_empty_store(tmp_path / "mlruns")


def test_what_waited_is_sent_once(capsys):
    tracker = MLflowTracker(tracking_uri=DEAD)
    tracker.log_metrics({"a": 1.0, "b": 2.0}, step=3)
    tracker.finalize("success")
    assert run_command(["runs", "sync", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["sent"], first["waiting"], len(first["runs"])) == (2, 0, 1)
    run = connect(resolve_store()).get_run(first["runs"][0])
    assert (run.data.metrics, run.info.status) == ({"a": 1.0, "b": 2.0}, "FINISHED")
    assert run_command(["runs", "sync"]) == 0
    assert "sent        0 records of 0 runs to sqlite:" in capsys.readouterr().out


def test_a_server_that_is_still_dead_is_one_line_and_nothing_is_lost(capsys):
    MLflowTracker(tracking_uri=DEAD).log_metrics({"a": 1.0})
    assert run_command(["runs", "sync", "--tracking-uri", DEAD]) == 2
    assert "1 still wait" in capsys.readouterr().err
    assert run_command(["runs", "sync"]) == 0


def test_without_a_spool_there_is_nothing_to_send(tmp_path, capsys):
    assert run_command(["runs", "sync", "--root", str(tmp_path / "nowhere")]) == 0
    assert not (tmp_path / "nowhere").exists()
