"""Images from addresses: public machines alone, within a deadline and a size, whatever the server does."""

import socket
import threading
import time

import pytest

from zoo.cli.main import run_command
from zoo.storage import image_fetch
from zoo.storage.image_fetch import fetch, is_public


class Server:
    """Answers each request with the next of `replies`: bytes, or a pause in seconds."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.replies = []
        self.requests = []
        self.finished = 0  # replies that were sent to their end
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                self.requests.append(connection.recv(4096))
                for part in self.replies.pop(0) if self.replies else []:
                    try:
                        time.sleep(part) if isinstance(part, float) else connection.sendall(part)
                    except OSError:
                        break
                else:
                    self.finished += 1


@pytest.fixture
def server():
    made = Server()
    yield made
    made.socket.close()


def redirect(place):
    return [f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()]


WHOLE = [b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "100.100.100.200", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "168.63.129.16",
        "::1", "::", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "fe80::1", "fe80::1%eth0", "fc00::1",
        "fd00:ec2::254", "fec0::1", "ff02::1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:1::1",
        "2001:db8::1", "100::1",
    ],
)  # fmt: skip
def test_machines_of_networks_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "140.82.121.4", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_machines_of_the_internet_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "0", "localhost", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_this_machine_is_not_asked_however_it_is_written(server, host, monkeypatch):
    monkeypatch.setattr(image_fetch, "PORTS", (server.port,))
    with pytest.raises(ConnectionError, match=r"no public address; .* --allow-private|is not known"):
        fetch(f"http://{host}:{server.port}/a.png")
    assert server.requests == []


def test_the_command_asks_its_own_network_when_told_to(server, capsys):
    address = f"{server.url}/a.png"
    assert run_command(["predict", "absent.one", address]) == 2
    assert "--allow-private" in capsys.readouterr().err
    server.replies = [WHOLE]
    assert run_command(["predict", "absent.one", address, "--allow-private"]) == 2
    assert "no model" in capsys.readouterr().err
    assert len(server.requests) == 1


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}/", "https://127.0.0.1:{port}/"])
def test_other_ports_than_those_of_the_web_are_not_asked(server, named, monkeypatch, address):
    monkeypatch.setattr(image_fetch, "PORTS", (80, 443))
    address = address.format(port=server.port)
    with pytest.raises(ConnectionError, match=rf"port {server.port} is not asked, only 80 and 443 are"):
        fetch(address)
    monkeypatch.setattr(image_fetch, "PORTS", (server.port,))
    server.replies = [redirect("http://127.0.0.1:22/")]  # nor by a redirect
    with pytest.raises(ConnectionError, match=r"port 22 is not asked.*--allow-private"):
        fetch(server.url)
    assert len(server.requests) == 1


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("private", [False, True])
def test_a_proxy_is_not_asked(server, named, monkeypatch, variable, private):
    proxy = Server()
    monkeypatch.setenv(variable, proxy.url)
    server.replies, proxy.replies = [WHOLE], [WHOLE]
    assert fetch(f"{server.url}/a.png", private=private) == b"abc"
    assert len(server.requests) == 1
    assert proxy.requests == []
    proxy.socket.close()


@pytest.fixture
def named(monkeypatch, server):
    """Names and their addresses, asked in turn; 127.0.0.1 stands for a public one, the server's port for 80."""
    monkeypatch.setattr(image_fetch, "PORTS", (80, 443, server.port))
    names = {}
    asked = []
    real = socket.getaddrinfo

    def resolve(host, port, *rest, **options):
        asked.append(host)
        if host not in names:
            return real(host, port, *rest, **options)
        answers = names[host].pop(0) if len(names[host]) > 1 else names[host][0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers]

    monkeypatch.setattr(image_fetch.socket, "getaddrinfo", resolve)
    monkeypatch.setattr(image_fetch, "is_public", lambda address: address == "127.0.0.1")
    names["asked"] = asked
    return names


def test_the_address_that_was_checked_is_connected_to(server, named):
    named["changing.test"] = [["127.0.0.1"], ["127.0.0.2"]]  # means another machine when asked again
    server.replies = [WHOLE]
    assert fetch(f"http://changing.test:{server.port}/a.png") == b"abc"
    assert named["asked"].count("changing.test") == 1
    assert f"Host: changing.test:{server.port}\r\n".encode() in server.requests[0]


def test_one_private_address_of_a_name_is_enough_to_refuse_it(server, named):
    named["both.test"] = [["127.0.0.1", "10.0.0.1"]]
    with pytest.raises(ConnectionError, match=r"both\.test is 10\.0\.0\.1, which is no public address"):
        fetch(f"http://both.test:{server.port}/a.png")
    assert server.requests == []


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("http://127.0.0.2:{port}/", "127.0.0.2, which is no public"),
        ("http://169.254.169.254/latest/meta-data", "169.254.169.254, which is no public"),
        ("//inner.test/a", "inner.test is 10.0.0.1"),
        ("file:///etc/passwd", "only http and https"),
        ("ftp://127.0.0.1/a", "only http and https"),
        ("http://me:word@127.0.0.1/", "are not sent"),
        ("http://[", "could not be fetched"),
        ("http://127.0.0.1:99999/", "could not be fetched"),
        ("\\x", "could not be fetched"),
    ],
)
def test_a_redirect_is_checked_as_the_address_is(server, named, place, says):
    named |= {"inner.test": [["10.0.0.1"]], "169.254.169.254": [["169.254.169.254"]]}
    server.replies = [redirect(place.format(port=server.port))]
    with pytest.raises(ConnectionError) as refused:
        fetch(server.url)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_redirects_are_followed_and_end(server):
    server.replies = [redirect("/b"), redirect(f"{server.url}/c?d=e f"), redirect("/d"), WHOLE]
    assert fetch(server.url, private=True) == b"abc"
    assert b"GET /c?d=e%20f HTTP/1.1" in server.requests[2]
    server.replies = [redirect("/")] * 9
    with pytest.raises(ConnectionError, match="redirects more than 3 times"):
        fetch(server.url, private=True)
    assert len(server.requests) == 8


@pytest.mark.parametrize(
    "reply",
    [
        [b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", *[b"x", 0.05] * 100],
        [b"HTTP/1.1 200 OK\r\n\r\n", *[b"x", 0.05] * 100],
        [b"HTTP/1.1 200 OK\r\n", *[b"A: b\r\n", 0.05] * 100],
        [b"H", 0.05, b"T", 5.0],
        [5.0],
    ],
)
def test_a_server_that_drips_is_not_waited_for(server, monkeypatch, reply):
    monkeypatch.setattr(image_fetch, "SECONDS_IN_ALL", 0.3)
    server.replies = [reply]
    with pytest.raises(ConnectionError, match="it is not complete after 0 seconds"):
        fetch(server.url, private=True)
    assert server.finished == 0, "it was waited for"


def test_a_name_that_nobody_resolves_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(image_fetch, "SECONDS_IN_ALL", 0.1)
    over = threading.Event()
    monkeypatch.setattr(image_fetch.socket, "getaddrinfo", lambda *a, **k: over.wait(5) and [])
    with pytest.raises(ConnectionError, match="not complete"):
        fetch("http://slow.test/")
    over.set()


@pytest.mark.parametrize(
    "reply",
    [
        [], [b"\0\0\0"], [b"HTTP/9 \r\n\r\n"], [b"HTTP/1.1 abc\r\n\r\n"], [b"x" * 100_000],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab"],
        [b"HTTP/1.1 404 \x1b]0;x\x07\r\n\r\n"], [b"HTTP/1.1 302 Found\r\n\r\n"], [b"HTTP/1.1 206 Part\r\n\r\na"],
        [b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500 + b"\r\n"],
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_one_line(server, reply, capsys):
    server.replies = [reply]
    assert run_command(["predict", "absent.one", server.url, "--allow-private"]) == 2
    said = capsys.readouterr().err
    assert "could not be fetched" in said
    assert said.count("\n") == 1
    assert said.strip().isprintable()


@pytest.mark.parametrize(
    "address",
    ["http://", "http:///a", "http://[", "http://a\x1b b/", "http://a:b/", "http://127.0.0.1:0/a\r\nX: y",
     "http://" + "a" * 300, "https://xn--", "http://\ud800/", "http://é" + "\u0301" * 90 + "/", "http://.../"],
)  # fmt: skip
def test_an_address_that_is_none_is_one_line(address, capsys):
    assert run_command(["predict", "absent.one", address]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert said.strip().isprintable()


@pytest.mark.parametrize("declared", [b"Content-Length: 900\r\n", b""])
def test_a_body_over_the_limit_is_refused(server, monkeypatch, declared):
    monkeypatch.setattr(image_fetch, "MAX_BYTES", 20)
    server.replies = [[b"HTTP/1.1 200 OK\r\n" + declared + b"\r\n" + b"x" * 900]]
    with pytest.raises(ValueError, match="is larger than"):
        fetch(server.url, private=True)
