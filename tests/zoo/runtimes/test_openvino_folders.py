"""OpenVINO folders come back as models like any other; damaged ones are an error of one line."""

import ctypes
import gc
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from exported_case import CONTRACT, LABELS, certified, checkpoint, data, detector, graphs, written
from PIL import Image

import zoo
from zoo.cli.main import run_command
from zoo.exporting.openvino import converted, save
from zoo.runtimes.openvino import _SignalStack, signal_stack_kept


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("openvino")
    save(converted(written(place / "model.onnx")), place, half=False)
    (place / "model.onnx").unlink()
    return place


def test_a_folder_finds_what_its_source_finds(folder):
    random = np.random.default_rng(3)
    picture = Image.fromarray(random.integers(0, 255, (50, 90, 3), dtype=np.uint8))
    for name in (folder, folder / "model.xml"):
        back = zoo.load(name)
        assert (back.runtime, back.label_map, back.input) == ("openvino", LABELS, CONTRACT)
        one, other = (model.predict(picture, 0.0) for model in (detector(), back))
        assert one.labels == other.labels
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=1e-2)


def test_a_folder_of_two_exports_is_told_to_be_so(folder, tmp_path):
    both = shutil.copytree(folder, tmp_path / "both")
    written(both / "model.onnx")
    with pytest.raises(ValueError, match=r"holds model\.onnx and model\.xml; give the whole path"):
        zoo.load(both)
    assert zoo.load(both / "model.xml").runtime == "openvino"


def test_a_folder_passes_and_one_changed_weight_is_red(folder, tmp_path):
    images = data(tmp_path / "data")
    found = certified(detector(), folder / "model.xml", CONTRACT, images, zoo.Silent())
    assert (found["passed"], found["failures"]) == (True, [])
    assert [file["name"] for file in found["files"]] == ["model.xml", "model.bin"]
    assert abs(found["scores"]["AP"]["difference"]) <= 1e-4
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    # the largest constant of the graph
    sizes = re.findall(r'offset="(\d+)" size="(\d+)"', (changed / "model.xml").read_text())
    offset = max(((int(size), int(start)) for start, size in sizes))[1]
    weights = np.fromfile(changed / "model.bin", dtype=np.uint8)
    weights[offset : offset + 4] = np.frombuffer(np.float32(5).tobytes(), dtype=np.uint8)
    weights.tofile(changed / "model.bin")
    found = certified(detector(), changed / "model.xml", CONTRACT, None, zoo.Silent())
    assert not found["passed"]
    assert found["first_difference"]


def test_a_full_disk_is_an_error_of_one_line(tmp_path, monkeypatch, capsys):
    openvino = pytest.importorskip("openvino")
    monkeypatch.setattr("zoo.runs.export.exported", lambda *_, **__: graphs())

    def full(*_, **__):
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(openvino, "save_model", full)
    model, out = checkpoint(tmp_path / "tiny.ckpt"), tmp_path / "f" / "out"
    assert run_command(["export", str(model), "--to", "openvino", "--output", str(out)]) == 2
    error = capsys.readouterr().err.strip()
    assert "model.xml" in error
    assert error.endswith("is the disk full?")
    assert "\n" not in error
    assert list(out.parent.iterdir()) == []


ALONE = """
import json, sys
import numpy as np, openvino
core = openvino.Core()
model = core.read_model(sys.argv[1])
facts = json.loads(model.get_rt_info(["detr_zoo"]).astype(str))
compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
images = np.load(sys.argv[2])
found = compiled({"images": images, "sizes": np.array([[50, 90]] * len(images))})
assert not {"torch", "zoo"} & set(sys.modules)
names = {row["head_index"]: row["name"] for row in facts["label_map"]["classes"]}
print(json.dumps([[names[label] for label in found["labels"][0].tolist()], found["scores"][0].tolist()]))
"""


def test_a_folder_is_enough_for_openvino_alone(folder, tmp_path):
    random = np.random.default_rng(3)
    picture = Image.fromarray(random.integers(0, 255, (50, 90, 3), dtype=np.uint8))
    np.save(tmp_path / "images.npy", CONTRACT.resize_image(picture).numpy()[None])
    answer = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(folder / "model.xml"), str(tmp_path / "images.npy")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    labels, scores = json.loads(answer.stdout)
    expected = detector().predict(picture, 0.0)
    assert labels == expected.labels
    np.testing.assert_allclose(scores, expected.scores, atol=1e-5)


def no_weights(folder):
    (folder / "model.bin").unlink()


def cut_graph(folder):
    text = (folder / "model.xml").read_text()
    (folder / "model.xml").write_text(text[: len(text) // 2])


def cut_weights(folder):
    (folder / "model.bin").write_bytes(b"")


def no_xml(folder):
    (folder / "model.xml").write_bytes(b"\x08\x01" * 20)


def no_facts(folder):
    text = (folder / "model.xml").read_text()
    (folder / "model.xml").write_text(text.replace("detr_zoo", "another"))


@pytest.mark.parametrize("change", [no_weights, cut_graph, cut_weights, no_xml, no_facts])
def test_a_damaged_folder_is_an_error_of_one_line(change, folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "copy")
    change(tmp_path / "copy")
    assert run_command(["predict", str(tmp_path / "copy"), str(tmp_path)]) == 2
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    capsys.readouterr()
    assert run_command(["predict", str(tmp_path / "copy" / "model.xml"), str(tmp_path / "a.png")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "model." in error
    assert "\n" not in error


def test_without_the_extra_one_line_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match=r"needs openvino .*pip install 'detr-zoo\[export\]'"):
        zoo.load(folder)


def signal_stack():
    stack = _SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack.address, stack.flags, stack.size


@pytest.mark.skipif(sys.platform != "linux", reason="the signal stack is read as Linux has it")
def test_the_signal_stack_of_the_process_stays_its_own():
    openvino = pytest.importorskip("openvino")
    value = openvino.opset13.parameter([1, 3], np.float32)
    model = openvino.Model([openvino.opset13.relu(value)], [value])
    before = signal_stack()
    with signal_stack_kept():
        compiled = openvino.Core().compile_model(model, "CPU")
    assert signal_stack() == before
    del compiled
    gc.collect()
    assert signal_stack() == before
