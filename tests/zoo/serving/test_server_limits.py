"""A full queue, a client that leaves, work that takes too long: each has its answer, and nothing is left behind."""

import re
import socket
import threading
import time

import pytest
import requests
from hostile_requests import PNG, answer_of, as_json, asked, chat, with_image
from served_case import running, tiny_detector

from zoo.serving import images
from zoo.serving.limits import Limits

DATE = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}"


class Busy:
    """Keeps a detector's thread at work until `gate` opens; counts the images it was given."""

    def __init__(self, detector, monkeypatch):
        self.gate = threading.Event()
        self.images = 0
        real = detector.predict_together

        def waiting(images, thresholds):
            self.images += len(images)
            assert self.gate.wait(20)
            return real(images, thresholds)

        monkeypatch.setattr(detector, "predict_together", waiting)


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def in_background(port, number=1):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(answer_of(port, with_image())[0])) for _ in range(number)
    ]
    for thread in threads:
        thread.start()
    return threads, found


def test_the_log_tells_when_and_which_kind_of_problem_and_no_word_of_the_client():
    sent = [
        with_image(threshold="secret"), asked(path="/v1/detect?secret=1"), as_json(image="secret.jpg"),
        chat({"type": "text", "text": "secret"}), asked(path="/v1/models", method="GET").replace(b"localhost", b"a.b"),
        asked(path="/secret", method="GET"), asked(path="/v1/models"), asked(length=1 << 40), with_image(),
    ]  # fmt: skip
    kinds = ["value", "query", "image-base64", "image", "host", "path", "method", "body-bytes", ""]
    with running({"tiny": [tiny_detector()]}, Limits(linger_seconds=0.05)) as server:
        for request in sent:
            answer_of(server.port, request)
        until(lambda: len(server.lines) == len(sent))
    for line, kind in zip(server.lines, kinds, strict=True):
        assert re.fullmatch(
            rf"{DATE}  127\.0\.0\.1  [A-Z]+ /\S+  \d{{3}}  \d+ ms{'  ' * bool(kind)}{kind}", line
        )
    assert "secret" not in "".join(server.lines).replace("GET /secret", "")


def test_a_full_queue_is_429_with_retry_after_and_the_others_are_answered(monkeypatch):
    detector = tiny_detector()
    busy = Busy(detector, monkeypatch)
    with running({"tiny": [detector]}, Limits(queue=3, linger_seconds=0.05)) as server:
        threads, found = in_background(server.port, 3)
        until(lambda: server.service.inside == 3)
        status, headers, body = answer_of(server.port, with_image())
        assert (status, headers["retry-after"]) == (429, "1")
        assert b"3 requests wait already" in body
        assert requests.get(f"{server.url}/healthz").status_code == 200  # which needs no place
        assert requests.get(f"{server.url}/v1/models").status_code == 200
        busy.gate.set()
        for thread in threads:
            thread.join()
        assert found == [200] * 3
        assert answer_of(server.port, with_image())[0] == 200


def test_requests_that_are_read_at_the_same_time_do_not_pass_the_limit_together(monkeypatch):
    detector = tiny_detector()
    busy = Busy(detector, monkeypatch)
    with running({"tiny": [detector]}, Limits(queue=1, linger_seconds=0.05)) as server:
        whole = with_image()
        both = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
        for connection in both:  # each head is read, and finds the queue empty
            connection.sendall(whole[:-1])
        time.sleep(0.3)
        both[0].sendall(whole[-1:])
        until(lambda: server.service.inside == 1)
        both[1].sendall(whole[-1:])
        assert both[1].recv(100).startswith(b"HTTP/1.1 429 ")
        busy.gate.set()
        assert both[0].recv(100).startswith(b"HTTP/1.1 200 ")
        for connection in both:
            connection.close()


def test_the_work_of_a_client_that_has_gone_is_dropped(monkeypatch):
    detector = tiny_detector()
    busy = Busy(detector, monkeypatch)
    with running({"tiny": [detector]}, Limits(batch_size=1, linger_seconds=0.05)) as server:
        threads, found = in_background(server.port)
        until(lambda: busy.images == 1)
        leaving = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
        for connection in leaving:
            connection.sendall(with_image())
        until(lambda: server.service.inside == 6)
        for connection in leaving:
            connection.close()
        until(lambda: server.service.inside == 1)
        busy.gate.set()
        threads[0].join()
        assert found == [200]
        assert answer_of(server.port, with_image())[0] == 200
        assert busy.images == 2  # none of the five
        until(lambda: sum("499" in line for line in server.lines) == 5)


def test_an_answer_that_takes_too_long_is_503(monkeypatch):
    detector = tiny_detector()
    busy = Busy(detector, monkeypatch)
    with running({"tiny": [detector]}, Limits(answer_seconds=0.2, linger_seconds=0.05)) as server:
        status, headers, body = answer_of(server.port, with_image())
        assert (status, headers["retry-after"]) == (503, "1")
        assert b"there was no answer in time" in body
        assert server.service.inside == 0
        busy.gate.set()
        until(lambda: answer_of(server.port, with_image())[0] == 200)


def test_an_image_that_takes_too_long_to_decode_is_422_and_its_thread_is_free_again(monkeypatch):
    gate = threading.Event()
    real = images._ready
    monkeypatch.setattr(images, "_ready", lambda *given: gate.wait(20) and real(*given))
    with running({"tiny": [tiny_detector()]}, Limits(decode_seconds=0.3, linger_seconds=0.05)) as server:
        status, _, body = answer_of(server.port, with_image())
        assert (status, b"image-slow" in body) == (422, True)
        assert server.service.images.late == 1
        gate.set()
        until(lambda: server.service.images.late == 0)
        assert answer_of(server.port, with_image())[0] == 200


def test_all_requests_together_hold_no_more_than_they_may():
    limits = Limits(held_bytes=100_000, body_seconds=20, linger_seconds=0.05)
    with running({"tiny": [tiny_detector()]}, limits) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.sendall(asked(b"{" + bytes(90_000), length=95_000))
            until(lambda: answer_of(server.port, asked(b"x" * 20_000))[0] == 503)
        until(lambda: answer_of(server.port, with_image())[0] == 200)


def test_an_error_of_the_program_is_500_without_a_word_of_it_and_the_next_request_is_answered(
    monkeypatch, caplog
):
    detector = tiny_detector()
    monkeypatch.setattr(detector, "predict_together", lambda images, thresholds: 1 / 0)
    with running({"tiny": [detector]}, Limits(linger_seconds=0.05)) as server:
        for _ in range(2):
            status, headers, body = answer_of(server.port, with_image())
            assert (status, headers["content-type"]) == (500, "application/problem+json")
            assert b"ZeroDivision" not in body
        monkeypatch.undo()
        assert answer_of(server.port, with_image())[0] == 200
    assert "ZeroDivisionError" in caplog.text


def test_an_answer_that_nobody_takes_ends_with_its_connection():
    with (
        running({"tiny": [tiny_detector()]}, Limits(write_seconds=0.2, linger_seconds=0.05)) as server,
        socket.socket() as idle,
    ):
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        idle.connect(("127.0.0.1", server.port))
        pages = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100_000
        with pytest.raises(OSError):  # it is reset
            idle.sendall(pages)


def test_no_addresses_are_fetched_where_that_is_said():
    with running({"tiny": [tiny_detector()]}, Limits(urls=False, linger_seconds=0.05)) as server:
        answer = requests.post(f"{server.url}/v1/detect", json={"image": "http://1.1.1.1/a.png"})
        assert answer.status_code == 422
        assert "fetches no addresses" in answer.json()["detail"]


def test_metrics_and_lines_tell_of_each_request_and_nothing_of_its_content():
    with running({"tiny": [tiny_detector()]}, Limits(linger_seconds=0.05)) as server:
        for _ in range(3):
            requests.post(f"{server.url}/v1/detect", files={"file": PNG})
        requests.get(f"{server.url}/{'a' * 500}?secret=word")
        text = requests.get(f"{server.url}/metrics").text
        assert 'zoo_requests_total{path="/v1/detect",status="200"} 3.0' in text
        assert 'zoo_requests_total{path="other",status="404"} 1.0' in text
        assert 'zoo_batch_images_sum{model="tiny"} 3.0' in text
        assert 'zoo_model_seconds_count{model="tiny"} 3.0' in text
        assert "zoo_requests_inside 0.0" in text
        assert [line.split("  ")[2:4] for line in server.lines[:3]] == [["POST /v1/detect", "200"]] * 3
        assert max(map(len, server.lines)) < 200
        assert "secret" not in "".join(server.lines)
