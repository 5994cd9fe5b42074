"""Bars of images and bytes: shown where somebody watches, a terminal or a notebook, and nowhere else."""

import sys

from datamodules.progress import image_bar
from datamodules.shapes import generate_shapes
from datamodules.writers.shards import pack_folder


def test_a_bar_is_shown_in_a_notebook_and_not_in_a_log(tmp_path, capsys, monkeypatch):
    root = generate_shapes(tmp_path / "set", 2, 1, seed=0, size=32)
    pack_folder(root, tmp_path / "first")
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", sys)
    packed = pack_folder(root, tmp_path / "second")
    shown = capsys.readouterr().err
    assert packed.manifest.splits["train"].images == 2
    assert "decode" in shown
    assert "pack and verify" in shown


def test_a_bar_that_is_not_wanted_is_not_shown(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", sys)
    with image_bar("copying", shown=False) as step:
        step(1, 2)
    assert capsys.readouterr().err == ""
