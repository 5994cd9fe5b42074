"""Repositories of the hub become models, through its own client: commits, tokens that are never shown, errors."""

import json
import logging
import sys

import huggingface_hub
import pytest
from hub_models import changed, saved
from hub_server import HubServer
from safetensors.torch import load_file, save

from zoo.cli.main import run_command
from zoo.registry.hugging_face.hub import parse_hub_reference
from zoo.registry.pull import pull
from zoo.storage.fetch import DownloadError

REPO = "someone/My-Model_v2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    saved("rt_detr", folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "train.py").write_text("raise SystemExit('this is run')")
    (folder / "pytorch_model.bin").write_bytes(b"never fetched")
    return folder


@pytest.fixture
def hub(monkeypatch, folder, tmp_path_factory):
    stored = tmp_path_factory.mktemp("home") / "token"  # of `hf auth login`, which is not asked
    stored.write_text("hf_stored")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(stored))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with HubServer() as server:
        server.add_folder(REPO, folder)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


def test_without_transformers_it_is_said_what_brings_it(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert run_command(["pull", f"hf:{folder}"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert said.endswith("pip install 'detr-zoo[export]'\n")


def test_a_repository_becomes_a_model_of_its_commit(hub, tmp_path):
    pulled = pull(f"hf:{REPO}", registry=tmp_path)
    commit = hub.commit_of(REPO)
    assert pulled.manifest.name == "rt_detr.my-model-v2"
    assert pulled.manifest.lineage.parent == f"hf:{REPO}@{commit}"
    assert pulled.manifest.license == "MIT"
    fetched = {path.rpartition("/")[2] for method, path, _ in hub.requests if "/resolve/" in path}
    assert fetched == {"config.json", "preprocessor_config.json", "README.md", "model.safetensors"}
    assert all(f"/{commit}/" in path for _, path, _ in hub.requests if "/resolve/" in path)
    assert {asked for _, _, asked in hub.requests} == {None}
    asked = len(hub.requests)
    assert pull(f"hf:{REPO}@main", registry=tmp_path).downloaded is False
    assert len(hub.requests) == asked + 1  # the commit, and no file
    assert pull(f"hf:{REPO}@{commit}", registry=tmp_path).manifest.version == 1
    assert len(hub.requests) == asked + 1  # nothing: a commit never becomes another
    assert not list((tmp_path / ".downloads").glob("*@*"))


def test_another_commit_is_another_version_and_another_repository_another_name(hub, folder, tmp_path):
    pull(f"hf:{REPO}", registry=tmp_path, name="mine")
    config = folder.parent / "config.json"
    config.write_bytes(hub.repos[REPO]["config.json"])
    changed(config, id2label={"0": "a", "1": "b", "2": "c"})
    hub.repos[REPO]["config.json"] = config.read_bytes()
    # the same weights and recipe, and other classes
    second = pull(f"hf:{REPO}", registry=tmp_path, name="mine")
    assert second.manifest.labels().names == ("a", "b", "c")
    assert (second.manifest.version, second.manifest.lineage.parent) == (
        2,
        f"hf:{REPO}@{hub.commit_of(REPO)}",
    )
    hub.add_folder("other/repo", folder)
    with pytest.raises(ValueError, match=rf"mine is in the registry and comes from hf:{REPO}@.*--name"):
        pull("hf:other/repo", registry=tmp_path, name="mine")


def test_a_folder_replaces_the_network(hub, folder, tmp_path):
    found = pull(f"hf:{REPO}", registry=tmp_path, source=str(folder)).manifest
    assert found.lineage.parent == f"hf:{REPO}"
    assert hub.requests == []


def test_a_private_repository_needs_the_token_of_the_environment(hub, tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level(logging.DEBUG)
    hub.private.add(REPO)
    assert run_command(["pull", f"hf:{REPO}", "--registry", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "has no such repository, or it is private and HF_TOKEN is not set" in told
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_secret")
    assert run_command(["pull", f"hf:{REPO}", "--registry", str(tmp_path)]) == 2
    told += capsys.readouterr().err
    assert "the token in HF_TOKEN may not see it" in told
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert run_command(["pull", f"hf:{REPO}", "--registry", str(tmp_path)]) == 0
    out, error = capsys.readouterr()
    written = "".join(path.read_text() for path in tmp_path.rglob("*.yaml"))
    for text in (told, out, error, caplog.text, written):
        assert "hf_wrong_secret" not in text
        assert "hf_right" not in text
    assert ("GET", f"/{REPO}/resolve/{hub.commit_of(REPO)}/config.json", "Bearer hf_right") in hub.requests


@pytest.mark.parametrize("token", ["hf_a\nhf_b", "hf_ä", "two words"])
def test_a_token_that_is_none_is_not_shown(hub, tmp_path, monkeypatch, capsys, token):
    monkeypatch.setenv("HF_TOKEN", token)
    assert run_command(["pull", f"hf:{REPO}", "--registry", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told == "error: HF_TOKEN holds characters that no token has; set it to the token alone\n"


def test_a_server_that_repeats_the_token_does_not_make_it_seen(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.refuse["/api/models/"] = (400, {"error": "no such thing: Bearer hf_secret"})
    with pytest.raises(DownloadError, match=r"answered 400: .*Bearer HF_TOKEN") as error:
        pull(f"hf:{REPO}", registry=tmp_path)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__


def test_what_is_not_there_is_named(hub, tmp_path, monkeypatch):
    with pytest.raises(DownloadError, match=rf"hf:{REPO}@gone: the repository has no such revision"):
        pull(f"hf:{REPO}@gone", registry=tmp_path)
    with pytest.raises(DownloadError, match=r"hf:no/repo: .* has no such repository"):
        pull("hf:no/repo", registry=tmp_path)
    hub.refuse["/api/models/"] = (503, {"error": "later"})
    with pytest.raises(DownloadError, match="answered 503"):
        pull(f"hf:{REPO}", registry=tmp_path)
    hub.refuse.clear()
    for name in ("model.safetensors", "pytorch_model.bin"):
        hub.repos[REPO].pop(name)
    with pytest.raises(DownloadError, match=r"has neither model\.safetensors nor pytorch_model\.bin"):
        pull(f"hf:{REPO}", registry=tmp_path)
    hub.repos[REPO].pop("config.json")
    with pytest.raises(DownloadError, match=r"has no config\.json"):
        pull(f"hf:{REPO}", registry=tmp_path)
    hub.repos[REPO] = {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"never fetched"}
    with pytest.raises(ValueError, match="model_type is 'bert'"):
        pull(f"hf:{REPO}", registry=tmp_path)
    assert not any(path.endswith("model.safetensors") for _, path, _ in hub.requests)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"does not answer .* --source FOLDER") as error:
        pull(f"hf:{REPO}", registry=tmp_path)
    assert "\n" not in str(error.value)
    monkeypatch.setenv("HF_ENDPOINT", "nonsense")
    with pytest.raises(ValueError, match="HF_ENDPOINT is 'nonsense'"):
        pull(f"hf:{REPO}", registry=tmp_path)


def test_a_download_that_is_cut_goes_on_where_it_ended_or_is_told(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's tries
    name = "model.safetensors"
    hub.cuts[name] = 1000
    with pytest.raises(DownloadError, match=rf"hf:{REPO}.*{name}: ") as error:
        pull(f"hf:{REPO}", registry=tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*/1"))
    hub.cuts[name] = 1
    hub.ranges.clear()
    assert pull(f"hf:{REPO}", registry=tmp_path).manifest.version == 1
    begun = [asked for path, asked in hub.ranges if path == name]
    assert begun[0] is None  # the client keeps no part of a call that failed
    assert int(begun[1].removeprefix("bytes=").removesuffix("-")) > 0
    small = [path for path, _ in hub.ranges if path != name]
    assert small == []  # files that were whole are not fetched again


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (401, "forbids it"),
        (403, "forbids it"),
        (404, "answered 404"),
        (429, "answered 429"),
        (500, "answered 500"),
    ],
)
@pytest.mark.parametrize("where", ["/api/models/", f"/{REPO}/resolve/"])
def test_what_the_hub_answers_is_told_in_one_line_without_the_token(
    status, told, where, hub, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.refuse[where] = (status, {"error": "no, Bearer hf_secret"})
    assert run_command(["pull", f"hf:{REPO}", "--registry", str(tmp_path)]) == 2
    out, error = capsys.readouterr()
    assert told in error
    assert f"hf:{REPO}" in error
    assert error.count("\n") == 1
    assert "hf_secret" not in out + error


def test_weights_in_two_files_are_fetched_and_code_is_not(hub, folder, tmp_path):
    state = load_file(folder / "model.safetensors")
    keys = sorted(state)
    parts = {"model-1.safetensors": keys[:200], "model-2.safetensors": keys[200:]}
    hub.repos[REPO].pop("model.safetensors")
    hub.repos[REPO] |= {name: save({key: state[key] for key in part}) for name, part in parts.items()}
    table = {key: name for name, part in parts.items() for key in part}
    hub.repos[REPO]["model.safetensors.index.json"] = json.dumps({"weight_map": table}).encode()
    found = pull(f"hf:{REPO}", registry=tmp_path).manifest
    assert found.origin.note.endswith("the first of 2 parts")
    config = json.loads(hub.repos[REPO]["config.json"])
    config["auto_map"] = {"AutoModelForObjectDetection": "train.Evil"}
    hub.repos[REPO]["config.json"] = json.dumps(config).encode()
    with pytest.raises(ValueError, match=r"config\.json: auto_map names code that the repository brings"):
        pull(f"hf:{REPO}", registry=tmp_path)
    assert not any(path.endswith((".py", ".bin")) for _, path, _ in hub.requests)


@pytest.mark.parametrize(
    "text", ["hf:", "hf:repo", "hf:a/b/c", "hf:a/b@", "hf:a b/c", "hf:../", "hf:a/b.git", "hf:https://x/y"]
)
def test_what_is_no_repository_is_told(text, tmp_path):
    if text == "hf:../":
        assert parse_hub_reference(text).folder is not None
        return
    with pytest.raises(ValueError, match="is no repository of the hub: write hf:ORG/REPO"):
        pull(text, registry=tmp_path)


def test_a_name_is_for_models_of_transformers(tmp_path):
    with pytest.raises(ValueError, match="--name is for hf:ORG/REPO"):
        pull("rt_detr_r18", registry=tmp_path, name="mine")
