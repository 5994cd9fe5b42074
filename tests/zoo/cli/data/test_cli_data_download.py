"""`zoo data download` against a loopback server that misbehaves; here for file_server, beside which it lies."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
import socket
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from file_server import FileServer

from datamodules.published import download as data_download
from datamodules.published.download import download
from datamodules.published.downloads import Publication, RemoteFile, publications
from zoo.cli.main import run_command
from zoo.runs import recipes
from zoo.storage.fetch import DownloadError, WrongFileError

NOISE = hashlib.shake_128(b"noise").digest(400_000)  # does not compress, so an archive is as large


def zipped(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return raw.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return raw.getvalue()


TRAIN = zipped({"train/0.jpg": NOISE})
LABELS = tarred({"labels.json": b"{}"})
NESTED = zipped({"annotations/masks.zip": zipped({"masks/0.png": b"png"}), "annotations/masks.json": b"{}"})
ADVICE = "a mirror lies elsewhere"
SPACE = namedtuple("SPACE", "total used free")


def toy(prefix: str) -> Publication:
    """A data set with every kind of file: known hash, unknown size, nested archives, no archive."""
    files = (
        RemoteFile("zips/train.zip", ("train",), size=len(TRAIN), sha256=hashlib.sha256(TRAIN).hexdigest()),
        RemoteFile("labels.tar.gz", ("train", "annotations"), into="train"),
        RemoteFile("masks.zip", ("masks",), nested=("annotations/masks.zip",)),
        RemoteFile("val/val.json", ("annotations",), into="val"),
    )
    return Publication(
        "toy", "Toy set", prefix, "CC BY", ADVICE, "none", ("train", "annotations"), "rt_detr/x", files
    )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    with FileServer() as running:
        running.files |= {
            "/toy/zips/train.zip": TRAIN, "/toy/labels.tar.gz": LABELS, "/toy/masks.zip": NESTED,
            "/toy/val/val.json": b"[]",
        }  # fmt: skip
        monkeypatch.setattr(data_download, "publications", lambda: {"toy": toy(f"{running.url}/toy/")})
        yield running


def get(output: Path, **choices: Any) -> None:
    download("toy", output, **{"jobs": 1, "first_pause": 0.01, **choices})


def tree(folder: Path, archives: bool = False) -> list[str]:
    files = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    hidden = (".downloads/lock", ".downloads/ledger.json")
    return sorted(
        str(p) for p in files if str(p) not in hidden and (archives or p.parts[0] != data_download.WORK)
    )


def ledger(folder: Path) -> dict[str, Any]:
    return json.loads((folder / ".downloads/ledger.json").read_text())


WHOLE = ["train/0.jpg", "train/labels.json", "val/val.json"]


def test_files_arrive_unpacked_and_licence_and_next_commands_are_told(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "download", "toy", "--output", str(tmp_path / "toy"), "--jobs", "4"]
    assert run_command(command) == 0
    assert tree(tmp_path / "toy") == WHOLE
    assert (tmp_path / "toy/train/0.jpg").read_bytes() == NOISE
    said = capsys.readouterr().out
    for text in ("CC BY", f"zoo data check {tmp_path}/toy", f"--config rt_detr/x --data.root {tmp_path}/toy"):
        assert text in said
    entries = ledger(tmp_path / "toy")
    assert entries["zips/train.zip"]["pinned"] == "known"
    assert entries["labels.tar.gz"] == {
        "size": len(LABELS), "sha256": hashlib.sha256(LABELS).hexdigest(), "pinned": "first_use",
        "top": ["train/labels.json"],
    }  # fmt: skip


def test_a_second_run_fetches_nothing(server: FileServer, tmp_path: Path) -> None:
    get(tmp_path / "toy")
    asked = len(server.requests)
    get(tmp_path / "toy", remove_archives=True)
    assert len(server.requests) == asked == 3
    assert tree(tmp_path / "toy", archives=True) == WHOLE
    get(tmp_path / "toy")
    assert len(server.requests) == asked, "what an archive made is enough"


def test_what_was_removed_is_unpacked_again_without_the_network(server: FileServer, tmp_path: Path) -> None:
    get(tmp_path / "toy")
    shutil.rmtree(tmp_path / "toy/train")
    asked = len(server.requests)
    get(tmp_path / "toy")
    assert tree(tmp_path / "toy") == WHOLE
    assert len(server.requests) == asked


def test_archives_stay_unless_they_are_to_be_removed(server: FileServer, tmp_path: Path) -> None:
    get(tmp_path / "kept")
    assert {".downloads/labels.tar.gz", ".downloads/zips/train.zip"} < set(tree(tmp_path / "kept", True))
    get(tmp_path / "removed", remove_archives=True)
    assert tree(tmp_path / "removed", True) == WHOLE


def test_a_part_alone_and_its_nested_archives(server: FileServer, tmp_path: Path) -> None:
    get(tmp_path / "toy", parts=["masks"])
    assert tree(tmp_path / "toy") == [
        "annotations/masks.json", "annotations/masks.zip", "annotations/masks/0.png",
    ]  # fmt: skip


def test_a_cut_connection_is_resumed_and_so_is_the_next_run(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cuts = [300_000]
    get(tmp_path / "a", parts=["train"])
    assert server.requests[:2] == [("/toy/zips/train.zip", None), ("/toy/zips/train.zip", "bytes=300000-")]
    monkeypatch.setattr(data_download, "_ATTEMPTS", 1)
    server.cuts, server.requests = [200_000], []
    with pytest.raises(DownloadError, match=f"ended after 200000 .*{ADVICE}"):
        get(tmp_path / "b", parts=["train"])
    assert tree(tmp_path / "b") == []
    get(tmp_path / "b", parts=["train"])
    asked = [ranges for path, ranges in server.requests if path == "/toy/zips/train.zip"]
    assert asked == [None, "bytes=200000-"]
    assert "train/0.jpg" in tree(tmp_path / "b")


def test_a_missing_file_is_told_before_the_start_with_what_else_there_is(
    server: FileServer, tmp_path: Path
) -> None:
    del server.files["/toy/labels.tar.gz"]
    with pytest.raises(DownloadError, match=f"labels.tar.gz answered 404 .*{ADVICE}"):
        get(tmp_path / "toy")
    assert server.requests == []
    assert tree(tmp_path / "toy") == []


def test_a_file_of_another_size_or_hash_is_refused(server: FileServer, tmp_path: Path) -> None:
    server.files["/toy/zips/train.zip"] = zipped({"train/0.jpg": NOISE[:1000]})
    with pytest.raises(WrongFileError, match=f"expected {len(TRAIN)}.*{ADVICE}"):
        get(tmp_path / "toy")
    server.files["/toy/zips/train.zip"] = zipped({"train/0.jpg": NOISE[::-1]})
    with pytest.raises(WrongFileError, match="with sha256"):
        get(tmp_path / "toy")
    assert "train/0.jpg" not in tree(tmp_path / "toy")


def test_later_downloads_are_held_to_the_first(server: FileServer, tmp_path: Path) -> None:
    get(tmp_path / "toy", remove_archives=True)
    shutil.rmtree(tmp_path / "toy/train")
    other = bytearray(LABELS)
    other[4] ^= 1  # the time in the header of gzip
    server.files["/toy/labels.tar.gz"] = bytes(other)
    with pytest.raises(WrongFileError, match=hashlib.sha256(LABELS).hexdigest()):
        get(tmp_path / "toy")


def test_a_corrupt_archive_is_thrown_away_and_never_pinned(server: FileServer, tmp_path: Path) -> None:
    server.files["/toy/labels.tar.gz"] = LABELS[:-20]
    with pytest.raises(ValueError, match=f"labels.tar.gz is no whole archive.*thrown away.*{ADVICE}"):
        get(tmp_path / "toy", parts=["annotations"])
    assert "labels.tar.gz" not in ledger_or_none(tmp_path / "toy")
    assert not (tmp_path / "toy/.downloads/labels.tar.gz").exists()
    server.files["/toy/labels.tar.gz"] = LABELS
    get(tmp_path / "toy", parts=["annotations"])
    assert tree(tmp_path / "toy") == ["train/labels.json", "val/val.json"]


def ledger_or_none(folder: Path) -> dict[str, Any]:
    return ledger(folder) if (folder / ".downloads/ledger.json").is_file() else {}


def test_a_disk_that_is_too_small_is_refused_before_the_start(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_download, "_SPARE", 0)
    free = len(TRAIN) + int(1.07 * len(TRAIN)) - 1
    monkeypatch.setattr(data_download.shutil, "disk_usage", lambda _: SPACE(free, 0, free))
    with pytest.raises(ValueError, match=r"needs about 0.8 MB .*has 0.8 MB.*--remove-archives"):
        get(tmp_path / "toy")
    assert server.requests == []
    free += 10 * len(LABELS)
    get(tmp_path / "toy")


def test_what_has_come_already_needs_no_room_again(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_download, "_ATTEMPTS", 1)
    server.cuts = [300_000]
    with pytest.raises(DownloadError):
        get(tmp_path / "toy", parts=["train"])
    monkeypatch.setattr(data_download, "_SPARE", 0)
    free = int(2.07 * len(TRAIN)) - 290_000
    monkeypatch.setattr(data_download.shutil, "disk_usage", lambda _: SPACE(free, 0, free))
    get(tmp_path / "toy", parts=["train"])


def test_a_disk_that_becomes_full_is_told_at_once_and_the_part_is_resumed(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoo.storage import fetch as fetching

    pump = fetching._pump

    def full(reply: Any, file: Any, *rest: Any) -> None:
        file.write(reply.read(100_000))
        file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetching, "_pump", full)
    with pytest.raises(DownloadError, match="disk became full"):
        get(tmp_path / "toy", parts=["train"])
    assert [path for path, _ in server.requests] == ["/toy/zips/train.zip"], "no second attempt"
    monkeypatch.setattr(fetching, "_pump", pump)
    get(tmp_path / "toy", parts=["train"])
    assert ("/toy/zips/train.zip", "bytes=100000-") in server.requests


def test_without_network_there_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    command = ["data", "download", "objects365", "--output", str(tmp_path / "o"), "--parts", "annotations"]
    assert run_command([*command, "--source", f"http://127.0.0.1:{port}"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(errors) == 1
    assert "no network, or the server is down" in errors[0]
    assert "OpenDataLab" in errors[0]


def test_a_server_without_head_is_asked_for_the_file(server: FileServer, tmp_path: Path) -> None:
    server.heads = [501, 501, 501]
    get(tmp_path / "toy")
    assert tree(tmp_path / "toy") == WHOLE


def test_a_failure_ends_the_others_and_keeps_their_parts(server: FileServer, tmp_path: Path) -> None:
    server.files["/toy/zips/train.zip"] = TRAIN + b"x"
    with pytest.raises(DownloadError, match="would give"):
        get(tmp_path / "toy")
    assert len(server.requests) == 1, "the files that waited were not asked for"


def test_a_folder_is_a_source_too(tmp_path: Path, server: FileServer) -> None:
    mirror = tmp_path / "mirror"
    for path, content in server.files.items():
        file = mirror / path.removeprefix("/toy/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    get(tmp_path / "toy", source=str(mirror))
    assert tree(tmp_path / "toy") == WHOLE
    assert server.requests == []


def test_objects365_lands_where_the_datamodule_looks(tmp_path: Path) -> None:
    with FileServer() as server:
        base = "/2020Objects365%E6%95%B0%E6%8D%AE%E9%9B%86/"
        server.files[f"{base}val/zhiyuan_objv2_val.json"] = b"{}"
        server.files[f"{base}train/zhiyuan_objv2_train.tar.gz"] = tarred({"zhiyuan_objv2_train.json": b"{}"})
        command = [
            "data",
            "download",
            "objects365",
            "--output",
            str(tmp_path / "o"),
            "--parts",
            "annotations",
        ]
        assert run_command([*command, "--source", f"{server.url}/2020Objects365数据集"]) == 0
    from datamodules.formats.objects365 import annotation_files

    assert set(annotation_files(tmp_path / "o")) == {"train", "val"}


@pytest.mark.parametrize(("name", "module"), [("coco", "CocoData"), ("objects365", "Objects365Data")])
def test_the_recipe_that_is_named_next_is_of_the_same_data(name: str, module: str) -> None:
    recipe = recipes.load(recipes.resolve(publications()[name].recipe))
    assert recipe["data"]["class_path"].endswith(f".{module}Module")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["objects356", "--output", "o"], "did you mean 'objects365'"),
        (["coco", "--output", "o", "--parts", "trian"], "its parts are train, val, annotations, panoptic"),
        (["coco", "--output", "file"], "is a file"),
    ],
)
def test_requests_that_cannot_be_met(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    (tmp_path / "file").write_text("")
    assert run_command(["data", "download", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_two_downloads_into_one_folder_do_not_meet(server: FileServer, tmp_path: Path) -> None:
    with data_download._alone(tmp_path / "toy" / data_download.WORK):
        with pytest.raises(ValueError, match="another download into"):
            get(tmp_path / "toy")


def test_the_result_as_json(server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "download", "toy", "--output", str(tmp_path / "toy"), "--json"]
    assert run_command(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert sorted(document["fetched"]) == ["labels.tar.gz", "val/val.json", "zips/train.zip"]
    assert document["next"][0] == f"zoo data check {tmp_path / 'toy'}"


def test_a_source_folder_that_is_not_there_or_lacks_a_file_is_told_as_that(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror = tmp_path / "mirror"
    command = ["data", "download", "toy", "--output", str(tmp_path / "toy"), "--source", str(mirror)]
    assert run_command(command) == 2
    assert capsys.readouterr().err == f"error: --source {mirror}: there is no such folder\n"
    assert not (tmp_path / "toy").exists()
    (mirror / "val").mkdir(parents=True)
    (mirror / "val/val.json").write_bytes(b"[]")
    for source in (str(mirror), f"file://{mirror}"):
        command[-1] = source
        assert run_command(command) == 2
        said = capsys.readouterr().err
        assert f"--source {source} has no zips/train.zip, labels.tar.gz; put the file there" in said
        assert ADVICE not in said
    assert server.requests == []
