"""Files in 16 and 8 bits: what they keep, what stays in float32, and that the choice is measured."""

import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from exported_case import CONTRACT, checkpoint, data, detector, graphs, written

import zoo
from zoo.cli.main import run_command
from zoo.exporting import certificate
from zoo.exporting.reduced import parts_of, reduced
from zoo.exporting.saving import apart_from, facts_of_graph, measured, outputs_of, save
from zoo.runs import certify
from zoo.runs.certify import calibration, certified
from zoo.runs.export import export
from zoo.runtimes.onnx import read_graph

PARTS = {"backbone", "encoder", "decoder"}


@pytest.fixture(scope="module")
def images():
    return calibration(detector(), CONTRACT, None, facts_of_graph(graphs()[1]))[:6]


def exact_but(part):
    part_of = parts_of(graphs()[0])
    assert set(part_of.values()) == PARTS
    return [node.name for node in graphs()[1].graph.node if part_of.get(node.name) != part]


def test_a_file_in_16_bits_is_near(images, tmp_path):
    graph = graphs()[1]
    path = written(tmp_path / "model.onnx", reduced(graph, "fp16", exact_but("encoder"), images))
    written(tmp_path / "full.onnx")
    made, facts = read_graph(path)
    assert facts == facts_of_graph(graph)
    assert [entry.name for entry in made.graph.output] == ["labels", "boxes", "scores"]
    assert 0 < apart_from(outputs_of(tmp_path / "full.onnx", images), outputs_of(path, images)) < 1
    weights = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert {kind for name, kind in weights.items() if "backbone" in name} == {1}
    assert 10 in {kind for name, kind in weights.items() if "encoder." in name}


def test_openvino_keeps_the_parts_that_it_is_told_to_keep(images, tmp_path):
    path = save(graphs()[1], "openvino", tmp_path, "int8", exact_but("encoder"), images)
    assert {file.name for file in tmp_path.iterdir()} == {"model.xml", "model.bin"}
    text = path.read_text()
    assert "FakeQuantize" in text or 'element_type="i8"' in text
    (tmp_path / "full").mkdir()
    full = save(graphs()[1], "openvino", tmp_path / "full", "fp32")
    assert 0 < apart_from(outputs_of(full, images), outputs_of(path, images)) < 1
    (tmp_path / "half").mkdir()
    half = save(graphs()[1], "openvino", tmp_path / "half", "fp16")
    assert half.with_suffix(".bin").stat().st_size < 0.7 * full.with_suffix(".bin").stat().st_size
    assert zoo.load(half).runtime == "openvino"


def test_the_most_sensitive_part_goes_back_to_float32_first(images, tmp_path):
    asked, said = [], []

    def certify(path, kept=()):
        asked.append(list(kept))
        return {"passed": len(asked) == 3, "failures": ["AP is 0"]}

    path, document = measured(*graphs(), "onnx", "int8", images, tmp_path, certify, said.append)
    assert document["passed"]
    assert asked[0] == []
    assert [len(kept) for kept in asked] == [0, 1, 2]
    costs = {part: float(value) for part, value in (p.split() for p in said[0].split(": ")[1].split(", "))}
    assert set(costs) == PARTS
    assert asked[1] == [max(costs, key=costs.get)]
    assert min(costs, key=costs.get) not in asked[2]
    quantised = {
        n for node in read_graph(path)[0].graph.node if "Quantize" in node.op_type for n in node.input
    }
    assert any(min(costs, key=costs.get) in name for name in quantised)


def test_where_no_part_can_be_reduced_the_export_fails(images, tmp_path):
    certify = lambda path, kept=(): {"passed": False, "failures": ["AP is 0"]}  # noqa: E731
    _, document = measured(*graphs(), "onnx", "fp16", images, tmp_path, certify, lambda text: None)
    assert not document["passed"]


def test_the_certificate_of_8_bits_is_judged_by_ap(tmp_path, monkeypatch):
    folder = data(tmp_path / "data", images=3)
    graph = graphs()[1]
    facts = facts_of_graph(graph)
    calibrated = calibration(detector(), CONTRACT, folder, facts)
    assert [inputs["images"].shape for inputs in calibrated] == [(1, 3, 64, 64)] * 3
    made = reduced(graph, "int8", exact_but("encoder"), calibrated)
    told = json.loads(made.metadata_props[0].value) | {"precision": "int8"}
    made.metadata_props[0].value = json.dumps(told)
    found = certified(
        detector(), written(tmp_path / "model.onnx", made), CONTRACT, folder, zoo.Silent(), ["decoder"]
    )
    assert found["precision"] == "int8"
    assert found["kept_in_float32"] == ["decoder"]
    lost = -found["scores"]["AP"]["difference"]
    assert found["passed"] == (
        lost <= found["limits"]["ap"] and -found["scores"]["AP50"]["difference"] <= 1e-2
    )
    assert found["limits"]["logits"] is None


def test_int8_without_images_says_what_to_give(tmp_path, capsys):
    model = str(checkpoint(tmp_path / "tiny.ckpt"))
    assert run_command(["export", model, "--precision", "int8", "--output", str(tmp_path / "out")]) == 2
    assert "--data" in capsys.readouterr().err
    assert run_command(["export", model, "--precision", "int4", "--output", str(tmp_path / "out")]) == 2
    assert "fp32, fp16, int8" in capsys.readouterr().err
    assert run_command(["export", model, "--to", "tflite", "--output", str(tmp_path / "out")]) == 2
    assert "onnx, openvino" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_calibration_images_have_no_padding_of_others():
    contract = replace(CONTRACT, resize="shortest", size=(64, 96))
    facts = facts_of_graph(graphs()[1])
    free = replace_shape(facts)
    shapes = {inputs["images"].shape for inputs in calibration(detector(), contract, None, free)}
    assert shapes == {(1, 3, 64, 85), (1, 3, 85, 64)}
    assert np.all([inputs["images"].any() for inputs in calibration(detector(), contract, None, free)])


def replace_shape(facts):
    plain = msgspec.to_builtins(facts)
    plain["inputs"]["images"]["shape"] = ["batch", 3, "height", "width"]
    return msgspec.convert(plain, type(facts))


def test_a_search_evaluates_its_source_once(tmp_path, monkeypatch):
    asked, judge = [], certificate.judged
    evaluate = certify.evaluated

    def evaluated(detector, *rest):
        asked.append(detector.runtime)
        return evaluate(detector, *rest)

    monkeypatch.setattr("zoo.runs.export.exported", lambda *arguments, **options: graphs())
    monkeypatch.setattr("zoo.runs.certify.evaluated", evaluated)
    monkeypatch.setattr("zoo.runs.export.evaluated", evaluated)
    monkeypatch.setattr(certificate, "judged", lambda *a: ["no"] if len(asked) < 4 else judge(*a))
    folder = data(tmp_path / "data", images=3)
    export(detector(), output=tmp_path / "out", data=folder, precision="fp16", console=zoo.Silent())
    assert asked == ["pytorch", "onnxruntime", "onnxruntime", "onnxruntime"]
