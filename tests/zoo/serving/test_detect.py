"""What /v1/models and /v1/detect answer is what `zoo predict` finds."""

import base64

import pytest
import requests
from served_case import png, running, tiny_detector

from zoo.serving.limits import Limits

pytest.importorskip("fastapi")


@pytest.fixture(scope="module")
def detector():
    return tiny_detector()


@pytest.fixture(scope="module")
def server(detector):
    with running({"tiny": [detector]}, Limits(linger_seconds=0.05)) as served:
        yield served


def sent_as_file(server, content, **fields):
    return requests.post(f"{server.url}/v1/detect", files={"file": content}, data=fields)


def sent_as_json(server, content, **fields):
    text = base64.b64encode(content).decode()
    return requests.post(f"{server.url}/v1/detect", json={"image": text, **fields})


def sent_as_data_uri(server, content, **fields):
    text = "data:image/png;base64," + base64.b64encode(content).decode()
    return requests.post(f"{server.url}/v1/detect", json={"image": text, **fields})


@pytest.mark.parametrize("send", [sent_as_file, sent_as_json, sent_as_data_uri])
@pytest.mark.parametrize("threshold", [None, 0, 0.02])
def test_the_answer_is_the_document_of_zoo_predict(server, detector, send, threshold):
    given = {} if threshold is None else {"threshold": threshold}
    answer = send(server, png(), **given)
    assert answer.status_code == 200
    found = answer.json()
    card = server.service.models["tiny"].card
    assert {name: found.pop(name) for name in ("id", "version", "hash")} == {
        "id": "tiny", "version": None, "hash": card["hash"],
    }  # fmt: skip
    assert found == detector.predict(png(), threshold).to_dict()
    assert len(found["detections"]) == 5 or threshold != 0
