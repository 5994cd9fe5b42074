"""`zoo bench` runs what it says it runs; how fast anything is, is not asserted."""

import json
from pathlib import Path

import exported_case
import pytest
import torch
from mask_case import INPUT as MASK_INPUT
from mask_case import LABELS as MASK_LABELS
from mask_case import mask_module
from registry_case import INPUT, MODEL, tiny_checkpoint, write_checkpoint
from tiny_sets import CLASSES, write_coco

from zoo.cli.main import run_command
from zoo.contract.batch import unlabelled
from zoo.contract.labels import LabelMap
from zoo.runs import bench as benching
from zoo.runs import bench_arguments
from zoo.runs.bench import published_speed
from zoo.runs.bench_arguments import made_up_images
from zoo.runs.bench_cases import cases_of, compiled_network
from zoo.runs.subject import load
from zoo.runs.timing import Laps, Times, in_turns, percentile
from zoo.runtimes.onnx import OnnxSession
from zoo.training.module import DetectionModule, build_module

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_run_a_turn(monkeypatch):
    monkeypatch.setattr(benching, "TURN_SECONDS", 0.0)
    monkeypatch.setattr("zoo.runs.timing.PAUSE_SECONDS", 0.0)


@pytest.fixture
def checkpoint():
    tiny_checkpoint("tiny.ckpt")
    return "tiny.ckpt"


@pytest.fixture
def two_layers():
    """A checkpoint of two decoder layers, of the classes of `tiny_sets`."""
    arguments = {**MODEL["init_args"], "num_classes": len(CLASSES)}
    arguments["decoder"] = {**arguments["decoder"], "num_layers": 2, "eval_layers": 2}
    module = build_module({**MODEL, "init_args": arguments})
    write_checkpoint("two.ckpt", module, LabelMap.contiguous(list(CLASSES), [3, 5]), INPUT, 20)
    return "two.ckpt"


def document(capsys, *arguments, runtimes="pytorch") -> dict:
    more = [] if runtimes is None else ["--runtimes", runtimes]
    assert run_command(["bench", *arguments, "--json", "--rounds", "2", "--device", "cpu", *more]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("count", "index"), [(1, 0), (2, 1), (50, 49), (100, 98), (101, 99), (1000, 989)])
def test_percentile(count, index):
    values = list(range(count))
    assert percentile(values[::-1], 0.99) == index


def test_turns_go_back_and_forth_and_the_first_run_does_not_count():
    order = []

    def contestant(name):
        laps = Laps(CPU)

        def run():
            order.append(name)
            laps.begin()
            laps.end("only")

        return run, laps

    contestants = [contestant("a"), contestant("b")]
    in_turns(contestants, rounds=3, seconds=0.0)
    assert "".join(order) == "aabbbbaaaabb"
    assert [len(laps.stages["only"].wall) for _, laps in contestants] == [3, 3]


def test_stages_add_up_run_by_run():
    laps = Laps(CPU)
    laps.stages["one"] = Times([1.0, 2.0], [3.0, 4.0])
    laps.stages["two"] = Times([10.0, 30.0], [10.0, 10.0])
    assert laps.together() == Times([11.0, 32.0], [13.0, 14.0])


def test_every_way_has_a_row(two_layers, capsys):
    found = document(
        capsys, two_layers, "--batch-sizes", "1,3", "--decoder-layers", "2,1", "--precision", "fp32,bf16"
    )
    ways = [(r["decoder_layers"], r["precision"], r["batch_size"]) for r in found["rows"]]
    assert ways == [(n, p, b) for n in (2, 1) for p in ("fp32", "bf16") for b in (1, 3)]
    for row in found["rows"]:
        assert row["runs"] == 2
        assert row["runtime"] == "PyTorch"
        assert 0 < row["network"]["median_ms"] <= row["network"]["p99_ms"]
        assert row["network"]["median_ms"] < row["pipeline"]["median_ms"] <= row["pipeline"]["p99_ms"]
        assert set(row["stages_ms"]) == {"decode", "resize", "normalise", "network", "post-processing"}
    assert found["published"] == {"two.ckpt": None}
    assert found["conditions"]["threads"] == torch.get_num_threads()


def test_the_network_runs_in_the_layers_and_precision_of_its_row(two_layers, capsys, monkeypatch):
    seen = []
    whole = DetectionModule.predictions

    def predictions(module, batch):
        layers = module.set_decoder_layers(1)
        module.set_decoder_layers(layers)
        half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        seen.append((layers, half, tuple(batch.images.shape), batch.images.dtype))
        return whole(module, batch)

    monkeypatch.setattr(DetectionModule, "predictions", predictions)
    document(capsys, two_layers, "--batch-sizes", "3", "--decoder-layers", "1,2", "--precision", "bf16,fp32")
    kinds = [(n, p, (3, 3, 64, 64), torch.float32) for n in (1, 2) for p in (torch.bfloat16, False)]
    warm_up = [kind for kind in kinds for _ in range(benching.WARM_UP_RUNS)]
    there, back = ([kind for kind in order for _ in range(2)] for order in (kinds, kinds[::-1]))
    assert seen == warm_up + there + back


def test_a_compiled_network_finds_what_the_network_finds(checkpoint):
    torch._dynamo.reset()
    detector = load(checkpoint)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    batch = detector.module.normalized(unlabelled(list(images), [(64, 64)] * 2))
    found, expected = (
        compiled_network(detector.module, backend="eager")(batch),
        detector.module.predictions(batch),
    )
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.boxes, expected.boxes)
    ways = [c.runtime for c in cases_of(detector, [1], ["fp32"], [1], True, CPU)]
    assert ways == ["PyTorch", "PyTorch, compiled"]


def test_without_a_compiler_a_line_says_so_and_the_rest_is_timed(checkpoint, capsys, monkeypatch):
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda _, **k: whole(lambda images, _: images + 1, fullgraph=True))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    found = document(capsys, checkpoint, "--batch-sizes", "1", "--compile")
    assert [row["runtime"] for row in found["rows"]] == ["PyTorch"]
    [left_out] = found["left_out"]
    assert left_out["case"] == "PyTorch, compiled, fp32, 1 decoder layer, batch 1"
    assert "No working C++ compiler found" in left_out["reason"]
    assert "\n" not in left_out["reason"]


def test_ap_against_time(two_layers, capsys):
    write_coco(Path("data"))
    found = document(
        capsys,
        two_layers,
        "--batch-sizes",
        "1,2",
        "--decoder-layers",
        "2,1",
        "--data",
        "data",
        "--output",
        "out",
    )
    scores = [(row["decoder_layers"], row["AP"], row["images"]) for row in found["rows"]]
    assert [(n, images) for n, _, images in scores] == [(2, 3), (2, 3), (1, 3), (1, 3)]
    assert all(0 <= ap <= 1 for _, ap, _ in scores)
    with open(found["plot"], "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    assert found["plot"] == "out/bench.png"


def test_data_of_other_classes_are_refused_before_anything_is_timed(checkpoint, capsys):
    write_coco(Path("data"))
    assert (
        run_command(["bench", checkpoint, "--data", "data", "--device", "cpu", "--runtimes", "pytorch"]) == 2
    )
    assert "do not have the same classes" in capsys.readouterr().err


def test_a_file_is_made_for_every_number_of_layers(two_layers, capsys, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    seen = []

    def graphs(detector, contract, decoder_layers):
        now = detector.module.set_decoder_layers(1)
        detector.module.set_decoder_layers(now)
        seen.append((now, decoder_layers, contract == detector.input))
        return exported_case.graphs()

    monkeypatch.setattr("zoo.runs.bench_cases.exported", graphs)
    found = document(
        capsys, two_layers, "--batch-sizes", "2", "--decoder-layers", "1,2", runtimes="onnxruntime,openvino"
    )
    assert seen == [(1, 1, True), (2, 2, True)]
    assert {row["model"] for row in found["rows"]} == {two_layers}
    ways = [("ONNX Runtime", 2), ("OpenVINO", 2)]
    assert [(row["runtime"], row["batch_size"]) for row in found["rows"]] == ways * 2


@pytest.mark.slow
def test_onnx_runtime_runs_the_layers_of_its_row_and_has_an_ap_of_its_own(two_layers, capsys, monkeypatch):
    pytest.importorskip("onnxscript")
    write_coco(Path("data"))
    seen = []
    whole = OnnxSession.run

    def run(session, inputs):
        seen.append((session.facts.decoder_layers, inputs["images"].shape, inputs["images"].dtype.name))
        return whole(session, inputs)

    monkeypatch.setattr(OnnxSession, "run", run)
    found = document(
        capsys, two_layers, "--batch-sizes", "1", "--decoder-layers", "2,1", "--data", "data", runtimes=None
    )
    scores = {(row["runtime"], row["decoder_layers"]): row["AP"] for row in found["rows"]}
    assert set(scores) == {
        (runtime, n) for runtime in ("PyTorch", "ONNX Runtime", "OpenVINO") for n in (2, 1)
    }
    for layers in (1, 2):
        assert scores["OpenVINO", layers] == pytest.approx(scores["PyTorch", layers], abs=1e-3)
        assert scores["ONNX Runtime", layers] == pytest.approx(scores["PyTorch", layers], abs=1e-6)
    assert {layers for layers, shape, _ in seen if shape[0] == 1} == {1, 2}
    assert {dtype for _, _, dtype in seen} == {"uint8"}
    assert {row["model"] for row in found["rows"]} == {two_layers}


def test_an_exported_file_is_timed_as_it_is(capsys):
    pytest.importorskip("onnxscript")
    exported_case.written(Path("model.onnx"))
    found = document(capsys, "model.onnx", "--batch-sizes", "1,2", "--precision", "fp32,bf16")
    rows = [(r["model"], r["runtime"], r["precision"], r["batch_size"]) for r in found["rows"]]
    assert rows == [("model.onnx", "ONNX Runtime", "fp32", 1), ("model.onnx", "ONNX Runtime", "fp32", 2)]


def test_without_the_libraries_of_export_a_line_says_so(checkpoint, capsys, monkeypatch):
    monkeypatch.setitem(bench_arguments.NEEDED, "onnxruntime", ("json", "no_such_library"))
    monkeypatch.setitem(bench_arguments.NEEDED, "openvino", ("no_such_library", "no_such_other"))
    assert run_command(["bench", checkpoint, "--device", "cpu", "--rounds", "1", "--json"]) == 0
    told = capsys.readouterr()
    assert {row["runtime"] for row in json.loads(told.out)["rows"]} == {"PyTorch"}
    assert "without ONNX Runtime, which needs no_such_library: pip install 'detr-zoo[export]'" in told.err
    assert "without OpenVINO, which needs no_such_library, no_such_other: pip install" in told.err


def test_masks_are_timed_one_image_at_a_time(capsys):
    write_checkpoint("masks.ckpt", mask_module(), MASK_LABELS, MASK_INPUT, 20)
    command = ["bench", "masks.ckpt", "--rounds", "1", "--device", "cpu", "--runtimes", "pytorch"]
    assert run_command([*command, "--compile", "--json"]) == 0
    told = capsys.readouterr()
    assert [(r["batch_size"], r["runtime"]) for r in json.loads(told.out)["rows"]] == [(1, "PyTorch")]
    assert "masks.ckpt: masks are made one image at a time" in told.err


def test_own_images(checkpoint, capsys, tmp_path):
    (tmp_path / "one.jpg").write_bytes(made_up_images()[0])
    found = document(capsys, checkpoint, "--batch-sizes", "2", "--images", "one.jpg")
    assert found["conditions"]["images"] == "one.jpg"
    assert "1 image: one.jpg" in found["conditions"]["how"]


def test_threads_are_those_asked_for_and_given_back(checkpoint, capsys):
    before = torch.get_num_threads()
    found = document(capsys, checkpoint, "--batch-sizes", "1", "--threads", str(before + 1))
    assert found["conditions"]["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_the_published_row_stands_with_its_device():
    found = published_speed("rt_detr_r18.coco_72e:1")
    assert found == {"ms": pytest.approx(1000 / 217), "on": "T4, batch 1, TensorRT FP16"}
    assert published_speed("dfine_s.coco_132e:1") == {"ms": pytest.approx(3.49), "on": "T4, TensorRT FP16"}
    assert published_speed("my_model:3") is None
    assert published_speed("run/last.ckpt") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "--device 'tpu': there is cpu"),
        (["--device", "cuda:99"], "--device 'cuda:99': there is cpu"),
        (["--batch-sizes", "1,"], "--batch-sizes '1,': give numbers of images from 1 to 1024, as in 1,8"),
        (["--batch-sizes", "0"], "--batch-sizes '0': give numbers of images"),
        (["--precision", "fp8"], "--precision 'fp8': give some of fp32,bf16,fp16"),
        (["--decoder-layers", "2"], "--decoder-layers '2': give numbers from 1 to 1"),
        (["--runtimes", "tensorrt"], "--runtimes 'tensorrt': give some of pytorch,onnxruntime,openvino"),
        (["--images", "nowhere"], "nowhere is neither a file nor a folder"),
    ],
)
def test_wrong_arguments_are_one_line(checkpoint, capsys, arguments, message):
    assert run_command(["bench", checkpoint, "--device", "cpu", "--runtimes", "pytorch", *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
