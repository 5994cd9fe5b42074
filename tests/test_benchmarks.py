"""The benchmarks run and print what they promise; how fast anything is, is not asserted."""

import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from registry_case import tiny_checkpoint

pytest.importorskip("transformers")
ROOT = Path(__file__).parents[1]
ALWAYS = {"family", "size", "ours_ms", "transformers_ms", "ratio_transformers", "ratios", "transfers"}


def output(script: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def rows(script: str, *arguments: str) -> list[dict]:
    return json.loads(output(script, "--tiny", "--json", *arguments).splitlines()[-1])["rows"]


def document(script: str, *arguments: str) -> dict:
    return json.loads(output(script, *arguments))


def rows_here(
    script: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> list[dict]:
    """In this process, which has imported torch and transformers."""
    monkeypatch.setattr(sys, "argv", [script, "--tiny", "--json", *arguments])
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as for a script
    runpy.run_path(str(ROOT / "benchmarks" / script), run_name="__main__")
    return json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]


def assert_schema(row: dict) -> None:
    assert set(row) >= ALWAYS
    assert all(row[name] > 0 for name in ("ours_ms", "transformers_ms", "ratio_transformers"))
    assert row["transfers"] == 1


def test_loss(capsys, monkeypatch):
    found = rows_here("loss.py", capsys, monkeypatch, "--rounds", "1")
    assert [row["family"] for row in found] == [
        "detr",
        "deformable_detr",
        "rt_detr",
        "rt_detrv2",
        "deim",
        "dfine",
    ]
    for row in found:
        assert_schema(row)
        assert row["loss_difference"] < 1e-4
        assert row["gradient_difference"] < 1e-4


def test_loss_growth(capsys, monkeypatch, tmp_path):
    found = rows_here("loss_growth.py", capsys, monkeypatch, "--rounds", "1")
    assert len(found) == 10
    for row in found:
        assert 0 < row["low"] <= row["ratio"] <= row["high"]
        assert row["ours_mb"] > 0
        assert row["transformers_mb"] > 0
    written, picture = tmp_path / "rows.json", tmp_path / "growth.svg"
    written.write_text(json.dumps({"rows": found}))
    monkeypatch.setattr(sys, "argv", ["loss_growth.py", "--plot", str(written), str(picture)])
    runpy.run_path(str(ROOT / "benchmarks" / "loss_growth.py"), run_name="__main__")
    assert "svg" in picture.read_text()


def test_loss_profile(capsys, monkeypatch):
    given = ("--rounds", "2", "--families", "detr", "dfine")
    found = rows_here("loss_profile.py", capsys, monkeypatch, *given)
    for family in ("detr", "dfine"):
        own = {row["operator"]: row for row in found if row["family"] == family}
        assert own["aten::_log_softmax"]["calls"] >= 1
        assert not own.keys() & {
            "aten::log1p",
            "aten::softplus",
        }  # ten times as long in torch 2.14
        assert all(row["ms"] >= 0 for row in own.values())


def test_data_check():
    found = rows("data_check.py", "--rounds", "1")
    assert found[0]["way"] == "PIL loop"
    assert len(found) == 5
    for row in found:
        assert all(row[name] > 0 for name in ("cpu_ms_per_image", "images_per_second", "cpu_over_pil"))


@pytest.mark.slow
def test_mask_head():
    """Ratios of tensors that are alive are exact, not timed: few matched queries cost less than all of them."""
    found = rows("mask_head.py", "--float64")
    assert [row["path"] for row in found] == ["all enlarged", "all run, matched enlarged", "matched", "ours"]
    for row in found:
        assert row["gradient_difference"] < 1e-12
        assert row["tensors_mb"] > 0
        assert row["resident_mb"] > 0
    assert found[-1]["ratio_tensors"] < 0.4


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["detr_r50", "deformable_detr_r50", "rt_detr_r18", "rt_detrv2_s", "dfine_s"]
)
def test_inference(family):
    """The networks are equal; a family that is not ends the run."""
    found = rows("inference.py", "--rounds", "2", "--families", family)
    assert [row["way"] for row in found][:2] == ["transformers", "PyTorch"]
    for row in found:
        assert row["family"] == family
        assert row["cpu_ms"] > 0
        # the selection of queries has near ties with random weights, which another kernel decides otherwise
        if row["way"] == "PyTorch" or (family.startswith("de") and row["way"] != "OpenVINO bf16"):
            assert row["median_difference"] < 1e-4
            assert row["other_queries"] == 0
        low, high = row["ratio_range"]
        assert 0 < low <= row["ratio"] <= high
    assert found[0]["ratio_range"] == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["rt_detr", "deimv2"])
def test_exported(family, tmp_path):
    """onnxruntime, OpenVINO and transformers find alone what the source finds; the script ends with 1 if not."""
    random = np.random.default_rng(0)
    for number in range(2):
        spots = Image.fromarray(random.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        spots.resize((640, 480), Image.Resampling.BICUBIC).save(tmp_path / f"{number}.png")
    given = ("--images", str(tmp_path), "--count", "2", "--families", family)
    found = json.loads(output("exported.py", "--json", *given).splitlines()[-1])["rows"]
    assert [row["form"] for row in found] == ["onnx", "openvino", "transformers"][: len(found)]
    assert len(found) == 2 + (family == "rt_detr")
    for row in found:
        assert row["same"]
        assert row["detections"] > 10
        assert 0.05 < row["ap"]["source"] < 0.95


@pytest.mark.slow
def test_gpu():
    """Every part gives rows without an error, each in a process of its own."""
    found = document("gpu.py", "--tiny")
    assert list(found["parts"]) == ["machine", "goldens", "capture", "images", "training", "inference"]
    for name, part in found["parts"].items():
        assert part["rows"], name
        assert "error" not in part
        assert not [row for row in part["rows"] if "error" in row]
    rows = {name: part["rows"] for name, part in found["parts"].items()}
    assert all(row["passed"] for row in rows["goldens"])
    assert all(row["training_finite"] and row["evaluation_difference"] < 1e-4 for row in rows["capture"])
    assert all(row["distort_and_normalise_difference"] == 0 for row in rows["images"])
    assert all(row["ours"]["ms"] > 0 and row["transformers"]["ms"] > 0 for row in rows["training"])
    assert [row.get("way") for row in rows["inference"]] == [
        None, "transformers, eager", "ours, eager", "ours, compiled, CUDA graphs"
    ]  # fmt: skip


def test_gpu_goes_on_past_a_part_that_fails(monkeypatch):
    """An error in a row, one of a part, a process that dies, and one that hangs."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    assert sum(seconds for _, seconds in gpu.PARTS.values()) <= 480

    def rows_then(end):
        def part(setting):
            yield gpu.attempt({"row": 1}, lambda: {"value": 1 / 0})
            yield {"row": 2}
            end()

        return part, 60.0

    ends = {
        "raises": lambda: [][1],
        "dies": lambda: os._exit(3),
        "hangs": lambda: time.sleep(60),
        "ends": int,
    }
    monkeypatch.setattr(gpu, "PARTS", {name: rows_then(end) for name, end in ends.items()})
    found = {name: gpu.run_part(name, "cpu", True, 1.0 if name == "hangs" else 60.0, "fork") for name in ends}
    for name in ("raises", "dies", "ends"):
        zero = {"row": 1, "error": "ZeroDivisionError: division by zero"}
        assert found[name]["rows"][:2] == [zero, {"row": 2}]
    assert found["raises"]["rows"][2] == {"error": "IndexError: list index out of range"}
    assert found["dies"]["error"] == "its process ended with exit code 3"
    assert gpu.run_part("no such part", "cpu", True, 60.0, "fork")["rows"] == [
        {"error": "KeyError: 'no such part'"}
    ]
    assert found["hangs"]["error"] == "stopped after 1 s; the rows were done by then"
    assert "error" not in found["ends"]


@pytest.mark.slow
def test_gpu_gives_the_same_from_a_process_that_imports_everything_again(monkeypatch):
    """As it is started where there is a GPU."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    found = gpu.run_part("machine", "cpu", True, 300.0, "spawn")
    assert "error" not in found
    assert found["rows"][0]["matrix_tflops"]["float32"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", ["detr", "deformable_detr", "rt_detr", "dfine"])
def test_train_step(family):
    (row,) = rows("train_step.py", "--rounds", "1", "--side", "64", "--families", family)
    assert row["family"] == family
    assert_schema(row)
    ours, theirs = row["trained_parameters"]
    assert ours == theirs


@pytest.mark.slow
@pytest.mark.parametrize(("family", "own"), [("detr", []), ("dfine", ["attention", "moving average"])])
def test_step_parts(family, own):
    found = rows("step_parts.py", "--rounds", "1", "--side", "64", "--families", family)
    assert [row["part"] for row in found] == ["all on", "optimizer", "oneDNN", "frozen norm", *own, "loss"]
    assert all(row["ratio"] > 0 for row in found)


def test_data_padding(capsys, monkeypatch):
    found = rows_here("data_padding.py", capsys, monkeypatch)
    ratios = {(row["policy"], row["batch_size"]): row["ratio"] for row in found}
    assert all(ratio >= 1 for ratio in ratios.values())
    for size in (2, 4, 8, 16):
        assert ratios["bucketing 16", size] < ratios["as published", size]


@pytest.mark.slow
def test_data_loader():
    found = rows("data_loader.py", "--workers", "1")
    assert [row["pipeline"] for row in found] == [
        "CocoDetection, PIL, float", "ours, normalised float", "ours, uint8", "ours, uint8, shards"
    ]  # fmt: skip
    for row in found:
        assert row["images"] == 16
        assert all(row[name] > 0 for name in ("cpu_ms", "main_ms", "wall_ms", "cpu_ratio", "wall_ratio"))


@pytest.mark.slow
def test_data_index():
    (row,) = rows("data_index.py", "--rounds", "1")
    assert row["compare"]["mismatches"] == 0
    assert row["compare"]["outlines"] > 0
    assert row["convert"]["boxes"] == row["compare"]["boxes"] == 150_000
    assert {"open_ms", "import_ms"} <= set(row["open"])
    assert row["workers"]["pickled_bytes"] < 500


@pytest.mark.slow
def test_data_transforms():
    found = rows("data_transforms.py", "--rounds", "1")
    chains = [row["chain"] for row in found]
    assert chains.count("DETR train") == 4
    official = {"DETR train", "DETR val", "RT-DETR train", "RT-DETR val"}
    assert set(chains) == {*official, "RT-DETR train, 2000x1500"}
    assert all(row["ms"] > 0 and row["ratio"] > 0 for row in found)


@pytest.mark.slow
def test_tiles():
    lines = output("tiles.py", "memory", "--images", "12").splitlines()
    assert {"tiles", "MB", "ms"} == set(json.loads(lines[0]))
    assert lines[-1].startswith("| 12 |")


@pytest.mark.slow
def test_panoptic_overfit(test_data, tmp_path):
    folder = test_data / "coco_panoptic"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    [row] = rows("panoptic_overfit.py", str(folder), "--picture", str(tmp_path / "found.png"))
    assert {"step", "loss", "PQ", "SQ", "RQ", "AP", "segm_AP", "cpu_seconds"} <= set(row)
    assert (tmp_path / "found.png").is_file()


@pytest.mark.slow
def test_survival():
    """Kills at random moments change nothing; the table of many is benchmarks/SURVIVAL.md."""
    command = [sys.executable, str(ROOT / "benchmarks" / "survival.py"), "--quick", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert [row["differences"] for row in told["rows"]] == [[]] * len(told["rows"])
    assert told["kills"] == 2 * len(told["rows"]) >= 6
    assert told["resumes"] == told["kills"]
    assert told["records_lost"] == told["differences"] == 0


def test_finetune_compares_arms_of_the_same_seed():
    script = runpy.run_path(str(ROOT / "benchmarks" / "finetune.py"), run_name="finetune")
    common = {"data": "d", "steps": 300, "AP50": 0.5, "cpu_s": 10.0}
    rows = [
        {"arm": arm, "seed": seed, "AP": ap, **common}
        for arm, scores in (("defaults", (0.50, 0.52, 0.54)), ("no EMA", (0.49, 0.50, 0.51)))
        for seed, ap in reversed(list(enumerate(scores)))
    ]
    _, _, defaults, other = script["table"](rows)
    # Student's t of two degrees of freedom: 4.303 * 0.02 / sqrt(3)
    assert defaults == "| d | 300 | defaults | 0.500 0.520 0.540 | 0.520 ± 0.050 | 0.500 ± 0.000 |  | 10 |"
    assert "| 0.490 0.500 0.510 | 0.500 ± 0.025 | 0.500 ± 0.000 | -0.020 ± 0.025 | 10 |" in other
    steps = 40  # five epochs of eight steps
    assert script["options"]("no EMA", Path("nowhere"), steps) == ["--model.init_args.ema", "null"]
    rules = json.loads(script["options"]("class heads at the common rate", Path("nowhere"), steps)[1])
    assert len(rules) == 2
    assert all("score_head" not in rule["match"] for rule in rules)


def test_report(capsys, monkeypatch):
    arguments = ["--images", "30", "--objects", "150", "--detections", "900", "--compare"]
    monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
    runpy.run_path(str(ROOT / "benchmarks" / "report.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("  ")[0] for line in lines if "most memory" in line] == [
        "numbers", "numbers again, and page", "difference of two",
    ]  # fmt: skip
    assert lines[-1].endswith("s CPU in all")


@pytest.mark.slow
def test_serving(tmp_path):
    tiny_checkpoint(tmp_path / "model.ckpt")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    for number, values in enumerate(pixels):
        Image.fromarray(values).save(tmp_path / "images" / f"{number}.png")
    asked = ["--images", str(tmp_path / "images"), "--requests", "20", "--threshold", "0", "--loop", "3"]
    lines = output("serving.py", str(tmp_path / "model.ckpt"), *asked, "--clients", "2", "--batch-sizes", "2")
    loop, row = map(json.loads, lines.splitlines())
    assert loop["requests"] == 3
    assert (row["requests"], row["lost"], row["wrong"]) == (20, 0, 0)
