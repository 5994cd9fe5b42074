import os
import shutil

import pytest
from registry_case import safetensors_bytes, tiny_manifest

from zoo.registry import store as store_module
from zoo.registry.names import parse_reference
from zoo.registry.store import (
    DamagedModelError,
    LocalRegistry,
    UnknownModelError,
    available,
    check_safetensors,
    find,
    registry_root,
    verify_folder,
    with_files,
)
from zoo.runs import catalogue

NAME = "rt_detr_tiny.shapes"


def add(store, name=NAME, value=1.0):
    def make(folder):
        (folder / "model.safetensors").write_bytes(safetensors_bytes(value))
        return with_files(tiny_manifest(name=name), folder)

    return store.add(make, name)


def test_root_is_argument_then_environment_then_mlruns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZOO_REGISTRY", raising=False)
    assert registry_root() == tmp_path / "mlruns" / "registry"
    monkeypatch.setenv("ZOO_REGISTRY", str(tmp_path / "mine"))
    assert registry_root() == tmp_path / "mine"
    assert registry_root(tmp_path / "this") == tmp_path / "this"


def test_versions_count_up_and_aliases_move(tmp_path):
    store = LocalRegistry(tmp_path)
    assert [add(store).version, add(store, value=2.0).version] == [1, 2]
    store.set_alias(NAME, "champion", 1)
    assert find(f"{NAME}@champion", tmp_path).manifest.version == 1
    store.set_alias(NAME, "champion", 2)
    assert find(f"{NAME}@champion", tmp_path).manifest.version == 2
    assert find(f"{NAME}:1", tmp_path).folder == tmp_path / NAME / "1"
    assert find("rt_detr_tiny", tmp_path).manifest.version == 2  # its only tag, its latest version
    assert store.names() == [NAME]


@pytest.mark.parametrize(
    "text", [f"{NAME}:9", f"{NAME}@other", "nothing", "rt_detr_r18:7", "rt_detr_r18@champion"]
)
def test_what_is_not_there_is_an_error_that_says_what_is(tmp_path, text):
    store = LocalRegistry(tmp_path)
    add(store)
    store.set_alias(NAME, "champion", 1)
    there = r"\[1\]|@champion|which holds rt_detr_tiny\.shapes|rt_detr_r18\.coco_72e"
    with pytest.raises(UnknownModelError, match=there):
        find(text, tmp_path)


def test_bare_name_means_the_built_in_default_beside_tags_of_the_user(tmp_path):
    add(LocalRegistry(tmp_path), "rt_detr_r18.mine")
    assert find("rt_detr_r18", tmp_path).manifest.name == "rt_detr_r18.coco_72e"
    add(LocalRegistry(tmp_path), "cells.a")
    add(LocalRegistry(tmp_path), "cells.b")
    with pytest.raises(ValueError, match=r"several tags and no default: cells\.a, cells\.b"):
        find("cells", tmp_path)


@pytest.mark.parametrize("name", ["rt_detr_r18.coco_72e", "rt_detr_r18"])
def test_a_name_of_the_package_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="built-in"):
        add(LocalRegistry(tmp_path), name)
    assert LocalRegistry(tmp_path).names() == []


def test_a_name_in_both_is_an_error_wherever_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "builtin_manifests", dict)
    add(LocalRegistry(tmp_path), "rt_detr_r18.coco_72e")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="built-in"):
        available(tmp_path)
    with pytest.raises(ValueError, match="built-in"):
        find("rt_detr_r50", tmp_path)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "link"])
def test_damage_is_found_even_if_size_and_time_stay(tmp_path, damage):
    manifest = add(LocalRegistry(tmp_path))
    folder = tmp_path / NAME / "1"
    file = folder / "model.safetensors"
    stat, raw = file.stat(), file.read_bytes()
    if damage == "flip":
        file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif damage == "cut":
        file.write_bytes(raw[:-1])
    else:
        file.unlink()
        if damage == "link":
            (tmp_path / "elsewhere").write_bytes(raw)
            file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedModelError, match=r"model\.safetensors"):
        verify_folder(folder, manifest)


def test_a_pickle_with_the_right_name_and_hash_is_no_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR." * 10)
    with pytest.raises(DamagedModelError, match="not a safetensors file"):
        check_safetensors(path)

    def make(folder):
        shutil.copy(path, folder)
        return with_files(tiny_manifest(), folder)

    with pytest.raises(DamagedModelError, match="not a safetensors file"):
        LocalRegistry(tmp_path / "registry").add(make, NAME)


def test_a_failed_version_leaves_nothing_and_a_killed_one_is_swept(tmp_path):
    store = LocalRegistry(tmp_path)

    def fail(folder):
        (folder / "model.safetensors").write_bytes(b"x")
        raise RuntimeError("full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        store.add(fail, NAME)
    assert not (tmp_path / NAME).exists()
    boot = next(tmp_path.iterdir()).name if list(tmp_path.iterdir()) else None
    assert boot is None
    assert add(store).version == 1
    assert sorted(p.name for p in (tmp_path / NAME).iterdir()) == ["1"]


def test_files_that_no_entry_names_are_refused(tmp_path):
    def make(folder):
        (folder / "model.safetensors").write_bytes(safetensors_bytes())
        manifest = with_files(tiny_manifest(), folder)
        (folder / "extra.pkl").write_bytes(b"x")
        return manifest

    with pytest.raises(ValueError, match=r"extra\.pkl"):
        LocalRegistry(tmp_path).add(make, NAME)


def test_a_manifest_under_another_name_is_refused(tmp_path):
    store = LocalRegistry(tmp_path)
    add(store)
    (tmp_path / NAME).rename(tmp_path / "cells")
    with pytest.raises(ValueError, match=r"is the manifest of rt_detr_tiny\.shapes:1"):
        store.manifest(parse_reference("cells"))


def test_a_manifest_of_the_package_is_parsed_once_until_its_file_changes(tmp_path, monkeypatch):
    (path,) = (p for name, p in store_module.builtin_manifests().items() if name == "rt_detr_r18.coco_72e")
    changed = tmp_path / path.name
    changed.write_text(path.read_text())
    monkeypatch.setattr(store_module, "BUILTIN_FOLDER", tmp_path)
    first = store_module.find("rt_detr_r18").manifest
    assert store_module.find("rt_detr_r18").manifest is first
    changed.write_text(path.read_text().replace("Apache-2.0", "another licence"))
    assert store_module.find("rt_detr_r18").manifest.license == "another licence"


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b'{"x":1}',
        b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[]}}',
        b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}',
        b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        b'{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"x":{"dtype":"F3","shape":[1],"data_offsets":[0,4]}}',
        b'{"x":{"dtype":"F32","shape":"1","data_offsets":[0,4]}}',
        b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"y":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"[" * 2000,
    ],
)
def test_a_header_that_lies_is_no_safetensors_file(tmp_path, header):
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"abcd")
    with pytest.raises(DamagedModelError, match="safetensors file"):
        check_safetensors(file)


def test_one_bad_entry_does_not_hide_the_others(tmp_path, caplog):
    for name in ("good.a", "bad.b"):
        folder = tmp_path / name / "1"
        folder.mkdir(parents=True)
        manifest = tiny_manifest(name=name)
        (folder / "manifest.yaml").write_text(manifest.to_yaml())
    bad = tmp_path / "bad.b" / "1" / "manifest.yaml"
    bad.write_text(bad.read_text().replace("mean: []", "mean: [.nan, .nan, .nan]"))
    assert [entry["name"] for entry in catalogue.registered(tmp_path)] == ["good.a"]
    assert "left out of the list" in caplog.text
    assert ".nan is no finite number" in caplog.text
