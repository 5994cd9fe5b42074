import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from file_server import FileServer
from registry_case import MODEL, safetensors_bytes, tiny_manifest, tiny_module

import zoo
from zoo.architectures import rt_detr
from zoo.registry import store as store_module
from zoo.registry.pull import pull
from zoo.registry.store import LocalRegistry, with_files
from zoo.storage.checkpoint_io import UnsafeCheckpointError
from zoo.storage.fetch import DownloadError, WrongFileError
from zoo.storage.safetensors_file import DamagedModelError

NAME = "rt_detr_tiny.shapes"


@pytest.fixture
def server():
    with FileServer() as running:
        yield running


@pytest.fixture
def builtin(tmp_path, monkeypatch, server):
    """A package with one built-in model, whose authors publish `/w.pth` in a layout equal to ours."""
    folder = tmp_path / "package"
    folder.mkdir()
    manifest = tiny_manifest(
        files=[],
        sources=[f"{server.url}/w.pth"],
        origin={
            "kind": "converted",
            "file": "w.pth",
            "converter": "zoo.architectures.rt_detr.from_published",
        },
    )
    (folder / f"{NAME}.yaml").write_text(manifest.to_yaml())
    monkeypatch.setattr(store_module, "BUILTIN_FOLDER", folder)
    monkeypatch.setattr(rt_detr, "from_published", dict)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ZOO_REGISTRY", str(tmp_path / "registry"))
    return tmp_path / "cache" / NAME


def authors_file(path, key="ema"):
    state = tiny_module().network.state_dict()
    torch.save({"ema": {"module": state}, "model": {}} if key == "ema" else {"model": state}, path)
    return path.read_bytes(), state


def add_local(registry, value=1.0):
    def make(folder):
        (folder / "model.safetensors").write_bytes(safetensors_bytes(value))
        return with_files(tiny_manifest(), folder)

    return LocalRegistry(registry).add(make, NAME)


@pytest.mark.parametrize("key", ["ema", "model"])
def test_a_built_in_model_is_fetched_once_converted_and_its_hash_noted(builtin, server, tmp_path, key):
    server.files["/w.pth"], state = authors_file(tmp_path / "w.pth", key)
    first = pull("rt_detr_tiny")
    assert (first.kind, first.downloaded) == ("builtin", True)
    assert first.manifest.origin.pinned == "first_use"
    assert first.manifest.origin.size == len(server.files["/w.pth"])
    assert not pull("rt_detr_tiny").downloaded
    assert len(server.requests) == 1
    assert sorted(p.name for p in builtin.rglob("*") if p.is_file()) == [
        ".lock",
        "manifest.yaml",
        "model.safetensors",
    ]
    loaded = zoo.load("rt_detr_tiny").module.evaluation_network.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in state.items())


def test_damage_in_the_cache_is_mended_only_with_the_file_of_the_first_pull(builtin, server, tmp_path):
    server.files["/w.pth"], _ = authors_file(tmp_path / "w.pth")
    folder = pull("rt_detr_tiny").folder
    weights = folder / "model.safetensors"
    right = weights.read_bytes()
    weights.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    assert pull("rt_detr_tiny").downloaded
    assert weights.read_bytes() == right
    weights.write_bytes(b"")
    server.files["/w.pth"], _ = authors_file(tmp_path / "w.pth", "model")  # a file with another hash
    with pytest.raises(WrongFileError, match="expected"):
        pull("rt_detr_tiny")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_hostile_pickle_is_refused_not_executed_and_not_kept(builtin, server, tmp_path):
    torch.save({"ema": {"module": Bomb(tmp_path / "executed")}}, tmp_path / "w.pth")
    server.files["/w.pth"] = (tmp_path / "w.pth").read_bytes()
    with pytest.raises(UnsafeCheckpointError, match="Nothing in it was executed"):
        pull("rt_detr_tiny")
    assert not (tmp_path / "executed").exists()
    assert [p.name for p in builtin.rglob("*") if p.is_file()] == [".lock"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"weights": 1}, r"neither ema\.module nor model; its keys are \['weights'\]"),
        ({"model": {"x": torch.ones(1)}}, "another network"),
        (None, "damaged or"),
    ],
)
def test_a_wrong_file_is_refused_and_not_kept(builtin, server, tmp_path, content, says):
    if content is None:
        server.files["/w.pth"] = b"<html>not found</html>"
    else:
        torch.save(content, tmp_path / "w.pth")
        server.files["/w.pth"] = (tmp_path / "w.pth").read_bytes()
    with pytest.raises(ValueError, match=says):
        pull("rt_detr_tiny")
    assert [p.name for p in builtin.rglob("*") if p.is_file()] == [".lock"]


def test_no_network_says_so_and_how_to_go_on_and_a_path_is_a_way(builtin, server, tmp_path):
    authors_file(tmp_path / "w.pth")
    server.__exit__()
    with pytest.raises(
        DownloadError, match=r"no network, or the server is down.*`zoo pull rt_detr_tiny\S* --source FILE`"
    ):
        pull("rt_detr_tiny", attempts=1)
    assert pull("rt_detr_tiny", source=str(tmp_path / "w.pth")).downloaded
    server.__init__()
    server.__enter__()


def test_a_version_of_ones_own_is_hashed_at_each_pull(tmp_path):
    add_local(tmp_path)
    pulled = pull(NAME, registry=tmp_path)
    assert (pulled.kind, pulled.downloaded) == ("local", False)
    (pulled.folder / "model.safetensors").write_bytes(safetensors_bytes(2.0))
    with pytest.raises(DamagedModelError, match="sha256"):
        pull(NAME, registry=tmp_path)


def share(server, registry):
    """Serves what lies in a registry folder."""
    for path in Path(registry, NAME, "1").iterdir():
        server.files[f"/shared/{path.name}"] = path.read_bytes()
    return f"{server.url}/shared/manifest.yaml"


def test_somebody_elses_version_is_added_once_and_mended_from_its_source(server, tmp_path):
    add_local(tmp_path / "theirs")
    address = share(server, tmp_path / "theirs")
    server.cuts = [10**6, 30]  # the manifest whole, the weights cut
    pulled = pull(address, registry=tmp_path / "mine")
    assert pulled.downloaded
    assert pulled.manifest.files == pull(NAME, registry=tmp_path / "theirs").manifest.files
    assert not pull(address, registry=tmp_path / "mine").downloaded
    assert LocalRegistry(tmp_path / "mine").versions(NAME) == [1]
    (pulled.folder / "model.safetensors").unlink()
    assert pull(NAME, registry=tmp_path / "mine").downloaded
    assert (pulled.folder / "model.safetensors").read_bytes() == safetensors_bytes()


def test_weights_that_do_not_fit_their_manifest_are_not_added(server, tmp_path):
    add_local(tmp_path / "theirs")
    address = share(server, tmp_path / "theirs")
    server.files["/shared/model.safetensors"] = safetensors_bytes(2.0)
    with pytest.raises(WrongFileError, match="sha256"):
        pull(address, registry=tmp_path / "mine")
    assert LocalRegistry(tmp_path / "mine").names() == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("path: model.safetensors", "path: ../../model.safetensors"),
        ("path: model.safetensors", "path: model.pkl"),
        ("name: rt_detr_tiny.shapes", "name: ../shapes"),
        ("zoo.architectures.rt_detr.RtDetrModule", "subprocess.Popen"),
    ],
)
def test_a_hostile_manifest_is_refused_before_anything_is_fetched(server, tmp_path, old, new):
    add_local(tmp_path / "theirs")
    address = share(server, tmp_path / "theirs")
    text = server.files["/shared/manifest.yaml"].decode()
    assert old in text
    server.files["/shared/manifest.yaml"] = text.replace(old, new).encode()
    with pytest.raises(ValueError, match=r"manifest\.yaml"):
        pull(address, registry=tmp_path / "mine")
    assert len(server.requests) == 1
    assert not (tmp_path / "mine").exists()


def test_four_processes_at_once_download_once_and_import_no_torch(server, tmp_path):
    add_local(tmp_path / "theirs")
    address = share(server, tmp_path / "theirs")
    script = (
        "import sys; from zoo.registry.pull import pull\n"
        f"print(pull({address!r}, registry={str(tmp_path / 'mine')!r}).manifest.version)\n"
        "assert 'torch' not in sys.modules"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    assert [p.communicate()[0].strip() for p in processes] == ["1"] * 4
    assert [path for path, _ in server.requests].count("/shared/model.safetensors") == 1
    assert LocalRegistry(tmp_path / "mine").versions(NAME) == [1]


def test_the_manifest_of_a_pulled_model_names_its_model(builtin, server, tmp_path):
    server.files["/w.pth"], _ = authors_file(tmp_path / "w.pth")
    assert pull(NAME).manifest.to_dict()["model"] == MODEL
