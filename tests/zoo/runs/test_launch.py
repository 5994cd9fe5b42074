"""Processes that torchrun, srun or a person started: what the trainer is told, how they meet, who says what."""

import datetime
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
import torch.distributed as dist
from lightning.fabric.strategies.launchers import subprocess_script
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException

from zoo.cli import main
from zoo.runs import ending, launch, recipes, report, schema
from zoo.runs.console import Silent, is_rank_zero, rank_before, repeats_another
from zoo.runs.finetune import finetune
from zoo.runs.fit import find_checkpoint
from zoo.runs.launch import Launch, launched, limit_waiting, lost, of_another_process, trainer_arguments
from zoo.runs.lightning import ZooCLI
from zoo.runs.rendezvous import fresh_part
from zoo.training.saving import CheckpointSaver

OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "TORCHELASTIC_RUN_ID")
SECOND = datetime.timedelta(seconds=1)


@pytest.fixture
def started(monkeypatch):
    """Sets the variables of a launcher instead of all that are there."""
    for name in [*OF_LAUNCHERS, *(name for name in os.environ if name.startswith("SLURM_"))]:
        monkeypatch.delenv(name, raising=False)

    def start(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return start


def torchrun(rank=0, world=2, here=2):
    return {
        "TORCHELASTIC_RUN_ID": "none", "RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank % here,
        "LOCAL_WORLD_SIZE": here,
    }  # fmt: skip


def srun(rank=0, tasks=4, nodes=2):
    return {
        "SLURM_NTASKS": tasks, "SLURM_NNODES": nodes, "SLURM_PROCID": rank, "SLURM_LOCALID": rank % (tasks // nodes),
        "SLURM_NTASKS_PER_NODE": tasks // nodes, "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": 7, "SLURM_STEP_ID": 0,
    }  # fmt: skip


def test_who_started_the_processes(started):
    assert launched() is None
    assert trainer_arguments({"devices": 2}) == {}
    started(**torchrun(world=6, here=2))
    assert launched() == Launch("torchrun", 2, 3)


def test_srun_starts_processes_but_an_interactive_shell_does_not(started):
    started(**srun(tasks=8, nodes=2))
    assert launched() == Launch("srun", 4, 2)
    told = trainer_arguments({"devices": "auto"})
    assert (told["devices"], told["num_nodes"]) == (4, 2)
    (environment,) = told["plugins"]
    assert isinstance(environment, SLURMEnvironment)
    assert not environment.auto_requeue
    started(SLURM_JOB_NAME="interactive")
    assert launched() is None


@pytest.mark.parametrize(
    ("variable", "says"),
    [("SLURM_STEP_ID", "start it with srun"), ("SLURM_NTASKS_PER_NODE", "--ntasks-per-node N")],
)
def test_a_job_of_slurm_that_starts_no_ranks_is_told_how(started, monkeypatch, variable, says):
    started(**srun())
    monkeypatch.delenv(variable)
    with pytest.raises(ValueError, match=f"this job of SLURM has 4 tasks.*{says}"):
        launched()


@pytest.mark.parametrize("devices", ["auto", 2, "2", -1, [0, 1], "0,1"])
def test_devices_and_nodes_follow_from_what_was_started(started, devices):
    started(**torchrun(world=4))
    told = trainer_arguments({"devices": devices, "num_nodes": 1})
    assert told["num_nodes"] == 2
    assert told.get("devices", devices) == (
        2 if isinstance(devices, (int, str)) and devices != "0,1" else devices
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"devices": 3}, "trainer.devices is 3, and torchrun started 2 on this machine: leave it out"),
        ({"devices": 1}, "trainer.devices is 1"),
        ({"devices": [0]}, "trainer.devices is "),
        ({"num_nodes": 2}, "trainer.num_nodes is 2, and torchrun started processes on 1: leave it out"),
    ],
)
def test_a_recipe_that_names_other_numbers_is_refused(started, options, says):
    started(**torchrun())
    with pytest.raises(ValueError, match=says.replace(".", r"\.")):
        trainer_arguments(options)


def test_machines_with_different_numbers_of_processes_are_refused(started):
    started(**torchrun(world=3, here=2))
    with pytest.raises(ValueError, match="torchrun started 3 processes, 2 of them on this machine"):
        launched()


@pytest.mark.parametrize(
    ("variables", "zero", "before", "repeats"),
    [
        ({}, True, "", False),
        (torchrun(0), True, "", False),
        (torchrun(1), False, "rank 1: ", True),
        (torchrun(2, world=4), False, "rank 2: ", False),  # the first of another machine
        (srun(0), True, "", False),
        (srun(2), False, "rank 2: ", False),
        (srun(3), False, "rank 3: ", True),
        ({"LOCAL_RANK": 1}, False, "rank 1: ", True),  # Lightning's own
        ({"NODE_RANK": 1}, False, "rank 1: ", False),  # of a person, on another machine
    ],
)
def test_one_process_speaks_for_those_that_do_the_same(started, variables, zero, before, repeats):
    started(**variables)
    assert (is_rank_zero(), rank_before(), repeats_another()) == (zero, before, repeats)


@pytest.mark.parametrize(
    ("variables", "code", "said"),
    [
        ({}, 2, "error: no\n"),
        ({}, 143, "error: no\n"),
        (torchrun(2, world=4), 2, "rank 2: error: no\n"),
        (torchrun(2, world=4), 143, ""),
    ],
)
def test_other_ranks_tell_of_errors_of_their_own_only(started, capsys, variables, code, said):
    started(**variables)
    assert main._fail("no", code) == code
    assert capsys.readouterr().err == said


def test_a_rank_whose_error_the_first_has_too_waits_for_its_end_and_speaks_if_there_is_none(
    started, capsys, monkeypatch
):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    started(**torchrun(1))
    assert main._fail("no", 2) == 2
    assert waited == [main._FIRST_SECONDS]
    assert capsys.readouterr().err == "rank 1: error: no\n"


# -- how they meet ------------------------------------------------------------------------------------


@pytest.fixture
def store():
    return dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=10 * SECOND)


def parts(store, ranks, world, delays):
    """{rank: what it has written into its part of the store, as the others read it}."""
    found, errors = {}, []

    def join(rank):
        time.sleep(delays[rank])
        try:
            mine = dist.TCPStore("127.0.0.1", store.port, is_master=False, timeout=10 * SECOND)
            part = fresh_part(mine, rank, world, 5 * SECOND)
            part.set(str(rank), "here")
            found[rank] = [part.get(str(other)).decode() for other in ranks]
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    return found


@pytest.mark.parametrize("delays", [(0, 0.2, 0.1), (0.3, 0, 0), (0, 0, 0)])
def test_ranks_meet_again_in_a_store_that_others_have_written_into(store, delays):
    """As after a restart: whoever comes first must not read what those before have written."""
    first = parts(store, range(3), 3, delays)
    second = parts(store, range(3), 3, delays[::-1])
    assert first == second == dict.fromkeys(range(3), ["here"] * 3)
    names = {key.split("/")[2] for key in store.list_keys() if key.startswith("zoo/heard/")}
    assert len(names) == 2


def test_a_rank_that_does_not_come_is_told(store):
    with pytest.raises(dist.DistStoreError, match=r"2 of 3 processes did not come within 0\.1 s"):
        fresh_part(store, 0, 3, SECOND / 10)
    with pytest.raises(dist.DistStoreError) as error:
        fresh_part(store, 1, 2, SECOND / 10)
    assert of_another_process(error.value)


def test_the_line_about_a_lost_process():
    error = RuntimeError(
        "[/__w/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [10.0.0.2]:53. This is more."
    )
    assert of_another_process(error)
    assert lost(error, "zoo fit --ckpt-path x") == (
        "another process of this training has ended or cannot be reached, and so this one ends (Connection closed by "
        "peer [10.0.0.2]:53); go on with: zoo fit --ckpt-path x"
    )
    assert "go on" not in lost(error, "")
    assert not of_another_process(RuntimeError("shape mismatch"))


# -- the recipe's block -------------------------------------------------------------------------------


def complete():
    return recipes.read("rt_detr/tiny", {"distributed.timeout_minutes": 3})


def test_the_longest_wait_is_a_key_that_no_recipe_needs():
    assert "distributed" not in recipes.read("rt_detr/tiny")
    assert complete()["distributed"] == {"timeout_minutes": 3}
    schema.check(recipes.read("rt_detr/tiny"))
    schema.check(complete())
    with pytest.raises(ValueError, match=r"distributed\.timeout is no key of a recipe; did you mean"):
        schema.check(recipes.read("rt_detr/tiny", {"distributed.timeout": 3}))


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_a_wait_of_no_length_is_refused(minutes):
    with pytest.raises(ValueError, match=r"distributed\.timeout_minutes is .*; it must be above 0"):
        schema.Distributed(timeout_minutes=minutes)


def test_the_wait_is_that_of_the_process_group():
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    limit_waiting(trainer, 0.5)
    seen = []
    trainer.strategy.set_world_ranks = lambda: None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "init_process_group", lambda *a, **options: seen.append(options["timeout"]))
        trainer.strategy.setup_distributed()
    assert seen == [datetime.timedelta(seconds=30)]


# -- going on -----------------------------------------------------------------------------------------


def test_auto_goes_on_or_begins(tmp_path):
    assert find_checkpoint("auto", tmp_path / "new") == (None, tmp_path / "new")
    last = tmp_path / "last.ckpt"
    last.write_bytes(b"")
    assert find_checkpoint("auto", tmp_path) == (last, tmp_path)
    last.rename(tmp_path / "last.ckpt.before")  # a kill between two renames
    assert find_checkpoint("auto", tmp_path) == (last, tmp_path)
    with pytest.raises(ValueError, match="--ckpt-path auto needs --output FOLDER"):
        find_checkpoint("auto", None)


def test_a_fine_tuning_goes_on_with_its_own_run_alone(tmp_path):
    with pytest.raises(ValueError, match=r"zoo fit --ckpt-path some\.ckpt"):
        finetune("rt_detr_tiny", tmp_path, resume="some.ckpt", output=tmp_path)


class Meeting:
    """As much of a trainer as a saver asks when the ranks have met; rank zero goes on."""

    global_rank = 1

    def __init__(self, ckpt_path, of_zero):
        self.ckpt_path, self.answers = ckpt_path, iter(["/shared/run", of_zero])
        self.strategy = self

    def broadcast(self, value):
        return next(self.answers)


def test_a_machine_that_does_not_see_the_run_folder_is_told():
    CheckpointSaver().setup(Meeting("last.ckpt", True), None, "fit")
    with pytest.raises(
        ValueError, match="rank zero goes on with a run in /shared/run, and rank 1 sees another"
    ):
        CheckpointSaver().setup(Meeting(None, True), None, "fit")
    with pytest.raises(ValueError, match="rank zero begins a new run"):
        CheckpointSaver().setup(Meeting("last.ckpt", False), None, "fit")


def test_processes_of_torchrun_alone_meet_in_its_store(started, monkeypatch):
    met = []
    monkeypatch.setattr(launch.rendezvous, "connect", lambda *arguments: met.append(arguments))
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    launch.connect(trainer, 3)
    started(TORCHELASTIC_USE_AGENT_STORE="True")
    launch.connect(trainer, 3)
    assert met == [("gloo", 3)]
    assert not torch.distributed.is_initialized()


@pytest.fixture
def ended(monkeypatch):
    """What Lightning's observer ends when a child has failed: a child by its number, this process by exit code."""
    killed = []
    failed, living = SimpleNamespace(returncode=-15, pid=1), SimpleNamespace(returncode=None, pid=2)
    for process in (failed, living):
        process.poll = lambda: None
        process.kill = lambda pid=process.pid: killed.append(pid)
    monkeypatch.setattr(os, "_exit", lambda code: killed.append(f"exit {code}"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(launch.ChildObserver, "saver", CheckpointSaver())
    started = []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(thread))
    subprocess_script._launch_process_observer([failed, living])
    return started[0], killed


@pytest.mark.parametrize(
    ("connected", "says"), [(True, "code -15)"), (False, "code -15 before it was connected)")]
)
def test_a_process_that_fails_ends_the_others_with_a_line(ended, monkeypatch, capsys, connected, says):
    """Lightning alone would kill the first without a word."""
    monkeypatch.setattr(dist, "is_initialized", lambda: connected)
    observer, killed = ended
    assert observer._run()
    assert killed == [1, 2, "exit 2"]
    said = capsys.readouterr().err
    assert said.startswith("error: another process of this training has ended")
    assert said.endswith(f"(it ended with {says}; start it again as before\n")
    assert said.count("\n") == 1


def test_the_line_about_a_process_that_fails_says_how_to_go_on(ended, capsys, tmp_path):
    observer, _ = ended
    observer.saver.folder = tmp_path
    (tmp_path / "last.ckpt").touch()
    observer._run()
    assert capsys.readouterr().err.endswith(f"; go on with: zoo fit --ckpt-path {tmp_path / 'last.ckpt'}\n")


def test_a_process_that_the_others_need_no_longer_ends_none_of_them(ended, monkeypatch):
    observer, killed = ended
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(time, "sleep", lambda seconds: setattr(observer.saver.stop, "apart", True))
    assert observer._run()  # while it waits for the connection to tell
    assert observer._run()
    assert not killed


def test_lightning_has_no_handler_of_signals_and_gives_back_those_that_it_found(tmp_path):
    """Its own communicates inside the handler, which the other processes never answer."""
    trainer = ZooCLI(
        recipes.read("rt_detr/tiny"), tmp_path, [], with_tracker=False, parts=("trainer",)
    ).trainer
    assert launch.ChildObserver.saver in trainer.callbacks
    before = signal.getsignal(signal.SIGTERM)
    trainer._signal_connector.register_signal_handlers()
    assert signal.getsignal(signal.SIGTERM) is before
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        trainer._signal_connector.teardown()
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, before)


def finished(monkeypatch, saver, signal_after=None):
    """`finish` of a training whose processes have scored; this one is sent a signal afterwards."""
    run = MagicMock(**{"trainer.checkpoint_callback": saver, "stop": saver.stop, "folder": Path("run")})

    def hardware(trainer):
        saver.stop.signal = signal_after
        return {}

    monkeypatch.setattr(report, "score_split", lambda *arguments: {})
    monkeypatch.setattr(report, "hardware", hardware)
    return ending.finish(run, None, Silent())


def test_a_signal_while_they_score_ends_all_processes(monkeypatch):
    saver = CheckpointSaver()
    monkeypatch.setattr(
        saver, "_agreed", lambda trainer, stop, due: (True, False)
    )  # another has been sent one
    with pytest.raises(SIGTERMException):
        finished(monkeypatch, saver)
    assert saver.stop.apart


def test_a_process_whose_work_is_done_ends_well_whatever_it_is_sent(started, monkeypatch):
    """Its end by a signal would end the first, which still writes."""
    started(**torchrun(1))
    saver = CheckpointSaver()
    monkeypatch.setattr(saver, "_agreed", lambda trainer, stop, due: (stop, due))
    assert finished(monkeypatch, saver, signal.SIGTERM).folder == Path("run")
    assert saver.stop.apart
