import contextlib
import enum
import multiprocessing
import os
import pickle
import socket
import time

import numpy as np
import pytest
import torch

from zoo.storage.checkpoint_io import (
    AtomicCheckpointIO,
    UnsafeCheckpointError,
    read_checkpoint,
    refuse_objects,
)
from zoo.storage.durable import sweep_temporaries, write_atomically


class Colour(enum.IntEnum):
    RED = 1


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def plain():
    return {"state_dict": {"w": torch.arange(3.0)}, "step": 3, "nested": [{"a": (1, None, "x")}]}


def test_what_is_written_is_read_back(tmp_path):
    io = AtomicCheckpointIO()
    io.save_checkpoint(plain(), tmp_path / "deep" / "last.ckpt")
    again = io.load_checkpoint(tmp_path / "deep" / "last.ckpt", weights_only=False)
    assert torch.equal(again["state_dict"]["w"], torch.arange(3.0))
    assert again["nested"] == [{"a": (1, None, "x")}]
    assert os.listdir(tmp_path / "deep") == ["last.ckpt"]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.float64(1.0), r"checkpoint\['a'\]\[0\] is a numpy\.float64"),
        (Colour.RED, "Colour"),
        (np.zeros(2), r"numpy\.ndarray"),
        (lambda: 0, "function"),
    ],
)
def test_objects_are_refused_before_anything_is_written(tmp_path, value, says):
    AtomicCheckpointIO().save_checkpoint(plain(), tmp_path / "last.ckpt")
    before = (tmp_path / "last.ckpt").read_bytes()
    with pytest.raises(UnsafeCheckpointError, match=says):
        AtomicCheckpointIO().save_checkpoint({"a": [value]}, tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_all_that_passes_the_check_also_loads(tmp_path):
    values = [True, 1, 1.5, 1j, "a", b"a", None, torch.Size([1]), torch.float32, torch.device("cpu"), {1, 2}]
    tensors = [torch.ones(1), torch.nn.Parameter(torch.ones(1)), torch.ones(1, dtype=torch.bfloat16)]
    refuse_objects({"a": [*values, *tensors]})
    AtomicCheckpointIO().save_checkpoint({"a": [*values, *tensors]}, tmp_path / "x.ckpt")
    assert read_checkpoint(tmp_path / "x.ckpt")["a"][: len(values)] == values


def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path):
    trace = tmp_path / "executed"
    torch.save({"model": Bomb(trace)}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Bomb(trace)))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(UnsafeCheckpointError, match="Nothing in it was executed"):
            AtomicCheckpointIO().load_checkpoint(tmp_path / name, weights_only=False)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content", [b"hello\n", b"ee\n", b"<html>", b"PK\3\4", b"\x80\x02}q\x00.", b"\x80\x02ee"]
)
def test_a_file_of_another_kind_is_told_in_words_and_not_in_numbers_of_the_unpickler(tmp_path, content):
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(ValueError, match="damaged or") as told:
        read_checkpoint(tmp_path / "t.txt")
    reason = str(told.value).rpartition("checkpoint: ")[2]
    if content[:1] in (b"P", b"\x80"):
        assert (
            "ZIP archive" in reason
            or "magic number" in reason
            or reason == "its pickle breaks off or is malformed"
        )
    else:
        assert reason == f"torch.save writes a ZIP archive or pickle, but this begins with {content!r}"


def test_damage_and_absence_are_clear_errors(tmp_path):
    AtomicCheckpointIO().save_checkpoint(plain(), tmp_path / "x.ckpt")
    raw = (tmp_path / "x.ckpt").read_bytes()
    for name, content in {
        "cut.ckpt": raw[: len(raw) // 2],
        "empty.ckpt": b"",
        "text.ckpt": b"hello world",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            read_checkpoint(tmp_path / name)
    torch.save([1], tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match="holds a list"):
        read_checkpoint(tmp_path / "list.ckpt")
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        read_checkpoint(tmp_path / "none.ckpt")


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    io = AtomicCheckpointIO()
    io.save_checkpoint(plain(), tmp_path / "last.ckpt")

    def half(value, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        io.save_checkpoint(plain(), tmp_path / "last.ckpt")
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert read_checkpoint(tmp_path / "last.ckpt")["step"] == 3


def test_kill_in_mid_write_leaves_the_old_file_and_the_rest_is_swept(tmp_path):
    AtomicCheckpointIO().save_checkpoint(plain(), tmp_path / "last.ckpt")
    fork = multiprocessing.get_context("fork")  # a new interpreter would import for seconds
    writing = fork.Event()

    def slow(file):
        file.write(b"x" * 99)
        file.flush()
        writing.set()
        time.sleep(60)

    process = fork.Process(target=write_atomically, args=(tmp_path / "last.ckpt", slow))
    process.start()
    assert writing.wait(60)
    assert sweep_temporaries(tmp_path) == []  # its writer lives
    process.kill()
    process.join()
    assert read_checkpoint(tmp_path / "last.ckpt")["step"] == 3
    assert len(os.listdir(tmp_path)) == 2
    AtomicCheckpointIO().save_checkpoint(plain(), tmp_path / "last.ckpt")
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_sweep_leaves_the_living_and_what_is_not_ours(tmp_path):
    host = socket.gethostname().replace(".", "-")
    mine = tmp_path / f".a.ckpt.{host}.{os.getpid()}.0123abcd.tmp"
    foreign, old = (tmp_path / f".a.ckpt.other.{n}.0123abcd.tmp" for n in (1, 2))
    for path in (mine, foreign, old, tmp_path / "notes.tmp"):
        path.touch()
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    assert sweep_temporaries(tmp_path) == [old]


def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path):
    path, wrong = tmp_path / "last.ckpt", []
    torch.save({"weights": torch.arange(40.0), "step": 7}, path)
    content, refused = path.read_bytes(), 0
    for place in range(len(content)):
        flipped = content[place] ^ 1 << place % 8
        path.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        found = None
        with contextlib.suppress(ValueError):
            found = read_checkpoint(path)
        if found is None:
            refused += 1
        elif not torch.equal(found["weights"], torch.arange(40.0)) or found["step"] != 7:
            wrong.append(place)
    assert wrong == []
    assert refused > 300


def test_a_record_that_is_marked_as_a_folder_is_damage(tmp_path):
    """One flipped bit; torch would return memory that nobody has written."""
    path = tmp_path / "last.ckpt"
    torch.save({"weights": torch.arange(400.0)}, path)
    content = bytearray(path.read_bytes())
    attributes = content.rindex(b"PK\x01\x02", 0, content.rindex(b"last/data/0")) + 38
    content[attributes] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged: last/data/0 is not as it was written"):
        read_checkpoint(path)


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_cut_checkpoint_is_named(tmp_path, length):
    path = tmp_path / "last.ckpt"
    torch.save({"weights": torch.arange(400.0)}, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"last\.ckpt.*damaged"):
        read_checkpoint(path)
