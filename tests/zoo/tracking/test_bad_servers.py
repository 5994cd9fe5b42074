"""Servers that hang, drip, die and talk nonsense: no step waits, and nothing is lost or logged twice."""

import time

import mlflow  # noqa: F401  imported before a call is waited for
import pytest
from empty_store import put_empty_store
from tracking_server import BadServer

from zoo.storage.deadline import Deadline
from zoo.tracking import logger
from zoo.tracking.backend import connect, resolve_store
from zoo.tracking.logger import MLflowTracker
from zoo.tracking.spool import Spool, has_run, replay_spool

NONSENSE = [b"", b"{}", b"[]", b"null", b"<html>hi</html>", b"\xff", b'{"run": 3}',
            b'{"experiment": {"experiment_id": 4}}',
            b'{"experiment":{"experiment_id":"1","lifecycle_stage":"active"},"run":{"info":{"run_id":"a"}}}',
            ]  # fmt: skip
SHORT = 0.3


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    monkeypatch.setattr(logger, "_PATIENCE", SHORT)
    monkeypatch.setattr(logger, "_PATIENCE_FOR_FILES", SHORT)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # of a socket; that of a call is ours


@pytest.fixture
def server():
    made = []

    def start(mode="good", port=0):
        made.append(BadServer(mode, port))
        return made[-1]

    yield start
    for one in made:
        if not one.ended.is_set():
            one.kill()


def again(server, old):
    """The server after a restart, with what it had."""
    if not old.ended.is_set():
        old.kill()
    new = server("good", old.port)
    new.runs, new.records = old.runs, old.records
    return new


def the_process_ends(tracker):
    """`zoo runs sync` leaves the records of a process that still runs to it; so no call of it is going on."""
    if tracker._deadline._late is not None:
        tracker._deadline._late.join()


def log_steps(tracker, steps):
    for step in steps:
        tracker.log_metrics({"a": step / 2}, step=step)


def assert_once(there, steps, status="FINISHED"):
    assert [run["info"]["status"] for run in there.runs.values()] == [status]
    assert there.logged(*there.runs) == {(step, "a"): step / 2 for step in steps}


@pytest.mark.parametrize("mode", ["hang", "late", "drip", "cut", *NONSENSE])
def test_a_bad_server_stops_nothing_and_one_that_is_mended_gets_everything_once(server, mode):
    bad = server(mode)
    tracker = MLflowTracker(tracking_uri=bad.uri)
    log_steps(tracker, range(5))
    assert tracker.is_offline
    bad.mode = "good"
    tracker.finalize("success")  # sends it, unless a call is still waiting
    there = again(server, bad)
    the_process_ends(tracker)
    assert replay_spool(tracking_uri=there.uri).waiting == 0
    assert_once(there, range(5))
    assert not list((tracker.spool_file.parent).iterdir())


def test_an_answer_about_another_run_is_not_that_of_mlflow(server):
    client = connect(resolve_store(tracking_uri=server(NONSENSE[-1]).uri))
    with pytest.raises(ConnectionError, match=r"not as MLflow does: asked for run f+, it gave 'a'"):
        has_run(client, "f" * 32)


def test_of_a_replay_that_ends_early_only_the_rest_waits(server):
    gone = server()
    gone.kill()
    tracker = MLflowTracker(tracking_uri=gone.uri)
    log_steps(tracker, range(5))
    tracker.finalize("success")
    there, calls = again(server, gone), []

    def in_time(call):
        calls.append(call)
        if len(calls) > 3:  # the run and two records
            raise ConnectionError("gone again")
        return call()

    store = resolve_store(tracking_uri=there.uri)
    spool = Spool(store.root, tracker.local_id)
    waited = spool.waiting()
    with pytest.raises(ConnectionError, match="gone again"):
        spool.replay(connect(store), store, in_time)
    assert spool.waiting() == waited - 2
    assert replay_spool(tracking_uri=there.uri).sent == waited - 2
    assert_once(there, range(5))


@pytest.mark.parametrize("at", ["runs/create", "log-batch", "runs/update"])
def test_what_was_done_but_not_confirmed_is_not_done_again(server, at):
    slow = server("late")
    slow.at = at
    tracker = MLflowTracker(tracking_uri=slow.uri)
    log_steps(tracker, range(3))
    tracker.finalize("success")
    assert tracker.is_offline
    there = again(server, slow)
    the_process_ends(tracker)
    replay_spool(tracking_uri=there.uri)
    assert_once(there, range(3))


def test_a_server_that_was_started_again_gets_the_rest_at_the_end(server):
    first = server()
    tracker = MLflowTracker(tracking_uri=first.uri)
    log_steps(tracker, range(2))
    first.kill()
    log_steps(tracker, range(2, 4))
    there = again(server, first)
    tracker.finalize("success")
    assert not tracker.is_offline
    assert_once(there, range(4))


def test_a_server_that_comes_back_without_its_runs_gets_a_new_one(server):
    first = server()
    tracker = MLflowTracker(tracking_uri=first.uri)
    log_steps(tracker, range(2))
    old = tracker.run_id
    first.runs.clear()
    first.records.clear()
    log_steps(tracker, range(2, 4))
    tracker.finalize("success")
    assert tracker.run_id != old
    assert_once(first, range(2, 4))


def test_a_run_whose_server_was_never_there_is_one_run_after_its_resume(server, tmp_path):
    first = server()
    first.kill()
    tracker = MLflowTracker(tracking_uri=first.uri)
    log_steps(tracker, range(2))
    tracker.finalize("failed")
    there = again(server, first)
    assert tracker.local_id
    second = MLflowTracker(tracking_uri=there.uri, local_id=tracker.local_id)
    log_steps(second, range(2, 4))
    second.finalize("success")
    replay_spool(tracking_uri=there.uri)
    assert_once(there, range(4))


def test_a_later_tag_is_not_replaced_by_an_earlier_one_that_waited(server):
    first = server()
    tracker = MLflowTracker(tracking_uri=first.uri)
    log_steps(tracker, [0])
    first.mode = "cut"
    tracker.set_tags({"zoo.checkpoint": "old"})
    first.mode, tracker._rest_until = "good", 0.0
    tracker.set_tags({"zoo.checkpoint": "new"})
    log_steps(tracker, [1])
    tracker.finalize("success")
    assert first.tags == ["old", "new"]
    assert_once(first, range(2))


def test_the_status_of_the_last_attempt_stays(server):
    server_ = server()
    tracker = MLflowTracker(tracking_uri=server_.uri)
    log_steps(tracker, range(1))
    server_.kill()
    attempts = [tracker, MLflowTracker(tracking_uri=server_.uri, run_id=tracker.run_id)]
    for number, (attempt, status) in enumerate(zip(attempts, ["failed", "success"], strict=True), 1):
        log_steps(attempt, [number])
        attempt.finalize(status)
    spools = sorted(tracker.spool_file.parent.glob("*.jsonl"), key=lambda p: p.stat().st_mtime)
    # whatever their names
    spools[0].rename(spools[0].with_name("z.jsonl"))
    there = again(server, server_)
    replay_spool(tracking_uri=there.uri)
    assert_once(there, range(3))


def test_a_replay_that_was_killed_before_it_noted_what_it_sent_adds_nothing(server, tmp_path):
    gone = server()
    gone.kill()
    put_empty_store(tmp_path / "mlruns")
    tracker = MLflowTracker(tracking_uri=gone.uri)
    for step in range(3):
        tracker.log_metrics({"a": step / 2, "n": float("nan")}, step=step)
    tracker.log_params({"lr": 1})
    tracker.finalize("success")
    kept = tracker.spool_file.read_bytes()
    runs = set()
    for _ in range(2):  # the second time with the file as it was before the first
        tracker.spool_file.write_bytes(kept)
        runs |= set(replay_spool().run_ids)
    assert len(runs) == 1
    client = connect(resolve_store())
    for name in "an":
        assert [m.step for m in client.get_metric_history(*runs, name)] == [0, 1, 2]


def test_a_late_call_is_given_up_and_no_other_begins_beside_it():
    deadline, log = Deadline(), []

    def slow():
        time.sleep(0.2)
        log.append("slow")

    with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
        deadline.call(slow, 0.05)
    with pytest.raises(TimeoutError, match="earlier call"):
        deadline.call(lambda: log.append("beside"), 1)
    time.sleep(0.3)
    deadline.call(lambda: log.append("after"), 1)
    assert log == ["slow", "after"]
    with pytest.raises(KeyError):
        deadline.call(lambda: {}["x"], 1)
