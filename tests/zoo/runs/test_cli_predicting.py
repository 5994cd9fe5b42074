import base64
import io
import json
import os
import shlex
import threading
from pathlib import Path

import pytest
from loopback_server import LoopbackServer, QuietHandler
from PIL import Image

from zoo.cli.main import run_command
from zoo.runs import predict as predicting
from zoo.runs import subject
from zoo.runs.console import Console, quoted
from zoo.runs.predict import open_source
from zoo.storage import image_fetch as fetching
from zoo.storage.image_fetch import decode_data_uri, fetch


def png(size=(8, 6)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


class Handler(QuietHandler):
    """Serves a picture, one without a declared length, a redirect to a file, and a 404."""

    def do_GET(self) -> None:
        body = png()
        if self.path == "/a.png":
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        elif self.path == "/undeclared.png":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)
        elif self.path == "/to_file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
        elif self.path == "/slow":
            self.server.wait.wait(20)  # type: ignore[attr-defined]
        else:
            self.send_error(404)


@pytest.fixture
def server():
    with LoopbackServer(Handler) as web:
        web.server.wait = threading.Event()
        yield web.url
        web.server.wait.set()


def test_an_address_is_fetched(server):
    [picture] = open_source(f"{server}/a.png", allow_private=True)
    assert (picture.stem, picture.content) == ("a", png())
    assert fetch(f"{server}/undeclared.png", private=True) == png()


@pytest.mark.parametrize("path", ["/a.png", "/undeclared.png"])
def test_a_picture_that_is_too_large_is_refused(server, monkeypatch, path):
    monkeypatch.setattr(fetching, "MAX_BYTES", 20)
    with pytest.raises(ValueError, match="is larger than"):
        fetch(f"{server}{path}", private=True)


def test_a_server_that_does_not_answer_in_time(server, monkeypatch):
    monkeypatch.setattr(fetching, "SECONDS", 0.2)
    with pytest.raises(ConnectionError, match=r"/slow could not be fetched: timed out"):
        fetch(f"{server}/slow", private=True)


def test_a_redirect_to_a_file_is_not_followed(server):
    with pytest.raises(ConnectionError, match="could not be fetched"):
        fetch(f"{server}/to_file", private=True)


def test_a_missing_page_is_an_error(server):
    with pytest.raises(ConnectionError, match="Not Found"):
        fetch(f"{server}/gone.png", private=True)


def test_a_data_uri():
    uri = "data:image/png;base64," + base64.b64encode(png()).decode()
    [picture] = open_source(uri)
    assert picture.content == png()
    assert decode_data_uri("data:,a%20b") == b"a b"


@pytest.mark.parametrize(
    ("uri", "message"),
    [("data:image/png;base64", "has no comma"), ("data:image/png;base64,%", "not valid base64")],
)
def test_a_broken_data_uri(uri, message):
    with pytest.raises(ValueError, match=message):
        decode_data_uri(uri)


def test_a_data_uri_that_is_too_large(monkeypatch):
    monkeypatch.setattr(fetching, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="an image may have 10 bytes"):
        decode_data_uri("data:image/png;base64," + "A" * 1000)


@pytest.mark.parametrize("source", ["ftp://127.0.0.1/a.png", "file:///etc/passwd"])
def test_other_addresses_are_refused(source):
    with pytest.raises(ValueError, match="addresses are not fetched"):
        list(open_source(source))


def test_a_folder_gives_its_pictures_in_order(tmp_path):
    for name in ("b.png", "a.PNG", "notes.txt"):
        (tmp_path / name).write_bytes(png())
    assert [p.stem for p in open_source(str(tmp_path))] == ["a", "b"]


def test_a_folder_without_pictures(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no image"):
        list(open_source(str(tmp_path)))


class FakeDetector:
    """Finds one cat; stands for a model."""

    name = "fake"

    def __init__(self) -> None:
        from zoo.contract.labels import LabelMap
        from zoo.contract.preprocess import InputContract

        self.label_map, self.input = (
            LabelMap.contiguous(["cat"], [17]),
            InputContract(resize="stretch", size=(64, 64)),
        )
        self.thresholds, self.default_threshold = None, 0.3

    def tiles_of(self, tiles, tile_overlap):
        return None

    def predict(self, image, threshold, tiles=None, tile_overlap=None):
        from zoo.detector import Prediction

        return Prediction(
            [0.998],
            ["cat"],
            [17],
            [(1.0, 2.0, 5.0, 6.0)],
            image.size[::-1],
            threshold,
            "fake",
            self.label_map,
        )


def test_detections_are_printed_written_and_drawn(tmp_path, capsys):

    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pet.png").write_bytes(png())
    sources = [str(tmp_path / "x" / "pet.png"), str(tmp_path / "y")]
    out = Path("out")
    predicting.predict(FakeDetector, sources, 0.3, out, Console())
    said = capsys.readouterr().out
    assert "Detected cat with confidence 0.998 at location [1.00, 2.00, 5.00, 6.00]" in said
    assert said.count("locations are [left, top, right, bottom] in pixels of the image (xyxy)\n") == 1
    written = json.loads((out / "predictions.json").read_text())
    assert [d["box_xyxy"] for p in written["predictions"] for d in p["detections"]] == [
        [1.0, 2.0, 5.0, 6.0]
    ] * 2
    # two pictures of one name do not overwrite each other
    assert sorted(p.name for p in out.glob("*.png")) == ["pet_2_detections.png", "pet_detections.png"]


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "c.png"):
        (folder / name).write_bytes(png())
    return folder


def test_what_is_hidden_or_a_folder_is_no_picture(pictures):
    (pictures / "._a.png").write_bytes(b"of macOS")
    (pictures / "thumbs.jpg").mkdir()
    (pictures / "gone.jpg").symlink_to(pictures / "nowhere.jpg")
    assert [p.stem for p in open_source(str(pictures))] == ["a", "c"]


def test_a_picture_that_cannot_be_read_is_told_and_the_others_are_predicted(pictures, capsys, monkeypatch):
    (pictures / "b.png").write_bytes(png((64, 64))[:60])
    monkeypatch.setattr(subject, "load", lambda name, registry: FakeDetector())
    assert run_command(["predict", "fake", str(pictures), "--threshold", "0.3", "--output", "out"]) == 1
    told = capsys.readouterr().out
    assert f"left out    {pictures / 'b.png'} is not an image that can be read" in told
    assert told.splitlines()[-1].startswith(
        f"1 image of 3 could not be read; the first: {pictures / 'b.png'}"
    )
    written = json.loads(Path("out/predictions.json").read_text())
    assert [Path(p["source"]).name for p in written["predictions"]] == ["a.png", "c.png"]
    assert [p["image_id"] for p in written["predictions"]] == [1, 2]
    assert len(written["unreadable"]) == 1
    assert (
        run_command(["predict", "fake", str(pictures / "a.png"), "--threshold", "0.3", "--output", "all"])
        == 0
    )


def test_where_no_picture_can_be_read_nothing_is_written(pictures):
    for name in ("a.png", "c.png"):
        (pictures / name).write_bytes(b"no")
    with pytest.raises(ValueError, match=r"none of 2 images can be read; the first: .*a\.png"):
        predicting.predict(FakeDetector, [str(pictures)], 0.3, Path("out"), Console())
    with pytest.raises(ValueError, match=r"a\.png is not an image"):
        predicting.predict(FakeDetector, [str(pictures / "a.png")], 0.3, Path("out"), Console())
    assert list(Path("out").iterdir()) == []


@pytest.mark.parametrize(
    "name", [b"\xff\xe9.png", b"\x1b]0;owned\x07.png", b"x" * 250 + b".png", b"$(touch y) '.png"]
)
def test_names_that_nobody_chose_are_predicted_and_printed_harmlessly(tmp_path, name, capsys):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / os.fsdecode(name)
    path.write_bytes(png())
    assert not predicting.predict(FakeDetector, [str(path.parent)], 0.3, Path("out"), Console())["unreadable"]
    assert not set(capsys.readouterr().out) & {"\x1b", "\x07"}
    assert json.loads(Path("out/predictions.json").read_text())["predictions"][0]["image_id"] == 1


def test_a_line_to_copy_is_one_word_to_a_shell(tmp_path):
    for name in ("IMG 1 (2).jpg", "it's.jpg", "a;b", "$HOME", "--x y"):
        assert shlex.split(f"zoo data check {quoted(tmp_path / name)}")[-1] == str(tmp_path / name)
