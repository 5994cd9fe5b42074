"""An output folder is one run's, a resume finds its own, and names are refused before anything is trained."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.cli.main import run_command
from zoo.registry.names import check_name
from zoo.runs.finetune import Choices, Start, model_name
from zoo.runs.fit import find_checkpoint, recipe_beside
from zoo.runs.run_folder import RUNS, claimed, document_of, new_folder, refuse_used
from zoo.runs.train import run_of


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
    assert run_of(tmp_path) is None
    (tmp_path / "run.json").write_text('{"mlflow_run": "abc"}')
    assert run_of(tmp_path) == "abc"


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
