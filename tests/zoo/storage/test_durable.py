"""What a full or read-only disk says, in one line, wherever it is met."""

import errno
import io
import json
import os

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from zoo.cli.main import run_command
from zoo.registry.weights import save_weights
from zoo.storage.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from zoo.storage.durable import write_atomically, write_json, written


@pytest.mark.parametrize("said", [
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
])  # fmt: skip
def test_what_the_disk_refuses_names_the_file(tmp_path, said):
    with pytest.raises(OSError, match="No space left on device") as told, written(tmp_path / "a.png"):
        raise said
    assert (told.value.errno, told.value.filename) == (errno.ENOSPC, str(tmp_path / "a.png"))


def test_other_errors_stay_as_they_are(tmp_path):
    for error in (SafetensorError("header too large"), ValueError("x"), FileNotFoundError(2, "No such", "b")):
        with pytest.raises(type(error)) as told, written(tmp_path / "a"):
            raise error
        assert told.value is error


class FullDisk(io.FileIO):
    """Takes the first `room` bytes."""

    room = 1000

    def write(self, data):
        if self.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.fixture
def full_disk(monkeypatch):
    real = open

    def small(path, mode="r", *arguments, **options):
        return FullDisk(path, "w") if mode == "wb" else real(path, mode, *arguments, **options)

    monkeypatch.setattr("builtins.open", small)


@pytest.mark.parametrize("size", [1, 10**6])
def test_a_checkpoint_on_a_full_disk_is_that_and_the_old_one_stays(tmp_path, full_disk, monkeypatch, size):
    """torch makes a RuntimeError about positions in its archive of what the disk said."""
    target = tmp_path / "last.ckpt"
    monkeypatch.setattr(FullDisk, "room", 10**9)
    AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(5)}, target)
    monkeypatch.setattr(FullDisk, "room", 100)
    with pytest.raises(OSError, match="No space left on device") as told:
        AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(size)}, target)
    assert (told.value.errno, told.value.filename) == (errno.ENOSPC, str(target))
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert read_checkpoint(target)["a"].tolist() == [0.0] * 5


def test_a_fault_of_the_writer_is_not_one_of_the_disk(tmp_path):
    def wrong(file):
        raise RuntimeError("a tensor on another device")

    with pytest.raises(RuntimeError, match="another device"):
        write_atomically(tmp_path / "x", wrong)


def test_weights_are_published_or_the_disk_is_named(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise SafetensorError("I/O error: Read-only file system (os error 30)")

    monkeypatch.setattr("zoo.registry.weights.save_file", full)
    with pytest.raises(OSError, match="Read-only file system") as told:
        save_weights({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert told.value.filename == str(tmp_path / "model.safetensors")


def test_a_picture_that_finds_no_room_is_one_line_and_exit_2(tmp_path, monkeypatch, capsys):
    from datamodules.shapes import generate_shapes

    shapes = generate_shapes(tmp_path / "shapes", 2, 1, seed=0, size=32)

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    picture = tmp_path / "look.png"
    assert run_command(["data", "show", str(shapes), "--output", str(picture)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {picture}: No space left on device"


def test_metrics_that_find_no_room_leave_the_old_ones(tmp_path, full_disk, monkeypatch):
    from zoo.runs.report import write_metrics

    monkeypatch.setattr(FullDisk, "room", 10**6)
    path = write_metrics({"AP": 0.5}, tmp_path)
    monkeypatch.setattr(FullDisk, "room", 1)
    with pytest.raises(OSError, match="No space left on device") as told:
        write_metrics({"AP": 0.6}, tmp_path)
    assert told.value.filename == str(path)
    assert json.loads(path.read_text()) == {"AP": 0.5}


def test_json_of_a_file_name_that_is_no_text_can_be_read_by_everybody(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    write_json(tmp_path / "x.json", {"file_name": name})
    assert json.loads((tmp_path / "x.json").read_bytes().decode("utf-8")) == {"file_name": name}


def test_a_pulled_copy_that_finds_no_room_leaves_the_old_files(tmp_path, full_disk, monkeypatch):
    from zoo.runs.register import copy_whole

    source, target = tmp_path / "1", tmp_path / "copy"
    (source / "more").mkdir(parents=True)
    for name in ("a.yaml", "more/model.safetensors"):
        (source / name).write_text("old")
    monkeypatch.setattr(FullDisk, "room", 10**6)
    copy_whole(source, target)
    for name in ("a.yaml", "more/model.safetensors"):
        (source / name).write_text("new and longer")
    monkeypatch.setattr(FullDisk, "room", 10)
    with pytest.raises(OSError, match="No space left on device") as told:
        copy_whole(source, target)
    assert told.value.filename == str(target / "a.yaml")
    assert {p.name: p.read_text() for p in target.rglob("*") if p.is_file()} == {
        "a.yaml": "old", "model.safetensors": "old"
    }  # fmt: skip


def test_shards_that_find_no_room_name_their_folder_and_leave_nothing(tmp_path, monkeypatch, capsys):
    from datamodules.shapes import generate_shapes

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    shapes = generate_shapes(tmp_path / "shapes", 2, 1, seed=0, size=32)
    monkeypatch.setattr("datamodules.shards.writer.tarfile.TarFile.addfile", full)
    assert run_command(["data", "shard", str(shapes), "--output", str(tmp_path / "shards")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {tmp_path}/shards: No space left on device"
    assert [path.name for path in tmp_path.iterdir() if "shards" in path.name] == []
