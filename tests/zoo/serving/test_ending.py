"""`kill -TERM` under load: every request that was taken is answered, and the process ends with 0."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import requests
from registry_case import tiny_checkpoint
from served_case import png, running, tiny_detector

from zoo.serving.limits import Limits

ROOT = Path(__file__).resolve().parents[3]
KEY = "k" * 32
CLIENTS = 8


class Client(threading.Thread):
    """Asks over one connection until the server says that it is about to close it, or takes none any more."""

    def __init__(self, port: int, headers: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.headers = {"Content-Type": "image/png", **headers}
        self.answers: list[tuple[int, bytes]] = []
        self.lost: list[str] = []
        self.said_last = False

    def run(self) -> None:
        head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        body = (
            head
            + png()
            + b'\r\n--b\r\nContent-Disposition: form-data; name="threshold"\r\n\r\n0\r\n--b--\r\n'
        )
        self.headers["Content-Type"] = "multipart/form-data; boundary=b"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.connect()
        while not self.said_last:
            try:
                connection.request("POST", "/v1/detect", body, self.headers)
                answer = connection.getresponse()
                self.answers.append((answer.status, answer.read()))
                self.said_last = answer.headers.get("Connection") == "close"
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(repr(error))
                return


def asking(port: int, end, **headers: str) -> list[Client]:
    """Clients that have begun to get answers, then `end()`, then all that they got."""
    clients = [Client(port, headers) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    while not all(client.answers for client in clients):
        assert all(client.is_alive() for client in clients), [client.lost for client in clients]
    end()
    for client in clients:
        client.join(60)
    return clients


def assert_all_are_answered(clients: list[Client]) -> None:
    assert [client.lost for client in clients] == [[]] * CLIENTS
    assert all(client.said_last for client in clients)
    assert {status for client in clients for status, _ in client.answers} == {200}
    answers = [json.loads(body)["detections"] for client in clients for _, body in client.answers]
    assert all(len(found) == 5 for found in answers)


def test_a_server_that_is_told_to_end_answers_all_that_it_has_taken():
    with running({"tiny": [tiny_detector()]}, Limits(linger_seconds=0.5)) as server:
        assert_all_are_answered(asking(server.port, server.end))


def test_a_server_that_is_about_to_end_is_not_ready_but_alive():
    with running({"tiny": [tiny_detector()]}, Limits(linger_seconds=0.05)) as server:
        assert requests.get(f"{server.url}/readyz").json() == {"status": "ready"}
        server.service.draining = True
        answer = requests.get(f"{server.url}/readyz")
        assert answer.status_code == 503
        assert "Retry-After" in answer.headers
        assert requests.get(f"{server.url}/healthz").json() == {"status": "ok"}


@pytest.fixture
def process(tmp_path):
    """`zoo serve` of a checkpoint, with a key, its port, and the lines that it has printed."""
    tiny_checkpoint(tmp_path / "model.ckpt")
    (tmp_path / "keys").write_text(f"# of the test\n{KEY}\n")
    command = [sys.executable, "-m", "zoo", "serve", f"tiny={tmp_path / 'model.ckpt'}", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ZOO_REGISTRY": str(tmp_path / "registry")}
    with subprocess.Popen(
        [*command, "--keys", str(tmp_path / "keys")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment, cwd=tmp_path,
    ) as started:  # fmt: skip
        lines: list[str] = []
        try:
            for line in started.stdout:
                lines.append(line)
                if found := re.search(r"^serving +http://127.0.0.1:(\d+) ", line):
                    break
            else:
                raise AssertionError("".join(lines))
            yield started, int(found[1]), lines
        finally:
            started.kill()


def test_kill_term_under_load_loses_nothing_and_ends_with_0(process):
    started, port, lines = process
    clients = asking(port, lambda: started.send_signal(signal.SIGTERM), Authorization=f"Bearer {KEY}")
    rest = started.stdout.read()
    assert started.wait(30) == 0, rest
    assert_all_are_answered(clients)
    assert any(line.startswith("try ") and "Bearer" in line for line in lines)
    assert KEY not in "".join(lines) + rest
    asked = sum(len(client.answers) for client in clients)
    assert rest.count("POST /v1/detect  200") == asked
    assert rest.splitlines()[-1].startswith("ended ")


@pytest.mark.parametrize(
    ("command", "ends"), [("serve", "exit of a library\n"), ("list", "exit of a library\ntaken apart\n")]
)
def test_a_server_that_has_ended_takes_no_library_apart(command, ends):
    script = """
import atexit, os, sys
from zoo.cli import main
class Library:
    def __del__(self, write=os.write):
        write(1, b"taken apart\\n")
library = Library()
def run(arguments):
    atexit.register(print, "exit of a library")
    return 7
main.run_command = run
main.main(sys.argv[1:])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, command], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (7, ends, "")
