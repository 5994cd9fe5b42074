"""The OpenAPI document says what requests are taken and what the answers hold."""

import msgspec
import pytest
import requests
from hostile_requests import PNG, REQUESTS, answer_of
from mask_case import INPUT, LABELS, mask_module, scripted
from served_case import running, tiny_detector

from zoo.contract.preprocess import InputContract
from zoo.detector import Detector
from zoo.serving import description
from zoo.serving.limits import Limits


@pytest.fixture(scope="module")
def server():
    module = mask_module()
    module.adopt(LABELS, InputContract.from_dict(INPUT))
    module.predictions = scripted
    with running(
        {"tiny": [tiny_detector()], "masks": [Detector(module, "m")]}, Limits(linger_seconds=0.05)
    ) as served:
        yield served


@pytest.fixture(scope="module")
def document(server):
    return requests.get(f"{server.url}/openapi.json").json()


def exactly(values, kind):
    """Fails for a key that the struct has not, as well as for one that it lacks."""
    assert values.keys() <= {*kind.__struct_fields__}, values.keys() - {*kind.__struct_fields__}
    return msgspec.convert(values, kind)


@pytest.mark.parametrize("model", ["tiny", "masks"])
def test_answers_are_as_described(server, model):
    answer = requests.post(
        f"{server.url}/v1/detect",
        files={"file": PNG},
        data={"model": model, "threshold": 0.1, "picture": "true"},
    )
    found = exactly(answer.json(), description.Document)
    for one in answer.json()["detections"]:
        exactly(one, description.Detection)
    if model == "masks":
        assert found.panoptic.segments
        for one in answer.json()["panoptic"]["segments"]:
            exactly(one, description.FoundSegment)
    for card in exactly(requests.get(f"{server.url}/v1/models").json(), description.Cards).data:
        assert card.id in ("tiny", "masks")
    exactly(requests.get(f"{server.url}/v1/models/tiny").json(), description.Card)


def test_errors_are_as_described(server):
    bad = next(case for case in REQUESTS if case.kind == "value")
    exactly(msgspec.json.decode(answer_of(server.port, bad.request)[2]), description.ProblemDocument)


def test_each_path_is_described_with_schemas_that_are_there(document):
    assert {*document["paths"]} == {
        "/healthz", "/readyz", "/metrics", "/v1/models", "/v1/models/{model}", "/v1/detect", "/v1/chat/completions",
    }  # fmt: skip
    text = msgspec.json.encode(document).decode()
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= {*document["components"]["schemas"]}
    bodies = document["paths"]["/v1/detect"]["post"]["requestBody"]["content"]
    assert {*bodies} == {"application/json", "multipart/form-data"}
    assert {*document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]} == {"text/plain"}


def test_the_fields_of_a_request_are_described_with_their_limits(document):
    schemas = document["components"]["schemas"]
    asked = schemas["DetectRequest"]
    assert asked["additionalProperties"] is False
    assert asked["required"] == ["image"]
    assert {*asked["properties"]} == {"image", "model", "threshold", "max_detections", "classes", "picture"}
    assert schemas["FormFields"]["required"] == ["file"]
    (number, _) = asked["properties"]["threshold"]["anyOf"]
    assert (number["minimum"], number["maximum"]) == (0, 1)
