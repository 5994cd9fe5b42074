"""Exported files come back as models like any other; hostile ones are an error of one line."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from exported_case import CONTRACT, LABELS, certified, copied, detector, graphs, written
from PIL import Image

import zoo
from zoo.cli.main import run_command
from zoo.exporting.facts import facts_of
from zoo.exporting.onnx import finished
from zoo.registry.manifest import Thresholds
from zoo.runtimes.facts import KEY, parse_facts
from zoo.runtimes.onnx import read_graph


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return written(tmp_path_factory.mktemp("exported") / "model.onnx")


@pytest.fixture(scope="module")
def pictures():
    random = np.random.default_rng(3)
    return [
        Image.fromarray(random.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in ((50, 90), (64, 64))
    ]


def test_a_file_finds_what_its_source_finds(file, pictures):
    source, back = detector(), zoo.load(file)
    assert (source.runtime, back.runtime) == ("pytorch", "onnxruntime")
    assert back.label_map == LABELS
    assert back.input == CONTRACT
    for one, other in zip(source.predict(pictures, 0.0), back.predict(pictures, 0.0), strict=True):
        assert len(one) > 0
        assert one.labels == other.labels
        assert one.size == other.size
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=1e-2)


def test_a_file_has_the_layers_that_it_was_made_with(file):
    assert detector().module.decoder_layers == 1
    module = zoo.load(file).module
    assert module.decoder_layers is None
    with pytest.raises(NotImplementedError, match="all its decoder layers"):
        module.set_decoder_layers(1)


def test_a_name_that_ends_as_an_exported_file_is_a_path(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert zoo.load("model.onnx").runtime == "onnxruntime"
    with pytest.raises(FileNotFoundError, match=r"missing\.onnx"):
        zoo.load("missing.onnx")


ALONE = """
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
facts = json.loads(session.get_modelmeta().custom_metadata_map["detr_zoo"])
images = np.load(sys.argv[2])
assert facts["inputs"]["images"]["shape"][2:] == list(images.shape[2:])
sizes = np.array([[50, 90]] * len(images), dtype=np.int64)
labels, boxes, scores = session.run(["labels", "boxes", "scores"], {"images": images, "sizes": sizes})
names = {row["head_index"]: row["name"] for row in facts["label_map"]["classes"]}
assert not {"torch", "zoo"} & set(sys.modules)
found = [[names[label] for label in image] for image in labels.tolist()]
print(json.dumps([found, boxes.tolist(), scores.tolist()]))
"""


def test_a_file_is_enough_for_onnxruntime_alone(file, pictures, tmp_path):
    small = CONTRACT.resize_image(pictures[0])
    images = np.stack([small.numpy(), small.numpy()[::-1], small.numpy()])
    np.save(tmp_path / "images.npy", images)
    answer = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(file), str(tmp_path / "images.npy")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    labels, boxes, scores = json.loads(answer.stdout)
    expected = detector().predict(pictures[0], 0.0)
    for row in (0, 2):
        assert labels[row] == expected.labels
        np.testing.assert_allclose(scores[row], expected.scores, atol=1e-5)
        clipped = np.clip(boxes[row], 0, [90, 50, 90, 50])
        np.testing.assert_allclose(clipped, expected.boxes_xyxy, atol=1e-2)


def test_images_of_another_size_are_refused(file):
    back = zoo.load(file)
    back.input = back.input.__class__(resize="stretch", size=(32, 64))
    with pytest.raises(ValueError, match=r"takes images of \['batch', 3, 64, 64\], not \[1, 3, 32, 64\]"):
        back.predict(np.zeros((40, 40, 3), np.uint8))


def test_facts_come_back_from_their_text():
    facts = parse_facts(graphs()[1].metadata_props[0].value, "here")
    assert parse_facts(facts.to_json(), "there") == facts
    assert facts.source.name == "tiny"
    assert not facts.raw
    assert [list(facts.inputs), list(facts.outputs)] == [["images", "sizes"], ["labels", "boxes", "scores"]]
    assert facts.inputs["images"].shape == ["batch", 3, 64, 64]
    assert facts.inputs["images"].holds.startswith("RGB levels 0 to 255, resized")
    deep = replace(CONTRACT, scale=((0.0, 4095.0),))
    told = facts_of(detector(), graphs()[0], deep, raw=False, precision="fp32", decoder_layers=None)
    assert told.inputs["images"].holds.startswith(
        "levels 0 to 255 of each channel, made of its values as `input"
    )


def test_a_file_has_the_thresholds_of_its_source(tmp_path):
    whole, model = graphs()[0], detector()
    model.thresholds = Thresholds(
        chosen_for="best F1", split="val", all=0.125, classes={LABELS.names[0]: 0.25}
    )
    facts = facts_of(model, whole, CONTRACT, raw=False, precision="fp32", decoder_layers=None)
    back = zoo.load(written(tmp_path / "model.onnx", finished(whole, facts)))
    assert back.thresholds == model.thresholds
    assert back.default_threshold == 0.125


def test_a_raw_file_ends_at_logits_and_boxes_and_finds_the_same(pictures, tmp_path):
    whole, model = graphs()[0], detector()
    facts = facts_of(model, whole, CONTRACT, raw=True, precision="fp32", decoder_layers=None)
    graph = finished(whole, facts)
    assert [entry.name for entry in graph.graph.input] == ["images"]
    assert [entry.name for entry in graph.graph.output] == ["logits", "pred_boxes"]
    assert len(graph.graph.node) < len(graphs()[1].graph.node)
    back = zoo.load(written(tmp_path / "raw.onnx", graph))
    for one, other in zip(model.predict(pictures, 0.0), back.predict(pictures, 0.0), strict=True):
        assert one.labels == other.labels
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    assert certified(model, tmp_path / "raw.onnx", CONTRACT, None, zoo.Silent())["passed"]


def test_info_tells_the_facts_without_running_the_graph(file, capsys):
    assert run_command(["info", str(file)]) == 0
    text = capsys.readouterr().out
    assert "made of        tiny" in text
    assert "3: square, disc, no" in text
    assert run_command(["info", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "fp32"


def outside(graph):
    tensor = graph.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = tensor.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def outside_in_a_branch(graph):
    node = graph.graph.node.add(op_type="If", input=["x"], output=["y"])
    branch = node.attribute.add(name="then_branch", type=5)
    constant = branch.g.node.add(op_type="Constant", output=["z"])
    value = constant.attribute.add(name="value", type=4)
    value.t.name = "deep"
    value.t.external_data.add(key="location", value="../secret")


def facts_with(**changes):
    def change(graph):
        facts = json.loads(graph.metadata_props[0].value)
        graph.metadata_props[0].value = json.dumps(facts | changes)

    return change


def other_opset(graph):
    graph.opset_import[0].version = 17


def foreign_operator(graph):
    graph.opset_import.add(domain="evil", version=1)
    graph.graph.node[0].domain = "evil"


def no_facts(graph):
    del graph.metadata_props[:]


def two_facts(graph):
    graph.metadata_props.add(key=KEY, value=graph.metadata_props[0].value)


def deep(graph):
    graph.metadata_props[0].value = "[" * 1_000_000


def huge(graph):
    graph.metadata_props[0].value = "x" * ((4 << 20) + 1)


def another_class(graph):
    facts_with(model={"class_path": "os.system", "init_args": {}})(graph)


def wider_head(graph):
    facts = json.loads(graph.metadata_props[0].value)
    facts["label_map"]["num_classes"] = 4
    graph.metadata_props[0].value = json.dumps(facts)


def other_outputs(graph):
    facts = json.loads(graph.metadata_props[0].value)
    facts["outputs"]["labels"]["dtype"] = "float32"
    graph.metadata_props[0].value = json.dumps(facts)


def broken_graph(graph):
    graph.graph.node[3].input[0] = "nowhere"


UNKNOWN_CLASS = {"chosen_for": "best F1", "split": "val", "all": 0.1, "classes": {"star": 0.2}}
HOSTILE = {
    outside: "from another file",
    outside_in_a_branch: "'deep' from another file",
    other_opset: "opset 17",
    foreign_operator: "'evil'",
    no_facts: "does not say what it is",
    two_facts: "does not say what it is",
    deep: "break a rule",
    huge: "characters",
    another_class: "nothing else is imported",
    wider_head: "num_classes 3",
    other_outputs: "not those that its facts tell",
    broken_graph: "cannot be run by onnxruntime",
    facts_with(format=2): "format",
    facts_with(surprise=1): "surprise",
    facts_with(outputs={}): "outputs are none",
    facts_with(precision="fp4"): "precision",
    facts_with(thresholds=UNKNOWN_CLASS): "thresholds.classes names 'star', which is no class of label_map",
}


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: change.__qualname__.split(".")[0])
def test_a_hostile_file_is_an_error_of_one_line(change, tmp_path):
    graph = copied(graphs()[1])
    change(graph)
    path = written(tmp_path / "model.onnx", graph)
    with pytest.raises(ValueError, match=HOSTILE[change]) as error:
        zoo.load(path)
    assert "\n" not in str(error.value)
    assert "model.onnx" in str(error.value) or change in (another_class, wider_head)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_file_is_an_error_of_one_line(file, share, tmp_path):
    content = file.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut\.onnx") as error:
        zoo.load(tmp_path / "cut.onnx")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("library", ["onnx", "onnxruntime"])
def test_without_the_extra_one_line_says_what_to_install(file, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=rf"needs {library} .*pip install 'detr-zoo\[export\]'"):
        zoo.load(file)


def test_nothing_of_this_machine_is_in_a_file(file):
    graph, _ = read_graph(file)
    text = file.read_bytes()
    assert b"site-packages" not in text
    assert b".py" not in text
    assert {entry.name for entry in graph.graph.output} == {"labels", "boxes", "scores"}


def test_a_batch_of_padding_needs_an_input_for_it(file):
    back = zoo.load(file)
    from zoo.contract.batch import Sample, collate

    empty = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)
    sides = ((64, 64), (64, 32))
    batch = collate([Sample(torch.zeros(3, h, w, dtype=torch.uint8), *empty, 0, (h, w)) for h, w in sides])
    with pytest.raises(ValueError, match="no input for padding"):
        back.module.detect(batch)
