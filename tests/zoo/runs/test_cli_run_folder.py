"""An output folder is one run's, a resume finds its own, and names are refused before anything is trained."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zoo.cli.main import run_command
from zoo.registry.names import check_name
from zoo.runs.console import Console
from zoo.runs.ending import noted_registration
from zoo.runs.finetune import Choices, Start, model_name
from zoo.runs.fit import find_checkpoint, fit, recipe_beside, told_of_newest
from zoo.runs.run_folder import RUNS, claimed, document_of, new_folder, note, noted, refuse_used
from zoo.runs.train import Registration, noted_ids, whole, write_recipe
from zoo.storage.durable import temporary_of

NO_IDS = {"run_id": None, "local_id": None}


def run_in(folder: Path, name: str = "last.ckpt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    (folder / "recipe.yaml").write_text("")
    return folder / name


def test_runs_of_one_second_get_folders_of_their_own(monkeypatch):
    monkeypatch.setattr("zoo.runs.run_folder.time.strftime", lambda form: "now")
    folders = [new_folder("tiny") for _ in range(3)]
    assert folders == [RUNS / "tiny-now", RUNS / "tiny-now-2", RUNS / "tiny-now-3"]
    assert all(folder.is_dir() for folder in folders)


def test_processes_that_lightning_starts_get_the_folder_of_rank_zero(monkeypatch):
    monkeypatch.setenv("ZOO_RUN_FOLDER", "/the/one")
    assert new_folder("tiny") == Path("/the/one")


def test_processes_that_a_launcher_starts_make_none(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert not new_folder("tiny").exists()


def test_the_folder_of_another_run_is_refused_with_the_way_to_go_on(tmp_path, capsys):
    used = tmp_path / "my run"
    run_in(used)
    before = sorted(used.iterdir())
    for command in (
        ["finetune", "rt_detr_tiny", "--data", "no data", "--weights", "random"],
        ["fit", "--config", "rt_detr/tiny", "--data.root", "no data"],
    ):
        assert run_command([*command, "--output", str(used)]) == 2
        said = capsys.readouterr().err
        assert said == (
            f"error: --output {used} holds a run already; name another folder, go on with it: "
            f"zoo fit --ckpt-path last --output '{used}'\n"
        )
    assert sorted(used.iterdir()) == before


def test_the_way_on_from_a_trusted_recipe_trusts_it_too(tmp_path):
    (tmp_path / "last.ckpt").write_text("")
    with pytest.raises(FileExistsError, match=rf"--ckpt-path last --output {tmp_path} --trust-recipe$"):
        refuse_used(tmp_path, trusted=True)


@pytest.mark.parametrize("there", [[], ["notes.txt"], ["recipe.yaml", "run.json"]])
def test_a_folder_where_nothing_was_trained_may_be_used(tmp_path, there):
    for name in there:
        (tmp_path / name).write_text("")
    refuse_used(tmp_path)
    refuse_used(tmp_path / "new")


@pytest.mark.parametrize("there", ["best-step=2.ckpt", "metrics.json"])
def test_what_a_run_left_without_a_last_checkpoint_is_kept_too(tmp_path, there):
    (tmp_path / there).write_text("")
    with pytest.raises(FileExistsError, match="holds a run already; name another folder, or remove it"):
        refuse_used(tmp_path)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(FileExistsError, match="is a file; name a folder"):
        refuse_used(tmp_path / "out")


def test_two_processes_never_train_into_one_folder_and_a_dead_one_holds_nothing(tmp_path):
    script = (
        "import sys; from pathlib import Path; from zoo.runs.run_folder import claimed\n"
        "with claimed(Path(sys.argv[1])): print('mine', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "mine\n"
        with (
            pytest.raises(FileExistsError, match="another run is writing there now"),
            claimed(tmp_path / "out"),
        ):
            pass
        other.kill()
    with claimed(tmp_path / "out"):
        assert new_folder("x") == tmp_path / "out"  # in the processes that are started from here
    assert new_folder("x") != tmp_path / "out"


def test_what_dead_processes_left_half_written_is_removed_before_anything_else(tmp_path):
    """Also where their number is now this one's, as in a container that was started again."""
    old = temporary_of(tmp_path / "last.ckpt")
    elsewhere = old.with_name(f".last.ckpt.another.1.{'0' * 8}.tmp")
    for file in (old, elsewhere):
        file.write_text("half")
    with claimed(tmp_path):
        assert not old.exists()
    assert elsewhere.exists()  # it may be written at this moment, on a machine that knows no locks


def checkpoint(path: Path, step: int) -> bytes:
    torch.save({"zoo": {"step": step}, "weights": torch.arange(100.0)}, path)
    return path.read_bytes()


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:-50], lambda b: b[:700] + b"??" + b[702:], None]
)
def test_the_checkpoint_before_a_damaged_one_is_taken_and_nothing_is_thrown_away(tmp_path, capsys, damage):
    last, before = tmp_path / "last.ckpt", tmp_path / "last.ckpt.before"
    content = checkpoint(last, 8)
    assert whole(last, tmp_path, Console()) == last
    assert capsys.readouterr().out == f"resume      {last}: step 8\n"
    if damage is None:
        last.unlink()
    else:
        last.write_bytes(damage(content))
        with pytest.raises(ValueError, match=r"last\.ckpt.*damaged"):
            whole(last, tmp_path, Console())
    checkpoint(before, 7)
    assert find_checkpoint("last", tmp_path)[0] == find_checkpoint(str(last), None)[0] == last
    assert whole(last, tmp_path / "another", Console()) == before
    assert last.exists() == (damage is not None)  # only the run itself changes its folder
    assert whole(last, tmp_path, Console()) == before
    said = capsys.readouterr().out.splitlines()
    assert said[0] == said[2]
    assert said[0].startswith("damaged     ")
    assert "the one before it is taken" in said[0]
    assert said[1] == f"resume      {before}: step 7"
    left = {"last.ckpt.before", *(["last.ckpt.damaged"] if damage else [])}
    assert {path.name for path in tmp_path.iterdir()} == left
    assert whole(last, tmp_path, Console()) == before  # in the processes of other devices


def test_a_start_that_saved_nothing_is_begun_again_as_the_same_run(tmp_path):
    recipe = {"model": {"x": 1}}
    write_recipe(recipe, tmp_path)
    note(tmp_path, mlflow_run="abc", register=None)
    note(tmp_path, local_id="def")
    assert noted_ids(recipe, tmp_path, None) == {"run_id": "abc", "local_id": "def"}
    assert noted_ids({"model": {"x": 2}}, tmp_path, None) == NO_IDS
    assert noted(tmp_path) == {"mlflow_run": "abc", "register": None, "local_id": "def"}


def test_a_resume_ends_as_the_fine_tuning_would_have(tmp_path):
    assert noted_registration(tmp_path) is None
    ending = Registration("rt_detr_tiny.mine", None, "rt_detr_tiny:1")
    note(tmp_path, register=ending._asdict())
    assert noted_registration(tmp_path) == ending
    for broken in (None, "x", {}, {"name": "a"}):
        note(tmp_path, register=broken)
        assert noted_registration(tmp_path) is None


def test_a_resume_beside_the_checkpoint_in_a_new_folder_or_in_that_of_another_run(tmp_path):
    mine, other = run_in(tmp_path / "mine"), run_in(tmp_path / "other", "best-step=1.ckpt").parent
    assert find_checkpoint(str(mine), None) == (mine, mine.parent)
    assert find_checkpoint(str(mine.parent), None) == (mine, mine.parent)
    assert find_checkpoint(str(mine), tmp_path / "new") == (mine, tmp_path / "new")
    assert recipe_beside(mine, tmp_path / "new") == mine.parent / "recipe.yaml"
    with pytest.raises(FileExistsError, match=r"holds another run than .*last\.ckpt"):
        find_checkpoint(str(mine), other)
    with pytest.raises(FileNotFoundError, match=r"has no last\.ckpt"):
        find_checkpoint(str(other), None)
    (mine.parent / "recipe.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="name the recipe of the checkpoint with --config"):
        recipe_beside(mine, mine.parent)


def test_weights_alone_are_called_that(tmp_path, capsys):
    (tmp_path / "my weights.safetensors").write_bytes(b"")
    assert run_command(["fit", "--ckpt-path", str(tmp_path / "my weights.safetensors")]) == 2
    said = capsys.readouterr().err
    assert "holds weights alone, no training to go on with" in said
    assert f"zoo finetune --weights '{tmp_path}/my weights.safetensors'" in said


@pytest.mark.parametrize("text", [None, "", "{}", "[1]", "{", '"a"'])
def test_a_run_file_that_says_nothing_is_no_run(tmp_path, text):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    assert noted_ids({}, tmp_path, tmp_path / "last.ckpt") == NO_IDS
    (tmp_path / "run.json").write_text('{"mlflow_run": "abc"}')
    assert noted_ids({}, tmp_path, tmp_path / "last.ckpt") == NO_IDS | {"run_id": "abc"}


def test_a_moved_run_has_its_checkpoint_beside_its_metrics(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"checkpoint": "/old/best-step=2.ckpt", "run": "abc"}))
    assert document_of(tmp_path)["checkpoint"] == "/old/best-step=2.ckpt"
    (tmp_path / "best-step=2.ckpt").write_bytes(b"")
    assert document_of(tmp_path) == {"checkpoint": str(tmp_path / "best-step=2.ckpt"), "run": "abc"}
    with pytest.raises(FileNotFoundError, match=r"has no metrics\.json"):
        document_of(tmp_path / "none")


def chosen(data: str, family: str = "rt_detr_tiny", **choices) -> str:
    return model_name(Choices(model=family, data=Path(data), **choices), Start({}, family, None))


@pytest.mark.parametrize(
    "data", ["plants", "p" * 300, "ein Ordner mit Ümläuten " * 9, "a-" * 60, "...", "_" * 200]
)
def test_a_default_name_is_one_that_the_registry_takes(data):
    assert check_name(chosen(data)).startswith("rt_detr_tiny.")
    assert chosen("plants") == "rt_detr_tiny.plants"


def test_a_folder_called_like_published_weights_makes_no_name_of_theirs():
    assert chosen("coco_72e", family="rt_detr_r18") == "rt_detr_r18.my_coco_72e"


@pytest.mark.parametrize("name", ["My Model", "rt_detr_r18", "rt_detr_r18.coco_72e", "x" * 200, "a.b.c", ""])
def test_a_name_that_the_registry_refuses_is_refused_first(name, capsys):
    """Before the data are looked at: there are none."""
    command = ["finetune", "rt_detr_tiny", "--data", "nowhere", "--weights", "random", "--name", name]
    assert run_command(command) == 2
    assert "model name" in (said := capsys.readouterr().err) or "name of a built-in model" in said


def a_run(name, *, age, scores_age=None):
    folder = Path("mlruns/checkpoints", name)
    folder.mkdir(parents=True)
    for file, seconds in (("last.ckpt", age), ("metrics.json", scores_age)):
        if seconds is not None:
            (folder / file).write_bytes(b"x")
            os.utime(folder / file, (1e9 - seconds, 1e9 - seconds))
    return folder


def test_last_says_which_run_it_takes_and_which_others_are_not_finished():
    a_run("cut", age=50)
    gone_on = a_run("gone-on", age=20, scores_age=30)  # finished, and then trained for longer
    assert told_of_newest(gone_on, changed=False) == (
        "mlruns/checkpoints/gone-on, the newest of 2 in mlruns/checkpoints; a run with an --output of its own: zoo fit "
        "--ckpt-path last --output FOLDER; not finished there: cut"
    )


def test_last_rewrites_no_finished_run_unless_it_is_to_train_for_longer():
    a_run("cut", age=50)
    done = a_run("done it", age=20, scores_age=10)
    before = (done / "metrics.json").stat().st_mtime_ns
    with pytest.raises(ValueError, match=r"is finished, done it; .*'mlruns/checkpoints/done it' .*: cut$"):
        fit(resume="last")
    assert (done / "metrics.json").stat().st_mtime_ns == before
    assert told_of_newest(done, changed=True).startswith("mlruns/checkpoints/done it, the newest of 2")
