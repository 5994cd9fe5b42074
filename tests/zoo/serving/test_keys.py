"""Who is let in: keys of a file or the environment, and without keys this machine alone."""

import socket
from pathlib import Path

import pytest
import requests
from served_case import png, running, tiny_detector

from zoo.runs.console import Silent
from zoo.serving.keys import Keys, read_keys, refuse_open
from zoo.serving.limits import Limits
from zoo.serving.serve import serve

KEY, OTHER = "k" * 32, "o" * 32


@pytest.fixture(scope="module")
def server():
    limits = Limits(linger_seconds=0.05)
    with running({"tiny": [tiny_detector()]}, limits, (KEY, OTHER), ("https://page.example",)) as served:
        yield served


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        KEY,
        f"Basic {KEY}",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY}x",
        f"Bearer {KEY} {OTHER}",
        f"Bearer {KEY.upper()}",
        "Bearer \xff",
        f"Token {KEY}",
        f"Bearer{KEY}",
    ],
)
@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/detect", "/v1/chat/completions", "/metrics", "/v1/nothing"]
)
def test_without_a_key_nothing_is_told(server, header, path):
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    method = "POST" if "detect" in path or "chat" in path else "GET"
    answer = requests.request(method, f"{server.url}{path}", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {OTHER}", f"Bearer   {KEY}"])
def test_each_key_lets_in(server, header):
    sent = requests.post(f"{server.url}/v1/detect", files={"file": png()}, headers={"Authorization": header})
    assert sent.status_code == 200


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/openapi.json"])
def test_page_health_and_description_need_none(server, path):
    assert requests.get(f"{server.url}{path}").status_code == 200


def test_a_key_in_the_address_is_none_and_stands_in_no_line(server):
    assert requests.get(f"{server.url}/v1/models?key={KEY}").status_code == 401
    assert KEY not in "".join(server.lines)


def test_only_the_named_origin_may_ask_from_a_page(server):
    def asked(origin):
        return requests.options(
            f"{server.url}/v1/detect",
            headers={
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization",
            },
        )

    assert asked("https://page.example").headers["Access-Control-Allow-Origin"] == "https://page.example"
    assert "Access-Control-Allow-Origin" not in asked("https://other.example").headers
    refused = requests.get(f"{server.url}/v1/models", headers={"Origin": "https://page.example"})
    assert refused.status_code == 401
    assert (
        refused.headers["Access-Control-Allow-Origin"] == "https://page.example"
    )  # so that the page can read why


def test_without_cors_no_origin_may_ask():
    with running({"tiny": [tiny_detector()]}, Limits(linger_seconds=0.05)) as served:
        answer = requests.get(f"{served.url}/v1/models", headers={"Origin": "https://page.example"})
        assert answer.status_code == 200
        assert "Access-Control-Allow-Origin" not in answer.headers
        for host in ("localhost", "127.0.0.1:80", "[::1]:8000", "LOCALHOST:1"):
            assert requests.get(f"{served.url}/healthz", headers={"Host": host}).status_code == 200
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "[::2]", ""):
            assert requests.get(f"{served.url}/healthz", headers={"Host": host}).status_code in (400, 421)


def test_keys_of_a_file_and_of_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\n  {KEY}  \n{OTHER}\n")
    monkeypatch.setenv("ZOO_API_KEYS", f"{'e' * 20}, {'f' * 20}\n{'g' * 20}")
    assert len(read_keys(file)) == 2
    assert read_keys(file).admit(f"Bearer {OTHER}".encode())
    assert len(read_keys(None)) == 3
    assert read_keys(None).admit(b"Bearer " + b"f" * 20)
    monkeypatch.delenv("ZOO_API_KEYS")
    assert len(read_keys(None)) == 0
    assert Keys([]).admit(None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no key"),
        (b"# none\n", "has no key"),
        (b"short", "key 1 has 5 characters"),
        (b"\xff\xfe", "no text file"),
        (b"a" * 20 + b"\n" + "ä".encode() * 20, "key 2"),
        (b"two words of a key", "without blanks"),
    ],
)
def test_keys_that_are_none_are_refused(tmp_path, content, said):
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_keys(tmp_path / "keys")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_keys(tmp_path / "keys")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", ""])
def test_without_keys_only_this_machine_is_served(host, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])  # every name means a machine
    with pytest.raises(ValueError, match="give --keys FILE or set ZOO_API_KEYS"):
        refuse_open(host, Keys([]))
    refuse_open(host, Keys([KEY]))
    with pytest.raises(ValueError, match="give --keys FILE"):
        serve(["nothing"], Limits(), console=Silent(), host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_this_machine_needs_no_keys(host):
    refuse_open(host, Keys([]))


def test_two_models_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"two models are called 'a'; .* a="):
        serve(["a", str(Path("x/a.onnx"))], Limits(), console=Silent())
