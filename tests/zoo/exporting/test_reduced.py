"""Files in 16 and 8 bits: what they keep, what stays in float32, and that the choice is measured."""

import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from exported_case import CONTRACT, certified, checkpoint, data, detector, graphs, written
from PIL import Image

import zoo
from zoo.cli.main import run_command
from zoo.contract.batch import Detections, Predictions
from zoo.exporting import certificate
from zoo.exporting.certificate import judged, readable
from zoo.exporting.compare import Comparison
from zoo.exporting.differences import Agreement, masks_lost
from zoo.exporting.half import coordinates, halved
from zoo.exporting.limits import LIMITS
from zoo.exporting.reduced import parts_of, reduced
from zoo.exporting.saving import facts_of_graph, measured, save
from zoo.exporting.search import fewest_kept
from zoo.runs import certify
from zoo.runs.certify import detections_lost
from zoo.runs.export import export
from zoo.runs.export_images import export_images
from zoo.runtimes.facts import RAW
from zoo.runtimes.module import inputs_of, open_session
from zoo.runtimes.onnx import read_graph


def singles():
    return list(export_images(detector(), None, CONTRACT, True).calibration())


@pytest.fixture(scope="module")
def images():
    return [inputs_of(facts_of_graph(graphs()[1]), batch) for batch in singles()[:6]]


@pytest.fixture(scope="module")
def lost():
    return detections_lost(detector(), singles()[:6])


def exact_but(part):
    part_of = {node: module_of(its) for node, its in parts_of(graphs()[0]).items()}
    return [node.name for node in graphs()[1].graph.node if part_of.get(node.name) != part]


def module_of(part):
    return part.removeprefix("rest of ").split(".")[0]


def test_parts_are_modules_of_like_weight():
    part_of = parts_of(graphs()[0])
    parts = set(part_of.values())
    assert {module_of(part) for part in parts} == {"backbone", "encoder", "decoder"}
    held = dict.fromkeys(parts, 0)
    for node in graphs()[0].graph.node:
        if node.name in part_of and node.op_type in ("Conv", "MatMul", "Gemm"):
            held[part_of[node.name]] += 1
    assert 6 <= len(parts) <= 24
    assert max(held.values()) <= -(-sum(held.values()) // 8)


def test_a_file_in_16_bits_is_near(images, lost, tmp_path):
    graph = graphs()[1]
    path = written(tmp_path / "model.onnx", reduced(graph, "fp16", exact_but("encoder"), images))
    full = written(tmp_path / "full.onnx")
    made, facts = read_graph(path)
    assert facts == facts_of_graph(graph)
    assert [entry.name for entry in made.graph.output] == ["labels", "boxes", "scores"]
    assert lost(full) < 1e-5
    assert lost(path) < 1e-3
    weights = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert {kind for name, kind in weights.items() if "backbone" in name} == {1}
    assert 10 in {kind for name, kind in weights.items() if "encoder." in name}


def test_openvino_keeps_the_parts_that_it_is_told_to_keep(images, lost, tmp_path):
    ranges = tmp_path / "ranges.json"
    sizes = {}
    for part in ("encoder", "decoder"):
        (tmp_path / part).mkdir()
        path = save(graphs()[1], "openvino", tmp_path / part, "int8", exact_but(part), images, ranges)
        assert {file.name for file in path.parent.iterdir()} == {"model.xml", "model.bin"}
        assert ranges.is_file()
        assert "FakeQuantize" in path.read_text()
        sizes[part] = path.with_suffix(".bin").stat().st_size
    (tmp_path / "full").mkdir()
    full = save(graphs()[1], "openvino", tmp_path / "full", "fp32")
    assert lost(full) < 1e-5 < lost(path) < 1
    whole = full.with_suffix(".bin").stat().st_size
    assert sizes["encoder"] < whole
    assert sizes["decoder"] < whole
    assert sizes["encoder"] != sizes["decoder"]
    (tmp_path / "half").mkdir()
    half = save(graphs()[1], "openvino", tmp_path / "half", "fp16")
    assert half.with_suffix(".bin").stat().st_size < 0.7 * full.with_suffix(".bin").stat().st_size
    assert zoo.load(half).runtime == "openvino"


PARTS = [f"part {number}" for number in range(12)]


@pytest.mark.parametrize("needed", [0, 1, 2, 5, 10, 11])
def test_the_fewest_parts_are_kept_the_most_costly_first(needed, tmp_path):
    costs = {part: (7 * number + 3) % 12 / 12 for number, part in enumerate(PARTS)}
    order, made, said = sorted(PARTS, key=lambda part: -costs[part]), [], []

    def make(parts):
        made.append(list(parts))
        return tmp_path / str(len(made))

    def certify(path, kept=()):
        assert sorted({*kept, *made[-1]}) == sorted(PARTS)
        return {"passed": len(kept) >= needed, "failures": ["AP is 0"], "kept": set(kept)}

    path, document = fewest_kept(PARTS, make, certify, lambda path: costs[made[-1][0]], said.append)
    assert document["passed"]
    assert document["kept"] == set(order[:needed])
    assert set(made[int(path.name) - 1]) == set(order[needed:])
    assert len(made) <= 1 + (len(PARTS) + 5) * (needed > 0)
    if needed:
        assert document["search"]["costs"] == {part: costs[part] for part in order}
        assert {trial["kept"] for trial in document["search"]["tried"] if trial["passed"]} >= {needed}
        assert order[0] in said[0]


def test_where_no_part_can_be_reduced_the_export_fails_and_tells_why(tmp_path, monkeypatch):
    part_of, kept = parts_of(graphs()[0]), []

    def saved(graph, to, folder, precision, exact, images, ranges):
        kept.append({part_of[name] for name in exact if name in part_of})
        return written(folder / "model.onnx")

    monkeypatch.setattr("zoo.exporting.saving.save", saved)
    document = {"passed": False, "failures": ["AP is 0"]}
    certify = lambda path, kept=(): dict(document)  # noqa: E731
    cost = lambda path: len(path.parent.name)  # noqa: E731
    path, found = measured(*graphs(), "onnx", "int8", [], tmp_path, certify, cost, lambda text: None)
    assert path == tmp_path / "model.onnx"
    assert path.is_file()
    assert not found["passed"]
    parts = set(found["search"]["costs"])
    assert parts == {
        part_of[n.name]
        for n in graphs()[1].graph.node
        if n.name in part_of and n.op_type in ("Conv", "MatMul", "Gemm")
    }
    assert found["search"]["tried"][-1]["kept"] == len(parts) - 1
    assert not parts & kept[0]
    assert all(len(parts - alone) == 1 for alone in kept[1 : 1 + len(parts)])


def test_what_stays_in_float32_is_not_rounded_on_the_way(images, tmp_path):
    full, graph = open_session(written(tmp_path / "full.onnx")), graphs()[1]
    made = reduced(graph, "fp16", [node.name for node in graph.graph.node], images)
    file = open_session(written(tmp_path / "model.onnx", made))
    for inputs in images:
        mine, theirs = full.run(inputs), file.run(inputs)
        for name in mine:  # rounding on the way differs by 5e-4
            np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-6)
    made = halved(graph, exact_but("encoder"))
    pytest.importorskip("onnx").checker.check_model(made)
    boxes = open_session(written(tmp_path / "model.onnx", made)).run(images[0])["boxes"]
    assert set(RAW) <= set(file.inner_names())
    assert (boxes * 2 % 1).any()  # 16 bits have steps of half a pixel at 640


def test_coordinates_stay_in_float32(images):
    graph = graphs()[1]
    exact = coordinates(graph)
    known = {node.name for node in graph.graph.node}
    made = halved(graph, [])
    rounded = {
        node.output[0]
        for node in made.graph.node
        if node.op_type == "Cast" and node.name not in known and node.attribute[0].i == 10
    }
    constants = {tensor.name for tensor in made.graph.initializer if tensor.data_type == 10}
    nodes = [node for node in made.graph.node if node.name in exact]
    assert {"Sigmoid", "Concat", "MatMul"} <= {node.op_type for node in nodes}
    assert not [node.name for node in nodes if set(node.input) & (rounded | constants)]
    assert rounded


def detections(scores, labels=None, shift=0.0):
    corners = torch.arange(len(scores))[:, None] * 20.0 + torch.tensor([0.0, 0.0, 10.0, 10.0]) + shift
    return Detections(torch.tensor(scores), torch.tensor(labels or [0] * len(scores)), corners)


def test_what_is_lost_counts_confident_detections_most():
    def lost(*pairs):
        agreement = Agreement()
        for pair in pairs:
            agreement.add(*pair)
        return agreement.lost

    mine = detections([0.9, 0.5, 0.1])
    assert lost((mine, mine)) == pytest.approx(0, abs=1e-6)
    assert lost((mine, detections([0.45, 0.25, 0.05]))) == pytest.approx(
        0, abs=1e-6
    )  # every score by one factor
    weak, strong = lost((mine, detections([0.9, 0.5, 0.3]))), lost((mine, detections([0.1, 0.5, 0.1])))
    assert 0 < weak < strong
    assert lost((mine, detections([0.9, 0.5, 0.1], shift=1.0))) == pytest.approx(1 - 81 / 119, abs=1e-6)
    assert lost((mine, detections([0.9, 0.5, 0.1], labels=[1, 1, 1]))) == 1
    assert lost((mine, mine), (mine, detections([]))) > 0.2
    assert lost((detections([]), detections([]))) == 0


def test_masks_that_are_lost_count_by_the_score_of_their_query():
    logits = torch.tensor([[[4.0, 0.0], [-4.0, 0.0]]])  # the second query is "no object"

    def predictions(masks):
        return Predictions(logits, torch.zeros(1, 2, 4), {}, lambda image, query: masks[query])

    masks = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]]] * 2)
    assert masks_lost(predictions(masks), predictions(masks)) == pytest.approx(0, abs=1e-6)
    first, second = masks.clone(), masks.clone()
    first[0, 0, 0] = second[1, 0, 0] = -1.0
    assert masks_lost(predictions(masks), predictions(first)) > 0.4
    assert 0 < masks_lost(predictions(masks), predictions(second)) < 0.02
    assert masks_lost(Predictions(logits, torch.zeros(1, 2, 4)), predictions(masks)) == 0


def test_masks_in_16_bits_are_judged_by_their_pixels():
    found = Comparison(images=1, masks=1.31, masks_lost=[0.002, 0.004]).to_dict()
    assert found["masks_lost"] == pytest.approx(0.003)
    assert judged(found, [], None, LIMITS["fp16"], exact=False) == []
    assert "a mask's logit differs by 1.31" in judged(found, [], None, LIMITS["fp32"], exact=True)[0]
    found["masks_lost"] = 0.03
    assert (
        "pixels of masks are lost, as a share, by 0.03" in judged(found, [], None, LIMITS["fp16"], False)[0]
    )
    assert judged(found, [], None, LIMITS["int8"], exact=False) == []
    assert Comparison().to_dict()["masks_lost"] is None


def test_the_certificate_of_8_bits_is_judged_by_ap(tmp_path):
    folder = data(tmp_path / "data", images=4)
    graph = graphs()[1]
    facts = facts_of_graph(graph)
    drawn = export_images(detector(), folder, CONTRACT, True)
    calibrated = [inputs_of(facts, batch) for batch in drawn.calibration()]
    assert [inputs["images"].shape for inputs in calibrated] == [(1, 3, 64, 64)]
    made = reduced(graph, "int8", exact_but("encoder"), calibrated)
    told = json.loads(made.metadata_props[0].value) | {"precision": "int8"}
    made.metadata_props[0].value = json.dumps(told)
    path = written(tmp_path / "model.onnx", made)
    full = written(tmp_path / "full.onnx")
    found = certified(detector(), path, CONTRACT, folder, zoo.Silent(), ["decoder"], None, full)
    assert found["precision"] == "int8"
    assert found["kept_in_float32"] == ["decoder"]
    lost = -found["scores"]["AP"]["difference"]
    assert found["passed"] == (
        lost <= found["limits"]["ap"] and -found["scores"]["AP50"]["difference"] <= 1e-2
    )
    assert found["limits"]["logits"] is None
    assert set(found["milliseconds"]) == {"pytorch", "onnxruntime", "onnxruntime fp32"}
    assert found["scores"]["images"] == found["images"]["scored"]["images"] == 3
    found["search"] = {
        "costs": {"decoder": 0.5},
        "tried": [{"kept": 0, "passed": False, "failures": ["AP is 0"]}],
    }
    text = readable(found)
    assert "in turns: pytorch" in text
    assert "1 thread" in text
    assert "Learned from 1 images: the rest: of its only split 20%" in text
    assert "| decoder | 0.5000 |" in text
    assert "- 0 of 1 parts kept in float32: failed, AP is 0" in text


def with_training_images(folder, copies):
    """Four training images more, the first of which are scored ones: under another name, as another file."""
    content = json.loads((folder / "annotations" / "instances_val.json").read_text())
    (folder / "train").mkdir()
    for number in range(4):
        picture = Image.open(folder / "val" / f"{number}.png")
        if number >= copies:
            picture = picture.rotate(180)
        picture.save(folder / "train" / f"t{number}.png")
        content["images"][number]["file_name"] = f"t{number}.png"
    content["images"] = content["images"][:4]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] < 4]
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return folder


def names(index):
    return set(index.files.tolist())


def test_what_is_learned_from_is_never_scored(tmp_path):
    one = data(tmp_path / "one", images=10)
    drawn = export_images(detector(), one, CONTRACT, True)
    scored = drawn.data.read().splits["val"]
    assert (len(scored), len(drawn.learned)) == (8, 2)
    assert not names(scored) & names(drawn.learned)
    again = export_images(detector(), one, CONTRACT, True)
    assert again.facts == drawn.facts
    assert drawn.facts["scored"]["digest"] != drawn.facts["learned"]["digest"]
    whole = export_images(detector(), one, CONTRACT, False)
    assert whole.learned is None
    assert whole.facts["scored"]["images"] == 10

    two = with_training_images(data(tmp_path / "two", images=5), copies=1)
    drawn = export_images(detector(), two, CONTRACT, True)
    assert drawn.facts["scored"]["images"] == 5
    assert names(drawn.learned) == {"train/t1.png", "train/t2.png", "train/t3.png"}
    assert "3 of 4 images of its train split" in drawn.facts["learned"]["kind"]

    same = with_training_images(
        data(tmp_path / "same", images=5), copies=4
    )  # nothing to learn from but what is scored
    drawn = export_images(detector(), same, CONTRACT, True)
    assert (drawn.facts["scored"]["images"], drawn.facts["learned"]["images"]) == (4, 1)

    with pytest.raises(ValueError, match="give more"):
        export_images(detector(), data(tmp_path / "few", images=1), CONTRACT, True)


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
    free = replace_shape(facts_of_graph(graphs()[1]))
    batches = list(export_images(detector(), None, contract, True).calibration())
    assert {inputs_of(free, batch)["images"].shape for batch in batches} == {(1, 3, 64, 85), (1, 3, 85, 64)}
    assert all(batch.images.any() for batch in batches)


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

    monkeypatch.setattr("zoo.runs.certify.evaluated", evaluated)
    monkeypatch.setattr("zoo.runs.export.evaluated", evaluated)
    monkeypatch.setattr("zoo.runs.export.exported", lambda *_, **__: graphs())
    monkeypatch.setattr(certificate, "judged", lambda *a: ["no"] if len(asked) < 3 else judge(*a))
    monkeypatch.setattr("zoo.exporting.reduced.SHARE", 1)  # three parts
    folder = data(tmp_path / "data", images=4)
    document = export(
        detector(), output=tmp_path / "out", data=folder, precision="fp16", console=zoo.Silent()
    )
    assert asked[:3] == ["pytorch", "onnxruntime", "onnxruntime"]
    assert asked.count("pytorch") == 1
    assert set(document["search"]["costs"]) == {"backbone", "encoder", "decoder"}
    assert document["search"]["tried"][0] == {"kept": 0, "passed": False, "failures": ["no"]}
    assert (tmp_path / "out" / "model.onnx").is_file() == document["passed"]
