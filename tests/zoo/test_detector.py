import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from file_server import FileServer
from PIL import Image
from registry_case import INPUT, LABELS, tiny_checkpoint, tiny_module

import zoo
from zoo.contract.batch import Detections
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.detector import Detector
from zoo.prediction.image_input import read_rgb
from zoo.runs import subject as loading


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 255, (40, 90, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def detector():
    module = tiny_module()
    module.adopt(LABELS, InputContract.from_dict(INPUT))
    return Detector(module, "tiny")


def encoded(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_path_bytes_picture_and_tensor_give_the_same(detector, picture, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture))
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), encoded(picture), picture, tensor]
    first, *others = [detector.predict(form, threshold=0.0) for form in forms]
    assert len(first) > 0
    assert all(other == first for other in others)
    assert first.size == (40, 90)


def fixed(detector, monkeypatch, scores, heads, boxes):
    found = Detections(torch.tensor(scores), torch.tensor(heads), torch.tensor(boxes))
    monkeypatch.setattr(detector.module, "detect", lambda batch: [found])


def test_a_notebook_shows_the_image_with_what_was_found(detector, picture, tmp_path, monkeypatch):
    fixed(detector, monkeypatch, [0.9], [1], [[10.0, 10, 50, 35]])
    (tmp_path / "a.png").write_bytes(encoded(picture))
    prediction = detector.predict(tmp_path / "a.png")
    shown = Image.open(io.BytesIO(prediction._repr_png_())).convert("RGB")
    assert shown.tobytes() == prediction.paint(picture).tobytes()
    without = detector.predict(tmp_path / "a.png", threshold=0.95)
    assert shown.tobytes() != without.paint(picture).tobytes()
    assert pickle.loads(pickle.dumps(prediction)) == prediction
    (tmp_path / "a.png").unlink()
    assert prediction._repr_png_() is None, "then its text is shown"
    assert detector.predict(picture)._repr_png_() is None


def test_an_image_of_the_own_network_is_fetched_when_that_is_said(detector, picture):
    with FileServer() as server:
        server.files["/a.png"] = encoded(picture)
        address = f"{server.url}/a.png"
        with pytest.raises(ConnectionError, match="allow_private=True"):
            detector.predict(address)
        assert server.requests == []
        prediction = detector.predict(address, threshold=0.0, allow_private=True)
        assert [prediction] == detector.predict([address], threshold=0.0, allow_private=True)
        assert prediction.to_dict() == detector.predict(picture, threshold=0.0).to_dict()
        with pytest.raises(ConnectionError, match="allow_private=True"):
            prediction.paint(address)
        shown = prediction.paint(address, allow_private=True)
    assert shown.tobytes() == prediction.paint(picture).tobytes()


def test_a_prediction_carries_names_source_ids_and_the_label_map(detector, picture, monkeypatch):
    fixed(
        detector, monkeypatch, [0.9, 0.5, 0.2], [1, 2, 0], [[-3.0, 1, 20, 30], [5, 5, 95, 41], [0, 0, 1, 1]]
    )
    prediction = detector.predict(picture, threshold=0.5)
    assert prediction.to_dict() == {
        "model": "tiny",
        "height": 40,
        "width": 90,
        "threshold": 0.5,
        "detections": [
            {
                "label": "square",
                "source_id": 3,
                "score": pytest.approx(0.9),
                "box_xyxy": [0.0, 1.0, 20.0, 30.0],
            },
            {"label": "no", "source_id": 12, "score": 0.5, "box_xyxy": [5.0, 5.0, 90.0, 40.0]},
        ],
        "label_map": LABELS.to_dict(),
    }
    assert prediction.to_detections().labels.tolist() == [1, 2]


def test_a_head_index_without_a_class_is_left_out(detector, picture, monkeypatch):
    detector.label_map = LabelMap(("disc", "square"), (7, 3), (0, 2), 3)
    fixed(detector, monkeypatch, [0.9, 0.8], [1, 2], [[0.0, 0, 1, 1], [0, 0, 2, 2]])
    assert detector.predict(picture).labels == ["square"]


def test_boxes_are_those_of_the_upright_picture(detector, picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert detector.predict(tmp_path / "turned.jpg").size == (90, 40)
    assert read_rgb(tmp_path / "turned.jpg").size == (40, 90)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_other_colour_modes_are_converted(detector, picture, mode):
    converted = Image.fromarray(np.zeros((40, 90), np.uint16)) if mode == "I;16" else picture.convert(mode)
    assert detector.predict(converted).size == (40, 90)


@pytest.mark.parametrize(
    ("image", "error", "says"),
    [
        ("none.jpg", FileNotFoundError, r"none\.jpg"),
        (b"no picture", ValueError, "the data is not an image"),
        (torch.zeros(3, 4, 4), ValueError, r"float32 \[3, 4, 4\]"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), ValueError, r"\[4, 4, 3\]"),
    ],
)
def test_what_is_no_picture_is_a_clear_error(detector, image, error, says):
    with pytest.raises(error, match=says):
        detector.predict(image)


def test_a_cut_picture_and_an_impossible_threshold_are_errors(detector, picture, tmp_path):
    (tmp_path / "cut.png").write_bytes(encoded(picture)[:3000])
    with pytest.raises(ValueError, match=r"cut\.png is not an image"):
        detector.predict(tmp_path / "cut.png")
    for threshold in (-0.1, 30, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            detector.predict(picture, threshold)


def test_a_checkpoint_detects_as_its_module_does(detector, picture, tmp_path):
    tiny_checkpoint(tmp_path / "a.ckpt")
    loaded = Detector.from_checkpoint(tmp_path / "a.ckpt")
    assert loaded.predict(picture, 0.0).boxes_xyxy == detector.predict(picture, 0.0).boxes_xyxy
    assert not loaded.module.training


def test_a_module_that_never_met_its_data_is_refused():
    with pytest.raises(ValueError, match="no label map"):
        Detector(tiny_module(), "tiny")


def test_importing_zoo_and_listing_imports_no_torch():
    script = (
        "import sys, zoo; names = zoo.available()\n"
        "assert 'rt_detr_r18.coco_72e' in names, names\n"
        "assert not {'torch', 'lightning', 'mlflow', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_pictures_become_rgb_by_the_rule_of_training():
    """16-bit grey keeps its upper byte; PIL alone would clip it to white."""
    grey = Image.fromarray((np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16).astype(np.uint16))
    pixels = np.asarray(read_rgb(grey))
    assert pixels.shape == (64, 64, 3)
    assert pixels.max() == 255
    assert len(np.unique(pixels)) > 200


def test_arrays_give_what_the_picture_gives(detector, picture):
    pixels = np.array(picture)
    wanted = detector.predict(picture, 0.0)
    alpha = np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)])
    for form in (
        pixels,
        pixels[:, ::-1][:, ::-1],
        alpha,
        bytearray(encoded(picture)),
        memoryview(encoded(picture)),
    ):
        assert detector.predict(form, 0.0) == wanted
    grey = pixels[:, :, 0]
    shown = detector.predict(Image.fromarray(grey), 0.0)
    assert detector.predict(grey, 0.0) == detector.predict(grey[:, :, None], 0.0) == shown
    assert detector.predict(pixels[:, :, ::-1], 0.0) != wanted  # OpenCV's order is another picture


def test_a_list_gives_a_list(detector, picture, tmp_path):
    picture.save(tmp_path / "a.png")
    both = detector.predict([picture, tmp_path / "a.png"], 0.0)
    assert both == [detector.predict(picture, 0.0)] * 2
    assert detector.predict([]) == []


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((4, 4, 3)), "numpy array is uint8 with levels 0 to 255, not float64"),
        (np.zeros((4, 4), np.uint16), "not uint16"),
        (np.zeros((4, 4), bool), "not bool"),
        (np.zeros((3, 4, 8), np.uint8), r"not \[3, 4, 8\]; this looks like \[3, h, w\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"not \[2, 4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"not \[0, 4, 3\]"),
        (np.zeros((1, 70_000), np.uint8), "at most 65535 a side"),
        (Image.new("RGB", (0, 4)), "has no pixel"),
        (
            None,
            "a NoneType is not an image; give a path or address, encoded bytes, a PIL image, a numpy array",
        ),
        (3, "a int is not an image"),
        ({"a": 1}, "a dict is not an image"),
        (io.BytesIO(b""), "a BytesIO is not an image"),
        ([1, 2], "a int is not an image"),
        ("data:image/png;base64,AAAA", "the data URI is not an image"),
        ("x" * 10_000, "does not exist"),
        ("a\0b", "does not exist"),
    ],
    ids=lambda part: part if isinstance(part, str) and len(part) < 50 else "",
)
def test_anything_else_is_told_what_a_picture_may_be(detector, image, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says) as caught:
        detector.predict(image)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("threshold", ["0.3", True, [0.3]])
def test_a_threshold_is_a_number(detector, picture, threshold):
    with pytest.raises(ValueError, match="scores are numbers between 0 and 1"):
        detector.predict(picture, threshold)


def test_a_run_folder_has_the_thresholds_of_its_run(tmp_path):
    tiny_checkpoint(tmp_path / "best.ckpt")
    document = {"checkpoint": str(tmp_path / "best.ckpt"), "thresholds": None}
    (tmp_path / "metrics.json").write_text(json.dumps(document))
    assert zoo.load(tmp_path).thresholds is None
    chosen = {"chosen_for": "best F1", "split": "val", "all": 0.125, "classes": {LABELS.names[0]: 0.25}}
    (tmp_path / "metrics.json").write_text(json.dumps(document | {"thresholds": chosen}))
    loaded = zoo.load(tmp_path)
    assert loaded.default_threshold == 0.125
    assert loaded.thresholds.classes == {LABELS.names[0]: 0.25}
    assert zoo.load(tmp_path / "best.ckpt").default_threshold == 0.3
    (tmp_path / "metrics.json").write_text(json.dumps(document | {"thresholds": {"all": 2}}))
    with pytest.raises(ValueError, match="thresholds: "):
        zoo.load(tmp_path)


def test_load_takes_a_checkpoint_a_run_folder_and_a_name(detector, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = detector.predict(picture, 0.0).boxes_xyxy
    run = tmp_path / "run"
    run.mkdir()
    tiny_checkpoint(run / "best.ckpt")
    (run / "metrics.json").write_text(json.dumps({"checkpoint": str(run / "best.ckpt")}))
    for name in (run / "best.ckpt", "run/best.ckpt", run, "run", "./run"):
        assert zoo.load(name).predict(picture, 0.0).boxes_xyxy == wanted
    for name, says in (
        ("gone.ckpt", "no checkpoint or run folder gone.ckpt"),
        (tmp_path, "no run folder"),
        ("./gone", "no checkpoint or run folder"),
    ):
        with pytest.raises(FileNotFoundError, match=says):
            zoo.load(name)
    with pytest.raises(ValueError, match="no model is called"):
        zoo.load("gone")


def test_a_name_of_the_registry_wins_over_a_folder_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rt_detr_r18").mkdir()
    asked = []
    monkeypatch.setattr(loading, "pull", lambda name, registry: asked.append(name))
    monkeypatch.setattr(loading.Detector, "from_pulled", lambda pulled: pulled)
    zoo.load("rt_detr_r18")
    assert asked == ["rt_detr_r18"]
    with pytest.raises(FileNotFoundError, match="no run folder"):
        zoo.load("./rt_detr_r18")
