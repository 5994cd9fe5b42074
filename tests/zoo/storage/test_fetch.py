import hashlib
import socket
import threading

import pytest
from file_server import FileServer

from zoo.storage import fetch as fetching
from zoo.storage.fetch import DownloadError, Expected, WrongFileError, fetch, fetch_text

CONTENT = bytes(range(256)) * 4000
SHA = hashlib.sha256(CONTENT).hexdigest()
RIGHT = Expected(len(CONTENT), SHA)


@pytest.fixture
def server():
    with FileServer() as running:
        running.files["/w.bin"] = CONTENT
        yield running


def get(server, target, expected=RIGHT, path="/w.bin", attempts=3):
    return fetch(server.url + path, target, expected, attempts=attempts, first_pause=0.01)


def test_the_right_file_arrives_and_nothing_else_stays(server, tmp_path):
    seen = []
    fetch(server.url + "/w.bin", tmp_path / "w.bin", RIGHT, progress=lambda *now: seen.append(now))
    assert (tmp_path / "w.bin").read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["w.bin"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_a_cut_connection_is_resumed_where_it_ended(server, tmp_path):
    server.cuts = [300_000, 200_000]
    assert get(server, tmp_path / "w.bin") == SHA
    assert [asked for _, asked in server.requests] == [None, "bytes=300000-", "bytes=500000-"]


def test_the_next_process_resumes_what_an_earlier_one_left(server, tmp_path):
    server.cuts = [300_000]
    with pytest.raises(DownloadError):
        get(server, tmp_path / "w.bin", attempts=1)
    assert get(server, tmp_path / "w.bin") == SHA
    assert server.requests[-1][1] == "bytes=300000-"


def test_a_file_that_changed_in_between_is_never_spliced(server, tmp_path):
    server.cuts = [300_000]
    with pytest.raises(DownloadError):
        get(server, tmp_path / "w.bin", Expected(), attempts=1)
    server.files["/w.bin"], server.etag = b"n" * 400_000, '"v2"'
    get(server, tmp_path / "w.bin", Expected())
    assert (tmp_path / "w.bin").read_bytes() == b"n" * 400_000


@pytest.mark.parametrize("how", ["no ranges", "no etag"])
def test_a_server_that_cannot_resume_starts_again(server, tmp_path, how):
    server.ranges = how != "no ranges"
    server.etag = "" if how == "no etag" else server.etag
    server.cuts = [300_000]
    assert get(server, tmp_path / "w.bin", Expected()) == SHA
    assert (tmp_path / "w.bin").read_bytes() == CONTENT


def test_a_part_file_that_is_whole_already_is_taken(server, tmp_path):
    (tmp_path / "w.bin.part").write_bytes(CONTENT)
    assert get(server, tmp_path / "w.bin") == SHA


def test_a_part_file_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "w.bin.part").write_bytes(CONTENT + b"x")
    assert get(server, tmp_path / "w.bin") == SHA


@pytest.mark.parametrize(
    ("expected", "says"),
    [
        (Expected(len(CONTENT), "0" * 64), f"sha256 {SHA}, expected 0000"),
        (Expected(len(CONTENT) + 1, None), f"gave {len(CONTENT)} bytes, expected {len(CONTENT) + 1}"),
    ],
)
def test_another_file_is_refused_and_thrown_away(server, tmp_path, expected, says):
    with pytest.raises(WrongFileError, match=says):
        get(server, tmp_path / "w.bin", expected)
    assert list(tmp_path.iterdir()) == []


def test_a_file_larger_than_expected_is_not_fetched(server, tmp_path):
    with pytest.raises(DownloadError, match="at most 10 are expected"):
        get(server, tmp_path / "w.bin", Expected(10, None))


def test_the_hash_at_the_end_of_an_address_is_checked(server, tmp_path):
    get(server, tmp_path / "w.bin", Expected(), f"/w.bin#sha256={SHA[:12]}")
    with pytest.raises(WrongFileError, match="expected 00000000"):
        get(server, tmp_path / "x.bin", Expected(), "/w.bin#sha256=00000000")
    with pytest.raises(WrongFileError, match="hex digits"):
        get(server, tmp_path / "x.bin", Expected(), "/w.bin#md5=abc")


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server, tmp_path):
    server.statuses = [503, 500]
    assert get(server, tmp_path / "w.bin") == SHA
    asked = len(server.requests)
    with pytest.raises(DownloadError, match="404"):
        get(server, tmp_path / "x.bin", path="/none.bin")
    assert len(server.requests) == asked + 1


def test_no_network_is_said(tmp_path):
    with FileServer() as gone:
        address = gone.url
    with pytest.raises(DownloadError, match="no network, or the server is down"):
        fetch(f"{address}/w.bin", tmp_path / "w.bin", RIGHT, attempts=2, first_pause=0.01)


def test_files_on_disk_are_copied_and_checked(tmp_path):
    (tmp_path / "a b.bin").write_bytes(CONTENT)
    assert fetch((tmp_path / "a b.bin").as_uri(), tmp_path / "w.bin", RIGHT) == SHA
    assert fetch(str(tmp_path / "a b.bin"), tmp_path / "v.bin", RIGHT) == SHA
    with pytest.raises(DownloadError, match=r"none\.bin cannot be read"):
        fetch(str(tmp_path / "none.bin"), tmp_path / "v.bin", RIGHT)


@pytest.mark.parametrize("address", ["ftp://127.0.0.1/x", "file://elsewhere/x", "data:,x"])
def test_other_schemes_are_refused(tmp_path, address):
    with pytest.raises(DownloadError):
        fetch(address, tmp_path / "x", Expected())
    with pytest.raises(DownloadError):
        fetch_text(address, 10)


def test_text_has_a_limit(server):
    assert fetch_text(server.url + "/w.bin", len(CONTENT)) == CONTENT
    with pytest.raises(DownloadError, match="larger than 10 bytes"):
        fetch_text(server.url + "/w.bin", 10)


@pytest.fixture
def impatient(monkeypatch):
    """What is given a minute gets a fifth of a second."""
    monkeypatch.setattr(fetching, "_WINDOW", 0.2)
    monkeypatch.setattr(fetching, "_LONGEST_ANSWER", 0.2)


def test_a_server_that_drips_is_given_up_and_what_came_is_gone_on_with(server, tmp_path, impatient):
    server.drip = (10, 0.01)
    with pytest.raises(
        DownloadError, match=r"sends \d+ bytes a second, and fewer .* what came is kept"
    ) as said:
        get(server, tmp_path / "w.bin", attempts=2)
    assert "\n" not in str(said.value)
    first, second = (asked for _, asked in server.requests)
    assert first is None
    assert second is not None  # the second attempt goes on
    had = (tmp_path / "w.bin.part").stat().st_size
    assert int(second[6:-1]) < had < 5000
    server.drip = None
    assert get(server, tmp_path / "w.bin") == SHA
    assert server.requests[-1][1] == f"bytes={had}-"


def test_a_server_that_is_slow_and_fast_enough_is_waited_for(server, tmp_path, impatient):
    server.files["/w.bin"] = CONTENT[:20_000]
    server.drip = (400, 0.01)  # up to 40 000 bytes a second, for longer than the window
    get(server, tmp_path / "w.bin", Expected(20_000), attempts=1)
    assert (tmp_path / "w.bin").read_bytes() == CONTENT[:20_000]


def test_text_that_drips_is_not_waited_for(server, impatient):
    server.files["/a.yaml"], server.drip = b"name: a", (1, 0.1)
    with pytest.raises(DownloadError, match=r"no answer within 0\.2 s"):
        fetch_text(server.url + "/a.yaml", 100)


def test_headers_that_drip_are_not_waited_for(tmp_path, impatient):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        over = threading.Event()

        def serve():
            connection, _ = listening.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nA: ")
                while not over.wait(0.02):
                    connection.sendall(b"b")

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(DownloadError, match=r"no answer within 0\.2 s"):
            fetch(f"http://127.0.0.1:{listening.getsockname()[1]}/a", tmp_path / "a", Expected(), attempts=1)
        over.set()
