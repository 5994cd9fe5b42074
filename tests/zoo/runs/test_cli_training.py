import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import zoo.runs.report
from datamodules.shapes import generate_shapes
from zoo.cli.main import run_command
from zoo.contract.labels import LabelMap
from zoo.runs import recipes
from zoo.runs.console import Console, format_table
from zoo.runs.demo import empty_folder
from zoo.runs.fit import find_checkpoint
from zoo.runs.init_from import read_weights, start_from
from zoo.runs.schema import InitFrom
from zoo.runs.signals import Terminated
from zoo.runs.train import ended_as_asked, said_again
from zoo.storage.checkpoint_io import read_checkpoint
from zoo.tracking.backend import connect, resolve_store
from zoo.training.module import build_module
from zoo.training.saving import CheckpointSaver

SECONDS = 120


def tiny_module(num_classes: int = 4):
    recipe = recipes.load(recipes.resolve("rt_detr/tiny"))
    recipe["model"]["init_args"]["num_classes"] = num_classes
    return build_module(recipe["model"])


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "zoo.cli.main", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_sigterm_saves_exits_143_and_the_run_goes_on(tmp_path, capsys):
    shapes = generate_shapes(tmp_path / "shapes", 32, 4, 0, 64)
    process = start(
        tmp_path, "finetune", "rt_detr_tiny", "--data", str(shapes), "--image-size", "64", "--epochs", "400",
        "--output", "run",
    )  # fmt: skip
    until = time.monotonic() + SECONDS
    while not (tmp_path / "run" / "last.ckpt").is_file():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < until
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 143, said
    assert "go on with: zoo fit --ckpt-path" in said
    step = read_checkpoint(tmp_path / "run" / "last.ckpt")["zoo"]["step"]
    assert step > 0
    resumed = ["fit", "--ckpt-path", "last", "--output", "run", "--trainer.max_steps", str(step + 2)]
    assert run_command([*resumed, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    first_run = json.loads((tmp_path / "run" / "run.json").read_text())["mlflow_run"]
    assert document["run"] == first_run
    assert read_checkpoint(tmp_path / "run" / "last.ckpt")["zoo"]["step"] == step + 2


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_fine_tuning_that_is_ended_in_its_report_is_finished_by_the_line_it_says(
    tmp_path, capsys, monkeypatch, number, code
):
    shapes = generate_shapes(tmp_path / "shapes", 8, 4, 0, 64)
    write = zoo.runs.report.write_curves

    def cut(*arguments):
        os.kill(os.getpid(), number)
        return write(*arguments)

    monkeypatch.setattr("zoo.runs.report.write_curves", cut)
    run = tmp_path / "my run"
    arguments = ["finetune", "rt_detr_tiny", "--data", str(shapes), "--image-size", "64", "--max-steps", "2"]
    assert run_command([*arguments, "--weights", "random", "--output", str(run)]) == code
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    client, run_id = connect(resolve_store()), json.loads((run / "run.json").read_text())["mlflow_run"]
    assert client.get_run(run_id).info.status == "KILLED"
    assert not (run / "metrics.json").exists()
    line = re.search("go on with: zoo (.*)", said.out)[1]
    monkeypatch.setattr("zoo.runs.report.write_curves", write)
    assert run_command(shlex.split(line)) == 0
    said = capsys.readouterr().out
    assert "nothing is left to train" in said
    assert "registered  rt_detr_tiny.shapes:1" in said
    assert f"zoo predict rt_detr_tiny.shapes:1 {shapes}" in said
    assert client.get_run(run_id).info.status == "FINISHED"
    assert len(client.search_runs([client.get_run(run_id).info.experiment_id])) == 1


GLOO = (
    "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:5"
)


@pytest.mark.parametrize(
    "error", [RuntimeError(f"{GLOO}. More."), torch.distributed.DistBackendError("NCCL")]
)
def test_a_process_that_is_gone_ends_the_others_by_a_line_that_says_how_to_go_on(tmp_path, error):
    saver, trainer = CheckpointSaver(), SimpleNamespace(loggers=[])
    saver.folder = tmp_path / "my run"
    saver.folder.mkdir()
    with (
        pytest.raises(ConnectionError, match=r"another process of this training has ended") as told,
        ended_as_asked(trainer, saver, Console()),
    ):
        raise error
    assert "go on with" not in str(told.value)
    (saver.folder / "last.ckpt").write_bytes(b"")
    with (
        pytest.raises(ConnectionError, match=rf"go on with: zoo fit --ckpt-path '{saver.folder}/last.ckpt'$"),
        ended_as_asked(trainer, saver, Console()),
    ):
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Terminated()])
def test_a_resume_that_is_ended_before_its_first_step_says_how_to_go_on(tmp_path, capsys, error):
    for resume in (None, tmp_path / "my run" / "last.ckpt"):
        with pytest.raises(type(error)), said_again(resume, Console(), True):
            raise error
    assert capsys.readouterr().out == (
        f"interrupted; go on with: zoo fit --ckpt-path '{tmp_path}/my run/last.ckpt' --trust-recipe\n"
    )


def test_ctrl_c_that_was_told_is_not_told_again(tmp_path, monkeypatch, capsys):
    saver, trainer = CheckpointSaver(), SimpleNamespace(loggers=[])
    saver.folder = tmp_path

    def train(**_):
        with ended_as_asked(trainer, saver, Console()):
            raise KeyboardInterrupt

    monkeypatch.setattr("zoo.runs.demo.demo", train)
    assert run_command(["demo"]) == 130
    shown = capsys.readouterr()
    assert (shown.out.count("interrupted"), shown.err) == (1, "")

    def show(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr("zoo.runs.demo.demo", show)
    assert run_command(["demo"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_at_any_end_of_a_training_says_how_to_go_on(tmp_path, number):
    """Also where what was written would have been told to be written by another command."""
    saver, trainer = CheckpointSaver(), SimpleNamespace(loggers=[])
    saver.folder = tmp_path / "my run"
    saver.folder.mkdir()
    error = OSError(number, f"{os.strerror(number)}; run the same command again", "registry")
    for there in (False, True):
        if there:
            (saver.folder / "last.ckpt").write_bytes(b"")
        with (
            pytest.raises(OSError, match=os.strerror(number)) as told,
            ended_as_asked(trainer, saver, Console()),
        ):
            raise error
        assert told.value.filename == "registry"
        assert told.value.strerror.endswith(f"go on with: {saver.resume_command()}") is there
        assert ("same command" in told.value.strerror) is not there
    with pytest.raises(OSError, match="go on with") as again, ended_as_asked(trainer, saver, Console()):
        raise told.value
    assert again.value is told.value
    with pytest.raises(FileNotFoundError, match=r"^x$"), ended_as_asked(trainer, saver, Console()):
        raise FileNotFoundError("x")


def test_other_errors_of_a_training_stay_what_they_are(tmp_path):
    with (
        pytest.raises(RuntimeError, match="shapes do not fit"),
        ended_as_asked(SimpleNamespace(loggers=[]), CheckpointSaver(), Console()),
    ):
        raise RuntimeError("shapes do not fit")


@pytest.mark.slow
def test_two_processes_train_one_run(tmp_path):
    shapes = generate_shapes(tmp_path / "shapes", 32, 6, 0, 64)
    process = start(
        tmp_path, "finetune", "rt_detr_tiny", "--data", str(shapes), "--image-size", "64", "--max-steps", "5",
        "--devices", "2", "--trainer.accelerator", "cpu", "--output", "run", "--json",
    )  # fmt: skip
    said, _ = process.communicate(timeout=2 * SECONDS)
    assert process.returncode == 0, said
    assert said.count("training images as the network sees them") == 1
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["val"]["images"] == 6


def test_lightning_warns_of_nothing_in_a_training(tmp_path, recwarn):
    shapes = generate_shapes(tmp_path / "shapes", 8, 4, 0, 64)
    recipe = zoo.recipe("rt_detr/tiny", {
        "data.root": str(shapes), "data.batch_size": 4, "model.schedule.global_batch_size": 4, "trainer.max_steps": 1,
        "trainer.max_epochs": -1, "trainer.accelerator": "cpu", "trainer.devices": 1,
    })  # fmt: skip
    trainer = recipe.trainer(tmp_path / "run", logger=False)
    trainer.fit(recipe.module(), recipe.datamodule())
    assert trainer.global_step == 1
    assert [str(w.message) for w in recwarn if "lightning" in w.filename] == []


def test_start_from_says_what_it_did(tmp_path, capsys):
    from safetensors.torch import save_file

    source, target = tiny_module(4), tiny_module(2)
    save_file(source.network.state_dict(), tmp_path / "w.safetensors")
    labels = LabelMap.contiguous(["a", "b"], [0, 1])
    start_from(InitFrom(source=str(tmp_path / "w.safetensors"), head="new"), target, labels, None, Console())
    said = capsys.readouterr().out
    assert "copied" in said
    assert "re-initialised" in said
    assert "decoder.enc_score_head.weight" in said
    mine, theirs = target.network.state_dict(), source.network.state_dict()
    assert torch.equal(mine["backbone.conv1.0.0.weight"], theirs["backbone.conv1.0.0.weight"])


def test_a_head_that_does_not_fit_is_refused_with_a_way_out(tmp_path):
    from safetensors.torch import save_file

    save_file(tiny_module(4).network.state_dict(), tmp_path / "w.safetensors")
    labels = LabelMap.contiguous(["a", "b"], [0, 1])
    with pytest.raises(ValueError, match="head: new or by_class_name"):
        start_from(InitFrom(source=str(tmp_path / "w.safetensors")), tiny_module(2), labels, None, Console())


@pytest.mark.parametrize("source", ["gone.ckpt", "some/where", "gone.safetensors"])
def test_weights_that_are_not_there(source):
    with pytest.raises(FileNotFoundError, match="to take weights from"):
        read_weights(source, tiny_module(), None)


def test_an_official_checkpoint_is_converted(tmp_path):
    torch.save({"model": {"something.else": torch.zeros(1)}}, tmp_path / "official.pth")
    with pytest.raises(ValueError, match=r"is no checkpoint of this architecture: 'something.else'"):
        read_weights(str(tmp_path / "official.pth"), tiny_module(), None)


def test_the_checkpoint_to_resume(tmp_path):
    (tmp_path / "run").mkdir()
    last = tmp_path / "run" / "last.ckpt"
    last.write_bytes(b"")
    assert find_checkpoint(None, None) == (None, None)
    assert find_checkpoint("last", tmp_path / "run") == (last, tmp_path / "run")
    assert find_checkpoint(str(last), None) == (last, tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"--ckpt-path gone.ckpt does not exist"):
        find_checkpoint("gone.ckpt", None)


def test_fit_looks_a_model_up_in_the_registry_that_is_named(tmp_path, capsys):
    shapes = generate_shapes(tmp_path / "shapes", 8, 4, seed=0, size=64)
    small = ["--model.num_classes", "4", "--data.batch_size", "4", "--model.schedule.global_batch_size", "4"]
    start = [
        "fit",
        "--config",
        "rt_detr/tiny",
        "--data",
        str(shapes),
        "--init_from.source",
        "mine.birds",
        *small,
    ]
    assert run_command([*start, "--registry", "elsewhere"]) == 2
    assert f"nor in the registry {Path('elsewhere').absolute()}, which is empty" in capsys.readouterr().err


def test_the_demo_empties_only_its_own_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="is not empty and not an earlier demo"):
        empty_folder(tmp_path / "mine")
    demo = empty_folder(tmp_path / "demo")
    (demo / "old.png").write_bytes(b"")
    assert not (empty_folder(tmp_path / "demo") / "old.png").exists()


def test_tables_align_numbers_to_the_right():
    table = format_table(("name", "n", "AP"), [("a", 5, 0.5), ("long", 12, None)])
    assert table.splitlines() == ["name   n     AP", "----  --  -----", "a      5  0.500", "long  12      -"]


def test_other_ranks_are_silent(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    console = Console(as_json=True)
    console.say("hello")
    console.result({})
    assert capsys.readouterr() == ("", "")


def test_a_missing_data_folder_is_named_before_any_weights_are_fetched(capsys):
    assert run_command(["fit", "--config", "rt_detr/r18_coco_72e", "--data.root", "not_there"]) == 2
    assert "not_there is not a folder" in capsys.readouterr().err
