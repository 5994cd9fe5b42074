"""Scores of two models never share a folder, whatever their files are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoo.runs.reports.scores_folder import scores_folder

SCORES = Path("mlruns", "scores")


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def of(*models: str) -> str:
    folder = scores_folder([*models], "val")
    assert folder.parent == SCORES
    return folder.name


def test_names_stay_and_paths_have_their_folders(tmp_path):
    assert of("rt_detr_tiny.mine:2") == "rt_detr_tiny.mine.2.val"
    assert of("rt_detr_tiny.mine@champion") == "rt_detr_tiny.mine.champion.val"
    assert of("a/model.onnx") == of("./a/model.onnx") == of(f"{tmp_path}/a/model.onnx") == "a.model.onnx.val"
    assert of("mlruns/checkpoints/birds-1") == of("mlruns/checkpoints/birds-1/") == "birds-1.val"
    assert of("../run") == ".".join((*tmp_path.parent.parts[1:], "run.val"))
    assert of("first", "a/model.onnx") == "first.and.a.model.onnx.val"


def test_equal_names_in_two_folders_are_two(tmp_path):
    places = ["a/model.onnx", "b/model.onnx", "model.onnx", "a b/model.onnx", "ä/model.onnx"]
    assert len({of(place) for place in places}) == len(places)


def test_a_long_path_keeps_its_end_and_stays_apart():
    long = "folder of exports/" * 20 + "é/model.onnx"
    assert len(of(long, long).encode()) < 255
    assert of(long).endswith("model.onnx.val")
    assert of(long) != of(long.replace("folder", "holder", 1))
