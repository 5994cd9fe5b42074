"""What /v1/models and /v1/detect answer is what `zoo predict` finds."""

import base64
import io
import json

import numpy as np
import pytest
import requests
from exported_case import checkpoint, written
from loopback_server import LoopbackServer, QuietHandler
from mask_case import INPUT as MASK_INPUT
from mask_case import LABELS as MASK_LABELS
from mask_case import mask_module, scripted
from PIL import Image
from registry_case import LABELS, tiny_manifest, tiny_module
from served_case import png, running, tiny_detector

from zoo.contract.preprocess import InputContract
from zoo.contract.segments import PanopticSegmentation
from zoo.detector import Detector
from zoo.registry.manifest import Thresholds
from zoo.runs.subject import load
from zoo.serving.limits import Limits
from zoo.serving.served import Served, id_of, place_of
from zoo.storage import image_fetch

LIMITS = Limits(linger_seconds=0.05)


def of_many_bands() -> Detector:
    """A model of one channel of 16 bits."""
    module = tiny_module()
    contract = InputContract(resize="stretch", size=(64, 64), scale=((0, 4000),))
    module.adopt(LABELS, contract)
    return Detector(module, "bands")


def with_tiles() -> Detector:
    found = tiny_detector("cut")
    tiles = {"size": [32, 32], "overlap": 0.2}
    found.input = InputContract.from_dict({**found.input.to_dict(), "tiles": tiles})
    return found


def with_masks(panoptic: bool) -> Detector:
    module = mask_module() if panoptic else mask_module(None)
    module.adopt(MASK_LABELS, InputContract.from_dict(MASK_INPUT))
    module.predictions = scripted
    return Detector(module, "masks")


@pytest.fixture(scope="module")
def detectors():
    chosen = Thresholds(chosen_for="best F1", split="val", all=0.4, classes={"no": 0.01})
    manifest = tiny_manifest(
        thresholds={"chosen_for": "best F1", "split": "val", "all": 0.4, "classes": {"no": 0.01}}
    )
    return {
        "tiny": tiny_detector(),
        "own": Detector(tiny_detector().module, "rt_detr_tiny.shapes:1", manifest, chosen),
        "bands": of_many_bands(),
        "cut": with_tiles(),
        "instances": with_masks(False),
        "panoptic": with_masks(True),
    }


@pytest.fixture(scope="module")
def server(detectors):
    with running({name: [detector] for name, detector in detectors.items()}, LIMITS) as served:
        yield served


def sent_as_file(server, content, **fields):
    return requests.post(f"{server.url}/v1/detect", files={"file": content}, data=fields)


def sent_as_json(server, content, **fields):
    text = base64.b64encode(content).decode()
    return requests.post(f"{server.url}/v1/detect", json={"image": text, **fields})


def sent_as_data_uri(server, content, **fields):
    text = "data:image/png;base64," + base64.b64encode(content).decode()
    return requests.post(f"{server.url}/v1/detect", json={"image": text, **fields})


def found_by(server, content, send=sent_as_json, **fields):
    """The document, without what says which model it was."""
    answer = send(server, content, **fields)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    card = server.service.models[fields["model"]].card
    assert {name: found.pop(name) for name in ("id", "version", "hash")} == {
        name: card[name] for name in ("id", "version", "hash")
    }
    return found


def plain(document):
    """As JSON has it."""
    return json.loads(json.dumps(document))


@pytest.mark.parametrize("send", [sent_as_file, sent_as_json, sent_as_data_uri])
@pytest.mark.parametrize("threshold", [None, 0, 0.02])
@pytest.mark.parametrize("model", ["tiny", "own", "cut"])
def test_the_answer_is_the_document_of_zoo_predict(server, detectors, send, threshold, model):
    given = {} if threshold is None else {"threshold": threshold}
    found = found_by(server, png(), send, model=model, **given)
    assert found == plain(detectors[model].predict(png(), threshold).to_dict())
    assert ("class_thresholds" in found) == (model == "own" and threshold is None)
    assert ("tiles" in found) == (model == "cut")
    assert found["detections"] or threshold != 0


def picture(mode: str) -> Image.Image:
    values = np.random.default_rng(3).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 200)
    return Image.fromarray(values, "RGBA").convert("RGB").convert(mode)


def file_of(mode: str, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def turned() -> bytes:
    tags = Image.Exif()
    tags[0x0112] = 6
    return file_of("RGB", "JPEG", exif=tags)


ANIMATED = {"save_all": True, "append_images": [picture("P").rotate(90), picture("P").rotate(180)]}


KINDS = {
    "rgb": lambda: file_of("RGB", "JPEG"),
    "cmyk": lambda: file_of("CMYK", "JPEG"),
    "grey": lambda: file_of("L", "JPEG"),
    "progressive": lambda: file_of("RGB", "JPEG", progressive=True),
    "turned": turned,
    "16 bits": lambda: file_of("I;16", "PNG"),
    "palette": lambda: file_of("P", "PNG", transparency=3),
    "1 bit": lambda: file_of("1", "PNG"),
    "alpha": lambda: file_of("RGBA", "PNG"),
    "grey with alpha": lambda: file_of("LA", "PNG"),
    "animated": lambda: file_of("P", "GIF", **ANIMATED),
    "webp": lambda: file_of("RGB", "WEBP"),
    "bmp": lambda: file_of("RGB", "BMP"),
    "tiff": lambda: file_of("RGB", "TIFF"),
    "tiff of 16 bits": lambda: file_of("I;16", "TIFF"),
    "ppm": lambda: file_of("RGB", "PPM"),
    "jpeg 2000": lambda: file_of("RGB", "JPEG2000"),
    "a pixel": lambda: png(1, (1, 1)),
    "flat": lambda: png(1, (1, 900)),
    "thin": lambda: png(1, (900, 2)),
    "more after the end": lambda: file_of("RGB", "PNG") + b"more",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_is_read_as_zoo_predict_reads_it(server, detectors, kind):
    content = KINDS[kind]()
    found = found_by(server, content, sent_as_file, model="tiny", threshold=0)
    assert found == plain(detectors["tiny"].predict(content, 0).to_dict())


def test_a_model_for_other_channels_reads_its_own_files(server, detectors):
    content = file_of("I;16", "TIFF")
    found = found_by(server, content, model="bands", threshold=0)
    assert found == plain(detectors["bands"].predict(content, 0).to_dict())
    array = io.BytesIO()
    np.save(array, np.random.default_rng(0).integers(0, 4000, (20, 30, 3)).astype(np.uint16))
    found = found_by(server, array.getvalue(), model="bands", threshold=0)
    assert found == plain(detectors["bands"].predict(array.getvalue(), 0).to_dict())


@pytest.mark.parametrize("model", ["instances", "panoptic"])
@pytest.mark.parametrize("threshold", [None, 0.1])
def test_masks_are_run_lengths_and_segments_a_png(server, detectors, model, threshold):
    given = {} if threshold is None else {"threshold": threshold}
    found = found_by(server, png(), model=model, **given)
    expected = detectors[model].predict(png(), threshold)
    assert found["detections"]
    assert all(one["mask"]["size"] == [40, 60] for one in found["detections"])
    if model == "panoptic":
        content = base64.b64decode(found["panoptic"].pop("png"))
        _, entry = expected.panoptic.to_coco(MASK_LABELS, 1, "a.png")
        again = PanopticSegmentation.from_coco(content, entry["segments_info"], MASK_LABELS)
        assert (again.ids == expected.panoptic.ids).all()
    assert found == plain(expected.to_dict())


def test_classes_and_max_detections_leave_the_best_of_what_was_asked_for(server, detectors):
    every = detectors["instances"].predict(png(), 0).to_dict()["detections"]
    labels = [one["label"] for one in every]
    assert {"cat", "dog"} <= {*labels}
    for given in ({"classes": ["dog"]}, {"max_detections": 2}, {"classes": ["dog"], "max_detections": 1}):
        found = found_by(server, png(), model="instances", threshold=0, **given)["detections"]
        expected = [one for one in every if one["label"] in given.get("classes", labels)]
        assert found == plain(expected[: given.get("max_detections")])
    kept = found_by(server, png(), sent_as_file, model="panoptic", classes=["cat", "grass-merged"])[
        "panoptic"
    ]
    assert [segment["label"] for segment in kept["segments"]] == ["cat"]


def test_an_option_in_the_address_is_refused_and_not_left_without_effect(server):
    asked = {"files": {"file": png()}, "data": {"model": "tiny"}}
    answer = requests.post(f"{server.url}/v1/detect?threshold=0.8", **asked)
    assert answer.status_code == 422
    assert "'threshold' after its `?`" in answer.json()["detail"]
    assert "go into the form or JSON" in answer.json()["detail"]
    assert requests.post(f"{server.url}/v1/detect?", **asked).status_code == 200
    for path in (
        "/",
        "/page/page.js",
        "/healthz",
        "/metrics",
        "/openapi.json",
    ):  # read by browsers and probes
        assert requests.get(f"{server.url}{path}?v=1").status_code == 200


def test_a_model_must_be_named_where_there_are_several(server):
    answer = sent_as_json(server, png())
    assert answer.status_code == 422
    assert "model is missing; it is one of tiny, own" in answer.json()["detail"]
    answer = sent_as_json(server, png(), model="panoptc")
    assert answer.status_code == 404
    assert "did you mean 'panoptic'?" in answer.json()["detail"]


class Pictures(QuietHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(png())))
        self.end_headers()
        self.wfile.write(png())


def test_an_address_is_fetched_as_zoo_predict_fetches_it(server, detectors, monkeypatch):
    with LoopbackServer(Pictures) as other:
        address = f"{other.url}/a.png"
        refused = requests.post(f"{server.url}/v1/detect", json={"image": address, "model": "tiny"})
        assert refused.status_code == 422
        assert refused.json()["type"].endswith("image-fetch")
        monkeypatch.setattr(image_fetch, "PORTS", (other.server.server_port,))
        monkeypatch.setattr(image_fetch, "is_public", lambda address: True)
        found = requests.post(
            f"{server.url}/v1/detect", json={"image": address, "model": "tiny", "threshold": 0}
        )
        assert found.json()["detections"] == plain(
            detectors["tiny"].predict(png(), 0).to_dict()["detections"]
        )


def test_the_card_tells_what_is_known_of_a_model(server):
    cards = {card["id"]: card for card in requests.get(f"{server.url}/v1/models").json()["data"]}
    assert [*cards] == ["tiny", "own", "bands", "cut", "instances", "panoptic"]
    own = cards["own"]
    assert (own["name"], own["version"], own["licence"], own["runtime"]) == (
        "rt_detr_tiny.shapes:1", 1, "Apache-2.0", "pytorch",
    )  # fmt: skip
    assert own["created"] == 1767225600  # 2026-01-01
    assert own["label_map"] == ["disc", "square", "no"]
    assert own["threshold"] == {"default": 0.4, "classes": {"no": 0.01}, "panoptic": None}
    assert own["scores"] == {"published": None, "measured": []}
    assert own["hash"] == cards["tiny"]["hash"]  # the same weights
    assert own["hash"] != cards["panoptic"]["hash"]
    assert cards["panoptic"]["threshold"]["panoptic"] == 0.85
    assert [cards[name]["kind"] for name in cards] == ["detection"] * 4 + ["instance", "panoptic"]
    assert cards["cut"]["input"]["tiles"] == {"size": [32, 32], "overlap": 0.2}
    assert requests.get(f"{server.url}/v1/models/own").json() == own


@pytest.mark.parametrize(
    ("given", "id_", "place"),
    [
        ("birds", "birds", "birds"), ("birds@champion", "birds@champion", "birds@champion"),
        ("birds:2", "birds:2", "birds:2"), ("birds.v2", "birds.v2", "birds.v2"), ("birds.ckpt", "birds", "birds.ckpt"),
        ("exports/birds.onnx", "birds", "exports/birds.onnx"), ("a=exports/model.onnx", "a", "exports/model.onnx"),
        ("a=birds@b", "a", "birds@b"), ("./birds/", "birds", "./birds/"), ("./a=b/c.onnx", "c", "./a=b/c.onnx"),
    ],
)  # fmt: skip
def test_a_model_is_called_by_its_name_and_never_by_a_path(given, id_, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "birds.v2").mkdir()  # what lies here is not meant
    assert id_of(given) == id_
    assert place_of(given) == place


@pytest.mark.slow
def test_an_exported_file_is_served_by_its_own_runtime(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    exported = load(written(tmp_path / "model.onnx"))
    source = load(checkpoint(tmp_path / "model.ckpt"))
    with running({"a": [exported], "b": [source]}, LIMITS) as served:
        found = found_by(served, png(), model="a", threshold=0)
        assert found["model"] == "a"  # not its path
        assert found == plain(exported.predict(png(), 0).to_dict())
        cards = served.service.models
        assert cards["a"].card["runtime"] == "onnxruntime"
        assert cards["a"].card["hash"] == cards["b"].card["hash"]
        assert isinstance(cards["a"], Served)
