"""The official `openai` client against a server: models, an image question, streams, errors."""

import base64
import json

import pytest
from served_case import png, running, tiny_detector

from zoo.serving.limits import Limits

openai = pytest.importorskip("openai")
KEY = "k" * 32
URI = "data:image/png;base64," + base64.b64encode(png()).decode()
QUESTION = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is there?"},
            {"type": "image_url", "image_url": {"url": URI}},
        ],
    }
]


@pytest.fixture(scope="module")
def detector():
    return tiny_detector()


@pytest.fixture(scope="module")
def server(detector):
    models = {"tiny": [detector], "other": [tiny_detector()]}
    with running(models, Limits(linger_seconds=0.05), keys=(KEY,)) as served:
        yield served


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as opened:
        yield opened


def test_models_are_listed_and_one_is_told_of(client):
    assert [model.id for model in client.models.list()] == ["tiny", "other"]
    card = client.models.retrieve("other")
    assert (card.object, card.owned_by, card.id) == ("model", "detr-zoo", "other")
    assert card.model_extra["label_map"] == ["disc", "square", "no"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_content_of_the_answer_is_the_detections(client, detector, stream):
    asked = {"model": "tiny", "messages": QUESTION, "temperature": 0, "extra_body": {"threshold": 0}}
    if stream:
        chunks = [*client.chat.completions.create(**asked, stream=True)]
        content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        content = client.chat.completions.create(**asked).choices[0].message.content
    found = json.loads(content)
    assert found.pop("id") == "tiny"
    assert {"version", "hash"} <= found.keys()
    expected = detector.predict(png(), 0).to_dict()
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(("classes", "found"), [(["no"], 2), (["disc"], 0), (["disc", "no"], 2)])
def test_options_are_those_of_detect(client, classes, found):
    given = {"threshold": 0, "max_detections": 2, "classes": classes}
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, extra_body=given)
    labels = [one["label"] for one in json.loads(answer.choices[0].message.content)["detections"]]
    assert labels == ["no"] * found  # which is all that it finds in noise


@pytest.mark.parametrize(
    ("changes", "kind", "code"),
    [
        ({"model": "tny"}, "NotFoundError", "model"),
        ({"messages": []}, "BadRequestError", "image"),
        ({"n": 3}, "BadRequestError", "n"),
        ({"extra_body": {"threshold": 7}}, "UnprocessableEntityError", "value"),
        ({"extra_body": {"classes": ["dsc"]}}, "UnprocessableEntityError", "class"),
    ],
)
def test_faults_are_the_clients_own_errors(client, changes, kind, code):
    with pytest.raises(getattr(openai, kind)) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": QUESTION, **changes})
    assert caught.value.code == code


def test_a_wrong_key_is_the_clients_authentication_error(server):
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="no", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.chat.completions.create(model="tiny", messages=QUESTION)


def test_the_client_comes_again_when_the_queue_was_full(server):
    server.service.inside += server.service.limits.queue
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as once:
        with pytest.raises(openai.RateLimitError) as caught:
            once.chat.completions.create(model="tiny", messages=QUESTION)
        assert caught.value.response.headers["Retry-After"] == "1"
    server.service.inside -= server.service.limits.queue
