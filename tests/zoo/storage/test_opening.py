"""Pipes, sockets and devices where files should be: nothing waits for them and nothing reads them."""

import os
import socket

import pytest

from zoo.cli.main import run_command
from zoo.registry.manifest import ManifestError
from zoo.registry.store import LocalRegistry
from zoo.storage.fetch import DownloadError, Expected, fetch, fetch_text
from zoo.storage.opening import NoFileError, open_file


@pytest.fixture(params=["pipe", "socket", "device"])
def no_file(request, tmp_path):
    path = tmp_path / "no_file"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "device":
        path.symlink_to("/dev/zero")
    else:
        socket.socket(socket.AF_UNIX).bind("no_file")  # in the working directory: the name may have 107 bytes
    return path


def test_it_is_not_opened(no_file):
    with pytest.raises((NoFileError, OSError)):
        open_file(no_file)


def test_it_is_not_fetched(no_file, tmp_path):
    with pytest.raises(DownloadError) as refused:
        fetch(f"file://{no_file}", tmp_path / "copy", Expected())
    assert "no_file" in str(refused.value)
    with pytest.raises(DownloadError, match="no_file"):
        fetch_text(f"file://{no_file}", 100)
    assert not (tmp_path / "copy").exists()


def test_it_is_no_alias(no_file, tmp_path):
    folder = tmp_path / "registry" / "rt_detr_tiny.a" / "aliases"
    folder.mkdir(parents=True)
    no_file.rename(folder / "champion")
    with pytest.raises((NoFileError, OSError, ManifestError)):
        LocalRegistry(tmp_path / "registry").aliases("rt_detr_tiny.a")


@pytest.mark.parametrize(
    "command",
    [
        ["pull", "file://{}"], ["pull", "rt_detr_r18", "--source", "{}"], ["fit", "--config", "{}"],
        ["predict", "{}", "x.png"], ["data", "check", "{}"], ["data", "show", "{}"],
    ],
)  # fmt: skip
def test_a_command_that_is_given_it_says_one_line(no_file, capsys, command):
    assert run_command([part.format(no_file) for part in command]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_a_file_larger_than_expected_is_not_copied(tmp_path):
    (tmp_path / "large").write_bytes(bytes(1000))
    with pytest.raises(DownloadError, match="has 1000 bytes, at most 10 are expected"):
        fetch(str(tmp_path / "large"), tmp_path / "copy", Expected(size=10))
    assert list(tmp_path.iterdir()) == [tmp_path / "large"]
