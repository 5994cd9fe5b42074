"""What a worker says of a file, in this process and in spawned ones."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from dirty_more import jpeg, overwritten, scene
from PIL import Image, ImageOps

from datamodules.doctor import examine
from datamodules.images.probe import GRID, _deaf, probe, probe_all
from datamodules.index.image_store import Folder, StoreError
from datamodules.shapes import generate_shapes

ROOT = Path(__file__).resolve().parents[3]


def test_damage_that_pil_decodes_over_is_told():
    data = overwritten(jpeg(scene(1), quality=95))
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # no exception
    assert "Corrupt JPEG data" in probe(data).damage
    assert probe(jpeg(scene(1))).damage == ""


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"quality": 5}, {"optimize": True}, {"subsampling": 2}]
)
def test_sound_jpeg_of_every_kind_has_no_damage(mode, options):
    seen = probe(jpeg(scene(2).convert(mode), **options))
    assert (seen.error, seen.damage, seen.mode, seen.size) == ("", "", mode, (120, 160))
    assert len(seen.thumbnail) == GRID**2


def test_real_photographs_have_no_damage(test_data):
    """False alarms would make the warning worthless: 905 files of three sources."""
    files = [*(test_data / "coco").rglob("*.jpg"), *(test_data / "custom").rglob("*.jpg")]
    assert len(files) > 900
    assert [f.name for f in files if probe(f.read_bytes()).damage] == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_thumbnail_is_of_the_displayed_picture(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(scene(4), exif=exif, quality=95)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
    expected = np.frombuffer(probe(jpeg(upright, quality=95)).thumbnail, np.uint8).astype(int)
    found = np.frombuffer(probe(data).thumbnail, np.uint8).astype(int)
    assert np.corrcoef(found, expected)[0, 1] > 0.98


def write(folder: Path, number: int) -> list[str]:
    folder.mkdir()
    for k in range(number):
        (folder / f"{k}.jpg").write_bytes(jpeg(scene(k)) if k % 7 else b"broken")
    return [f"{k}.jpg" for k in range(number)] + ["gone.jpg"]


def test_spawned_workers_say_the_same_in_the_same_order(tmp_path):
    names = write(tmp_path / "images", 75)
    store = Folder(str(tmp_path / "images"))
    alone = list(probe_all(store, names, 0))
    assert [k for k, _ in alone] == list(range(76))
    assert "No such file" in alone[-1][1].error
    assert list(probe_all(store, names, 2)) == alone


def test_check_in_spawned_workers_finds_the_same(tmp_path):
    root = generate_shapes(tmp_path / "set", 40, 10, seed=0, size=48)
    file = next((root / "train").iterdir())
    file.write_bytes(jpeg(scene(1))[:-300])
    seen: list[tuple[int, int]] = []
    parallel = examine(root, workers=2, progress=lambda done, total: seen.append((done, total)))
    assert parallel.faults == examine(root, workers=0).faults
    assert len(parallel.faults) > 0
    assert seen[-1][0] == seen[-1][1] == len(seen)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_ctrl_c_ends_the_workers_too(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/0.jpg").write_bytes(jpeg(scene(1)))
    code = f"""
if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    from datamodules.images.probe import probe_all
    from datamodules.index.image_store import Folder
    for done, _ in probe_all(Folder({str(tmp_path / "images")!r}), ["0.jpg"] * 10**6, 2):
        if done == 100:
            print("under way", flush=True)
"""
    (tmp_path / "work.py").write_text(code)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "work.py")], start_new_session=True, stderr=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "under way\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group gets it
    _, said = process.communicate(timeout=60)
    assert said.count("Traceback") == 1  # of this process; the command line turns it into exit code 130
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert not _alive(process.pid)


def _alive(group: int) -> bool:
    """Whether a process of the group is left after a few seconds."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


class Listening:
    """A store that notes, when a worker unpickles it, whether Ctrl-C would be heard there at that moment."""

    def __setstate__(self, state: dict) -> None:
        self.deaf = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])

    def __getstate__(self) -> dict:
        return {"nothing": 0}

    def read(self, name: str) -> bytes:
        raise OSError("deaf" if self.deaf else "would be interrupted")

    def where(self, name: str) -> str:
        return name


def test_workers_are_deaf_to_ctrl_c_before_they_are_told_anything():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert [p.error for _, p in probe_all(Listening(), ["a"], 2)] == ["deaf"]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_ctrl_c_while_workers_start_is_heard_afterwards():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    started = []

    def start() -> None:
        with _deaf():
            # to this thread: another one that a library has started would take it at once
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            started.append(True)

    try:
        with pytest.raises(KeyboardInterrupt):
            start()
    finally:
        signal.signal(signal.SIGINT, before)
    assert started


class Unreachable:
    """A store whose way to the files is at fault."""

    def read(self, name: str) -> bytes:
        raise StoreError(f"the network is down before {name}")

    def where(self, name: str) -> str:
        return name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_that_cannot_be_reached_is_no_fault_of_its_images(workers):
    with pytest.raises(StoreError, match="the network is down before a"):
        list(probe_all(Unreachable(), ["a", "b"], workers))
