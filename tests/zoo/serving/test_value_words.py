"""A value that breaks a rule is told in words, and none of msgspec's or Python's."""

import json
import re

import msgspec
import pytest
from hostile_requests import answer_of, as_json, with_image
from served_case import running, tiny_detector

from zoo.serving.given import DetectRequest, FormFields, converted
from zoo.serving.limits import Limits
from zoo.serving.openai import ChatRequest
from zoo.serving.problems import Problem

OF_MSGSPEC = re.compile(r"Expected|`(float|int|str|bool|array|object|null)\b|\$|Object |struct")
FIELDS = "model, threshold, max_detections, classes, picture, image"


@pytest.fixture(scope="module")
def port():
    with running({"tiny": [tiny_detector()]}, Limits(linger_seconds=0.05)) as server:
        yield server.port


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"threshold": "0.5"}, "`threshold` is text and must be a number or null"),
        ({"threshold": 2}, "`threshold` must be at most 1"),
        ({"max_detections": 0}, "`max_detections` must be at least 1"),
        ({"max_detections": 10**7}, "`max_detections` must be at most 100000"),
        ({"max_detections": 1.5}, "`max_detections` is a number and must be a whole number or null"),
        ({"classes": "a"}, "`classes` is text and must be a list or null"),
        ({"classes": []}, "`classes` must have at least 1 entry"),
        ({"classes": [1]}, "`classes[0]` is a whole number and must be text"),
        ({"model": "a" * 301}, "`model` must have at most 300 characters"),
        ({"picture": "yes"}, "`picture` is text and must be true or false"),
        ({"treshold": 1}, f"`treshold` is no field of a request; they are {FIELDS}"),
    ],
)
def test_a_field_is_told_with_what_it_must_be(port, given, words):
    status, _, body = answer_of(port, with_image(**given))
    assert (status, json.loads(body)["detail"]) == (422, words)


def test_whoever_gives_the_name_of_a_file_is_told_how_a_file_is_sent(port):
    for given in ({"image": "photo.jpg"}, {"file": "photo.jpg"}, {"image": "a", "file": "photo.jpg"}):
        assert json.loads(answer_of(port, as_json(**given))[2])["detail"].endswith("curl -F file=@photo.jpg")
    with pytest.raises(Problem, match="they are file, model, threshold"):
        converted({"iou": 1}, FormFields)


@pytest.mark.parametrize("kind", [DetectRequest, FormFields, ChatRequest])
def test_no_message_of_msgspec_comes_through(kind):
    values = [None, True, 1, 1.5, -1, 2, 10**30, 10**7, "", "a", "a" * 301, [], {}, [1], [""], ["a"] * 1001]
    good = {"image": "a", "messages": []}
    taken = [name for name in kind.__struct_fields__ if name in good]
    bodies = [*values, {}] + [
        {**{key: good[key] for key in taken}, name: value}
        for name in kind.__struct_fields__
        for value in values
    ]
    bodies += [
        {"messages": value} for value in ([{}], [1], [{"role": 1}], [{"role": "u", "content": [{"type": 1}]}])
    ]
    refused = []
    for body in bodies:
        try:
            converted(body, kind)
        except Problem as problem:
            refused.append(problem.detail)
    assert len(refused) > 20
    assert [words for words in refused if OF_MSGSPEC.search(words) or "not allowed" in words] == []


def test_a_message_that_is_not_known_is_not_passed_on(monkeypatch):
    def convert(values, kind):
        raise msgspec.ValidationError("Invalid `Decimal` <object> - at `$.threshold`")

    monkeypatch.setattr(msgspec, "convert", convert)
    with pytest.raises(Problem, match=r"^`threshold` has a value that is not allowed$"):
        converted({}, DetectRequest)
