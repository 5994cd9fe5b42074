import json
import re
import subprocess
import sys

import pytest

import zoo
from zoo.cli.main import run_command


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


WITHOUT_TORCH = """
import sys
from zoo.cli.main import run_command
code = run_command(sys.argv[1:])
heavy = {"torch", "lightning", "torchvision", "transformers", "mlflow"} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["finetune", "--help"],
        ["list"],
        ["list", "--json"],
        ["info", "rt_detr_r18"],
        ["pull", "--help"],
    ],
)
def test_no_torch_where_none_is_needed(arguments):
    done = python(WITHOUT_TORCH, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_help_imports_nothing_that_takes_long():
    """A user types `zoo --help` and expects it at once."""
    program = (
        "import runpy, sys; sys.argv = ['zoo', '--help']\n"
        "try: runpy.run_module('zoo.cli.main', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'lightning', 'numpy', 'yaml', 'mlflow', 'PIL'}\n"
        "print({m.partition('.')[0] for m in sys.modules} & heavy)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "finetune" in done.stdout
    assert done.stdout.endswith("set()\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetne"], r"No such command 'finetne'.*finetune"),
        (["finetune", "rt_detr_tiny", "--data", "x", "--epohcs", "3"], r"--epohcs.*--epochs"),
        (
            ["list", "--a.b", "3"],
            r"--a.b: only finetune, fit, plan, validate, test, predict, manifest, data show take",
        ),
        (["info", "rt_detr_r5"], r"no model is called 'rt_detr_r5' \(did you mean 'rt_detr_r50'"),
        (["fit"], r"--config is missing.*rt_detr/r18_coco_72e"),
        (["fit", "--config", "rt_detr/r18"], r"no recipe 'rt_detr/r18'"),
        (["fit", "--ckpt-path", "last"], r"no last.ckpt in mlruns/checkpoints"),
        (["validate"], r"nothing to evaluate: zoo validate MODEL --data FOLDER"),
        (["predict", "rt_detr_r18"], r"no image is given"),
        (["predict", "gone.ckpt", "x.png"], r"x.png is neither a file nor a folder"),
        (
            ["publish", "nowhere", "--name", "a.b"],
            r"nowhere is no run folder and no checkpoint file, seen from /.*; name the run folder by its whole path",
        ),
        (
            ["publish", "0" * 32, "--name", "a.b"],
            r"there is no run 0{32} at sqlite:.*in the folder where it was",
        ),
        (
            ["pull", "rt_detr_tiny"],
            r"no published weights of it; .*: zoo finetune rt_detr_tiny --data FOLDER$",
        ),
        (["predict", "rt_detr_tiny.tiny", "x.png"], r"x.png is neither a file nor a folder"),
        (
            ["validate", "rt_detr_mini", "--data", "x"],
            r"no published weights of it; .* zoo finetune rt_detr_mini ",
        ),
        (
            ["info", "my_model.birds"],
            r"nor in the registry /.*registry, which is empty\. `zoo list` shows both",
        ),
        (
            ["alias", "rt_detr_r18:1", "champion"],
            r"comes with the package, in one version and without aliases",
        ),
        (["data", "check", "nowhere"], r"nowhere"),
        # both names of the data
        (["finetune", "rt_detr_tiny", "--data.root", "nowhere"], r"nowhere is not a folder; give the"),
        (["finetune", "rt_detr_tiny", "--data", "nowhere"], r"nowhere is not a folder; give the"),
        (["validate", "rt_detr_mini", "--data.root=x"], r"no published weights of it"),
        (["bench", "gone.ckpt", "--data.root", "x"], r"gone.ckpt"),
        (["export", "gone.ckpt", "--data.root", "x"], r"gone.ckpt"),
    ],
)
def test_errors_are_one_line_with_a_way_out(capsys, arguments, message):
    assert run_command(arguments) == 2
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0])
    assert said.out == ""


def test_an_error_lists_no_more_names_than_one_reads(tmp_path, capsys):
    for k in range(30):
        folder = tmp_path / "mlruns" / "registry" / f"birds.v{k}" / "1"
        folder.mkdir(parents=True)
        (folder / "manifest.yaml").touch()
    assert run_command(["pull", "brids.v7"]) == 2
    said = capsys.readouterr().err
    assert re.search(r"\(did you mean 'birds.v\d*' or .*\?\); .*, which holds 30 others\. ", said)
    assert len(said) < 400


@pytest.mark.parametrize("command", [["zoo"], [sys.executable, "-m", "zoo"]])
def test_the_version_is_told_in_every_way(command):
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"detr-zoo {zoo.__version__}\n"
    assert "__version__" in dir(zoo)


@pytest.mark.parametrize("words", [[], ["data"]])
def test_a_command_without_its_rest_shows_the_help(capsys, words):
    assert run_command(words) == 2
    said = capsys.readouterr()
    assert said.out.startswith("Usage: ")
    assert said.err == ""


def test_zoo_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("ZOO_DEBUG", "1")
    with pytest.raises(ValueError, match="--config is missing"):
        run_command(["fit"])


def test_list_json_is_one_document(capsys):
    assert run_command(["list", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)
    assert {"rt_detr_r18", "rt_detr_r34", "rt_detr_r50m", "rt_detr_r50", "rt_detr_r101"} <= {
        m["name"] for m in models
    }
    assert all(m["measured"] is None for m in models)


def test_info_json_has_what_is_promised(capsys):
    assert run_command(["info", "rt_detr_r50m.coco_72e", "--json"]) == 0
    model = json.loads(capsys.readouterr().out)
    assert {
        "name",
        "family",
        "params",
        "macs",
        "published",
        "measured",
        "license",
        "sources",
        "recipes",
    } <= set(model)
    assert (model["params"], model["published"]["AP"]) == (36593772, 51.3)
    assert model["published"]["decoder_layers"]["6"] == {"AP": 52.2, "AP50": 70.6}
    assert model["recipes"] == ["rt_detr/r50m_coco_72e", "rt_detr/finetune"]


def test_info_says_not_yet(capsys):
    assert run_command(["info", "rt_detr_r18"]) == 0
    assert re.search(r"measured +not yet", capsys.readouterr().out)


def test_sigterm_is_143_and_the_handler_of_before_comes_back(monkeypatch):
    import os
    import signal

    from zoo.cli.models import listing

    monkeypatch.setattr(listing, "list_models", lambda *a: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert run_command(["list"]) == 143
    assert signal.getsignal(signal.SIGTERM) is before
