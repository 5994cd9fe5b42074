"""Every request of a stranger gets an answer of its own fault, and the server goes on."""

import json
import re

import pytest
from hostile_requests import PNG, REQUESTS, Hostile, answer_of, with_image
from served_case import running, tiny_detector

from zoo.serving.limits import Limits

LIMITS = Limits(
    max_bytes=200_000,
    max_pixels=1_000_000,
    head_seconds=0.5,
    body_seconds=0.4,
    fetch_seconds=2.0,
    linger_seconds=0.05,
)
# a path, an object of this process, a trace
_INSIDE = re.compile(rb"/work|/usr|/home|/tmp|site-packages|Traceback|File \"|object at|0x[0-9a-f]{6}|\.py")


@pytest.fixture(scope="module")
def server():
    with running({"tiny": [tiny_detector()]}, LIMITS) as served:
        yield served
        status, _, body = answer_of(served.port, with_image(threshold=0))
        assert status == 200
        assert len(json.loads(body)["detections"]) == 5
        assert served.service.inside == 0


@pytest.mark.parametrize("case", REQUESTS, ids=lambda case: case.name[:60])
def test_it_gets_an_answer_that_tells_its_fault_and_nothing_of_the_server(server, case: Hostile):
    status, headers, body = answer_of(server.port, case.request)
    assert status == case.status, body[:300]
    assert not _INSIDE.search(body)
    if not case.kind:
        return
    document = json.loads(body)
    if b"/v1/chat" in case.request[:40]:
        assert document["error"]["code"] == case.kind
        assert isinstance(document["error"]["message"], str)
    else:
        assert headers["content-type"] == "application/problem+json"
        assert document["type"].rpartition(":")[2] == case.kind
        assert document["status"] == status
        assert "\n" not in document["detail"]


def test_there_are_sixty_and_more_and_each_has_its_name():
    names = [case.name for case in REQUESTS]
    assert len(set(names)) == len(names) > 150
    assert len(PNG) > 100
