"""The certificate is green for what was exported, and red for one changed number in it."""

import json
import shutil

import numpy as np
import pytest
import torch
from exported_case import (
    CONTRACT,
    LABELS,
    certified,
    checkpoint,
    copied,
    data,
    detector,
    graphs,
    module,
    written,
)

import zoo
from zoo.cli.main import run_command
from zoo.contract.batch import Detections
from zoo.contract.input_limits import InputLimits
from zoo.detector import Detector
from zoo.exporting import onnx as exporting
from zoo.exporting.certificate import (
    judged,
    missing_told,
    not_compared,
    paired_scores,
    readable,
    slower_told,
)
from zoo.exporting.compare import Comparison, tied
from zoo.exporting.differences import DetectionDifference, RawDifference, detection_difference, raw_difference
from zoo.exporting.limits import LIMITS
from zoo.runs.export import contract_of, export
from zoo.runtimes.onnx import read_graph


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return data(tmp_path_factory.mktemp("export") / "data")


def certificate_of(graph, folder, images=None):
    return certified(detector(), written(folder / "model.onnx", graph), CONTRACT, images, zoo.Silent())


def test_what_was_exported_passes_with_data_and_without(images, tmp_path):
    found = certificate_of(graphs()[1], tmp_path, images)
    assert (found["passed"], found["failures"], found["first_difference"]) == (True, [], None)
    assert found["images"]["compared"] == 5
    assert found["scores"]["images"] == 5
    assert found["scores"]["AP"]["source"] > 0.1
    assert abs(found["scores"]["AP"]["difference"]) <= 1e-4
    assert 0 < found["raw"]["logits"] < 1e-4
    assert found["detections"]["of_source"] == found["detections"]["of_file"] > 0
    assert found["source"]["weights_sha256"] != found["files"][0]["sha256"]
    assert set(found["milliseconds"]) == {"pytorch", "onnxruntime"}
    text = readable(found)
    assert "passed" in text
    assert found["files"][0]["sha256"] in text
    assert found["not_compared"] == {}
    assert "not compared" not in text
    without = certificate_of(graphs()[1], tmp_path)
    assert without["passed"]
    assert without["scores"] is None
    assert "made up" in without["images"]["kind"]
    assert list(without["not_compared"]) == ["AP"]
    assert readable(without).startswith("# model.onnx: passed, AP not compared\n\n- not compared: AP: ")


def test_what_was_not_compared_is_told():
    found, none = {"of_source": 3, "of_file": 0}, {"of_source": 0, "of_file": 0}
    no_objects = {"AP": {"source": None, "file": None, "difference": None}}
    assert not_compared(found, True, {"AP": {"difference": 0.0}}) == {}
    assert "none has a score of 0.05" in not_compared(none, True, {"AP": {"difference": 0.0}})["detections"]
    assert "give --data" in not_compared(found, False, None)["AP"]
    assert "of another model" in not_compared(found, True, None)["AP"]
    assert "no objects" in not_compared(found, True, no_objects)["AP"]
    assert (
        missing_told({"not_compared": not_compared(none, False, None)}) == ", detections and AP not compared"
    )


def changed_weight(graph, part):
    onnx = pytest.importorskip("onnx")
    names = [t.name for t in graph.graph.initializer if part in t.name]
    tensor = next(t for t in graph.graph.initializer if t.name == names[0])
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] += 1.0
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize(
    ("part", "block"),
    [
        ("backbone.stages.1.conv1.0.weight", "backbone.stages.1.conv1:"),
        ("cross_attn.attention_weights.bias", "decoder.decoder.layers.0.cross_attn:"),
    ],
)
def test_one_changed_weight_is_red_and_its_block_is_named(part, block, tmp_path):
    graph = copied(graphs()[1])
    changed_weight(graph, part)
    found = certificate_of(graph, tmp_path)
    assert not found["passed"]
    assert found["failures"]
    assert found["first_difference"].startswith(block)


def test_one_changed_mean_in_the_graph_is_red(tmp_path):
    other = detector()
    changed = CONTRACT.__class__(resize="stretch", size=(64, 64), mean=(0.4, 0.5, 0.61), std=CONTRACT.std)
    found = certified(other, written(tmp_path / "model.onnx"), changed, None, zoo.Silent())
    assert any(
        "input.mean is [0.4, 0.5, 0.6] in the file, not [0.4, 0.5, 0.61]" in f for f in found["failures"]
    )
    onnx = pytest.importorskip("onnx")
    graph = copied(graphs()[1])
    for tensor in constants(graph):
        values = onnx.numpy_helper.to_array(tensor)
        if values.size == 3 and np.allclose(values.flatten(), CONTRACT.mean):
            tensor.CopyFrom(onnx.numpy_helper.from_array(values + np.float32(0.01), tensor.name))
            break
    else:
        pytest.fail("the mean is not in the graph")
    found = certificate_of(graph, tmp_path)
    assert not found["passed"]
    assert found["first_difference"].startswith("normalised images")


def constants(graph):
    yield from graph.graph.initializer
    for node in graph.graph.node:
        if node.op_type == "Constant":
            yield node.attribute[0].t


def swapped_labels(facts):
    first, second = facts["label_map"]["classes"][:2]
    first["name"], second["name"] = second["name"], first["name"]


def swapped_ids(facts):
    first, second = facts["label_map"]["classes"][:2]
    first["source_id"], second["source_id"] = second["source_id"], first["source_id"]


def other_size(facts):
    facts["input"]["backend"] = "pil"


def other_weights(facts):
    facts["source"]["weights_sha256"] = "0" * 64


def other_network(facts):
    facts["model"]["init_args"]["decoder"]["num_points"] = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swapped_labels, "head index 0 is 'square' in one and 'disc' in the other"),
        (swapped_ids, "source ids"),
        (other_size, "input.backend is pil"),
        (other_weights, "was made of weights 0000"),
        (other_network, "other arguments"),
    ],
)
def test_one_changed_fact_is_red(change, message, images, tmp_path):
    graph = copied(graphs()[1])
    facts = json.loads(graph.metadata_props[0].value)
    change(facts)
    graph.metadata_props[0].value = json.dumps(facts)
    found = certificate_of(graph, tmp_path, images)
    assert not found["passed"]
    assert any(message in failure for failure in found["failures"])


def test_the_command_exports_checks_and_scores(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("zoo.runs.export.exported", lambda *_, **__: graphs())
    model = checkpoint(tmp_path / "tiny.ckpt")
    folder = tmp_path / "out"
    assert run_command(["export", str(model), "--output", str(folder), "--data", str(images)]) == 0
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "certificate.json", "certificate.md"}
    written_down = json.loads((folder / "certificate.json").read_text())
    scores = [zoo.evaluate(name, images, console=zoo.Silent()) for name in (model, folder / "model.onnx")]
    assert scores[0]["AP"] == pytest.approx(scores[1]["AP"], abs=1e-4)
    assert scores[0]["AP"] == pytest.approx(written_down["scores"]["AP"]["source"], abs=1e-9)
    opened = []
    original = Detector.from_exported
    monkeypatch.setattr(Detector, "from_exported", lambda path: opened.append(path) or original(path))
    capsys.readouterr()
    assert run_command(["export", str(model), "--check", str(folder), "--data", str(images)]) == 0
    assert "# model.onnx: passed\n" in capsys.readouterr().out
    assert len(opened) == 1
    assert run_command(["export", str(model), "--check", str(folder), "--output", str(tmp_path / "new")]) == 0
    assert f"exported    {tmp_path / 'new'}, AP not compared\n" in capsys.readouterr().out

    assert run_command(["export", str(model), "--output", str(folder)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert run_command(["export", str(model), "--output", str(model)]) == 2
    assert "is a file; --output names a folder" in capsys.readouterr().err
    assert zoo.load(folder).runtime == "onnxruntime"
    assert run_command(["info", str(folder)]) == 0
    assert "made of" in capsys.readouterr().out
    assert run_command(["export", str(folder), "--output", str(tmp_path / "again")]) == 2
    assert "export the model that it was made of" in capsys.readouterr().err
    assert run_command(["export", "--check", str(folder)]) == 2
    assert "which is not here" in capsys.readouterr().err
    assert run_command(["export", str(folder / "model.onnx"), "--output", str(tmp_path / "again")]) == 2
    assert "export the model that it was made of" in capsys.readouterr().err
    assert (
        run_command(["validate", str(folder / "model.onnx"), "--data", str(images), "--decoder-layers", "1"])
        == 2
    )
    assert "exported with" in capsys.readouterr().err

    graph, _ = read_graph(folder / "model.onnx")
    changed_weight(graph, "backbone.stages.1.conv1.0")
    written(folder / "model.onnx", graph)
    assert run_command(["export", str(model), "--check", str(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["passed"]
    assert any("certificate beside it" in failure for failure in found["failures"])
    (folder / "certificate.json").write_text("{")
    assert run_command(["export", str(model), "--check", str(folder)]) == 2
    assert "certificate.json: it is no JSON" in capsys.readouterr().err
    (folder / "certificate.json").write_text("{}")
    assert run_command(["export", str(model), "--check", str(folder)]) == 1


def test_a_refused_export_leaves_its_certificate_alone(tmp_path, monkeypatch, capsys):
    broken = copied(graphs()[1])
    changed_weight(broken, "encoder.fpn_blocks.0.conv1")
    monkeypatch.setattr("zoo.runs.export.exported", lambda *_, **__: (None, broken))
    folder = tmp_path / "out"
    model = checkpoint(tmp_path / "tiny.ckpt")
    assert run_command(["export", str(model), "--output", str(folder)]) == 1
    assert {path.name for path in folder.iterdir()} == {"certificate.json", "certificate.md"}
    assert "encoder.fpn_blocks.0" in json.loads((folder / "certificate.json").read_text())["first_difference"]
    assert "REFUSED" in (folder / "certificate.md").read_text()
    assert "REFUSED" in capsys.readouterr().out


def test_what_cannot_be_exported_is_refused_before_the_network_is_captured(
    images, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("zoo.runs.export.exported", lambda *_, **__: pytest.fail("captured"))
    model = str(checkpoint(tmp_path / "tiny.ckpt"))
    file = images / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["categories"][0]["name"] = "star"
    shutil.copytree(images, tmp_path / "other")
    (tmp_path / "other" / "annotations" / "instances_val.json").write_text(json.dumps(content))
    for arguments, message in (
        (["--data", str(tmp_path / "other")], "do not have the same classes"),
        (["--image-size", "33"], "multiples of 32"),
        (["--decoder-layers", "2"], "from 1 to 1"),
    ):
        assert run_command(["export", model, *arguments, "--output", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    limits = InputLimits(multiple_of=32, queries=300, strides=(8, 16, 32))
    source = detector()
    monkeypatch.setattr(type(source.module), "limits_of", lambda *_: limits)
    with pytest.raises(ValueError, match=r"has 300 queries, .* give a larger --image-size"):
        contract_of(source, "64")
    assert contract_of(source, "128x160").size == (128, 160)


def test_a_time_that_is_no_gain_is_told_as_such():
    times = {"pytorch": 9.0, "onnxruntime": 4.0, "onnxruntime fp32": 3.0}
    document = {"milliseconds": times, "runtime": "onnxruntime", "precision": "int8"}
    assert slower_told(document) == "int8 is not faster than fp32 here. "
    assert slower_told(document | {"milliseconds": times | {"onnxruntime": 2.0}}) == ""
    assert slower_told({"milliseconds": {"pytorch": 1.0, "onnxruntime": 3.0}, "runtime": "onnxruntime"}) == ""


def test_a_swap_among_near_equal_queries_is_no_difference():
    random = np.random.default_rng(0)
    logits, boxes = random.normal(size=(6, 3)), random.random((6, 4))
    order = [0, 2, 1, 3, 5, 4]
    found = raw_difference((logits, logits[order] + 1e-6), (boxes, boxes[order]), tolerance=1e-3)
    assert found.order
    assert found.logits == pytest.approx(1e-6)
    assert found.boxes == 0
    logits[0, 0] = np.nan
    assert raw_difference((logits, logits + 1), (boxes, boxes), 1e-3).logits == 1.0
    assert raw_difference((logits, np.nan_to_num(logits)), (boxes, boxes), 1e-3).logits == np.inf


def test_an_image_is_tied_where_queries_differ_and_detections_do_not():
    limits = LIMITS["fp32"]
    same, other = RawDifference(1e-5, 1e-6, order=False), RawDifference(0.5, 0.1, order=True)
    alike = DetectionDifference(3, 3, [], 1e-5, 0.01)
    assert tied(other, alike, limits)
    assert tied(RawDifference(1e-5, 0.1, order=True), alike, limits)
    assert not tied(same, alike, limits)
    assert not tied(other, alike._replace(source=0), limits)
    assert not tied(other, alike._replace(alone=["one"]), limits)
    assert not tied(other, alike._replace(score=0.1), limits)
    nothing = Comparison(images=4, tied=1, raw=[same] * 3, detections=[alike] * 4).to_dict()
    assert judged(nothing, [], None, limits, exact=True) == []
    nothing["raw"]["images_with_other_queries"] = 2
    assert "queries differ in 2 of 4 images" in judged(nothing, [], None, limits, exact=True)[0]
    assert judged(nothing, [], None, LIMITS["fp16"], exact=False) == []


def found(scores, labels, boxes):
    return Detections(torch.tensor(scores), torch.tensor(labels), torch.tensor(boxes, dtype=torch.float32))


def test_detections_pair_by_label_and_box_not_by_rank():
    a, b = [10, 10, 50, 50], [20, 30, 90, 80]
    mine = found([0.9, 0.9, 0.01], [1, 0, 2], [a, b, a])
    assert detection_difference(mine, found([0.9, 0.9], [0, 1], [b, a])) == (2, 2, [], 0.0, 0.0)
    other = detection_difference(mine, found([0.9, 0.8], [1, 1], [a, b]))
    assert other.alone == [
        "head index 0 with 0.900 in the source only",
        "head index 1 with 0.800 in the file only",
    ]
    moved = detection_difference(mine, found([0.85, 0.9], [1, 0], [[10, 10, 50, 51], b]))
    assert (moved.alone, moved.score, moved.pixels) == ([], pytest.approx(0.05, abs=1e-6), 1.0)
    edge = detection_difference(found([0.0501], [0], [a]), found([0.0499], [0], [a]))
    assert (edge.source, edge.file, edge.alone) == (1, 0, [])
    twice = detection_difference(found([0.9], [0], [a]), found([0.9, 0.9], [0, 0], [a, a]))
    assert len(twice.alone) == 1


def test_the_paired_interval_is_of_the_difference(images):
    model = detector()
    zoo.evaluate(model, images, console=zoo.Silent())
    one = model.module.val_ap.evaluation()
    same = paired_scores(one, one)
    assert same["AP"]["difference"] == 0
    assert same["AP"]["interval"] == [0, 0]
    fewer = one.data._replace(
        detections=one.data.detections[::2],
        detection_labels=one.data.detection_labels[::2],
        detection_image=one.data.detection_image[::2],
    )
    worse = paired_scores(one, type(one)(fewer))
    low, high = worse["AP"]["interval"]
    assert low <= worse["AP"]["difference"] <= high
    assert low < 0
    limits = LIMITS["int8"]
    nothing = {
        "raw": {"logits": 0.0, "boxes": 0.0, "images": 4, "images_with_other_queries": 0}, "masks": 0.0,
        "detections": {"of_source": 1, "of_file": 1, "unpaired": 0, "score": 0.0, "first_unpaired": []},
    }  # fmt: skip
    assert any("AP is" in failure for failure in judged(nothing, [], worse, limits, exact=False))
    better = {"AP": {"source": 0.5, "file": 0.6, "difference": 0.1}}
    assert judged(nothing, [], better, limits, exact=False) == []
    assert judged(nothing, [], better, LIMITS["fp32"], exact=True)


def test_an_exporter_of_another_opset_is_refused(monkeypatch):
    monkeypatch.setattr(exporting, "OPSET", 23)
    with pytest.raises(ValueError, match=r"opset \{23\}|wrote opset|cannot be captured"):
        exporting.refuse_opset(graphs()[0])


def test_a_detector_is_as_before_after_an_export(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.runs.export.exported", lambda *_, **__: graphs())
    model = detector()
    facts = (model.module.label_map, model.module.input, model.module.device)
    export(model, output=tmp_path / "out", console=zoo.Silent())
    assert (model.module.label_map, model.module.input, model.module.device) == facts
    assert model.label_map == LABELS
    assert torch.equal(
        *(m.evaluation_network.decoder.enc_score_head.weight for m in (model.module, module()))
    )
