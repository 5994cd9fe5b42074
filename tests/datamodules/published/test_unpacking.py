"""Archives from elsewhere: whole or not at all, and only into their folder."""

from __future__ import annotations

import errno
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.published import unpacking
from datamodules.published.unpacking import ArchiveError, unpack

FILES = {"patch0/a.jpg": b"a" * 1000, "patch0/b.jpg": bytes(range(256)) * 400}


def make_zip(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


MAKERS = {"x.zip": make_zip, "x.tar.gz": make_tar}
each = pytest.mark.parametrize("name", MAKERS)


def run(archive: Path) -> list[str]:
    return unpack(archive, archive.parent / "out", archive.parent / "staging")


def left(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in (folder / "out").rglob("*") if p.is_file())


@each
def test_an_archive_is_unpacked_into_what_is_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "out/patch0").mkdir(parents=True)
    (tmp_path / "out/patch0/other.jpg").write_bytes(b"o")
    (tmp_path / "out/patch0/a.jpg").write_bytes(b"old")
    assert run(MAKERS[name](tmp_path / name)) == ["patch0"]
    assert left(tmp_path) == ["out/patch0/a.jpg", "out/patch0/b.jpg", "out/patch0/other.jpg"]
    assert {n: (tmp_path / "out" / n).read_bytes() for n in FILES} == FILES
    assert not (tmp_path / "staging").exists()


@each
@pytest.mark.parametrize("member", ["../evil.jpg", "/etc/evil", "a/../../evil", "..\\evil", "C:/evil"])
def test_paths_that_lead_out_are_refused(tmp_path: Path, name: str, member: str) -> None:
    archive = MAKERS[name](tmp_path / name, {**FILES, member: b"x"})
    with pytest.raises(ArchiveError, match="leads out of the folder"):
        run(archive)
    assert left(tmp_path) == []
    assert not list(tmp_path.parent.glob("evil*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_of_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("patch0")
        info.type, info.linkname = kind, "/tmp"
        archive.addfile(info)
    with pytest.raises(ArchiveError, match="a link or device"):
        run(tmp_path / "x.tar.gz")
    assert left(tmp_path) == []


def test_links_of_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        info = zipfile.ZipInfo("patch0")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/tmp")
    with pytest.raises(ArchiveError, match="a link or device"):
        run(tmp_path / "x.zip")


@each
@pytest.mark.parametrize("damage", ["cut", "checksum", "other"])
def test_a_damaged_archive_leaves_nothing(tmp_path: Path, name: str, damage: str) -> None:
    archive = MAKERS[name](tmp_path / name)
    content = bytearray(archive.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "checksum" and name.endswith(".zip"):
        content[content.index(b"a" * 100) + 5] ^= 1
    elif damage == "checksum":
        content[-6] ^= 1  # in the gzip trailer, which a reader of tar members alone never sees
    else:
        content = bytearray(b"<html>not found</html>")
    archive.write_bytes(content)
    with pytest.raises(ArchiveError, match="no whole archive"):
        run(archive)
    assert left(tmp_path) == []
    assert not (tmp_path / "staging").exists()


@each
def test_an_empty_archive_is_no_data(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match="is empty"):
        run(MAKERS[name](tmp_path / name, {}))


@each
def test_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(unpacking.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="became full while"):
        run(MAKERS[name](tmp_path / name))
    assert left(tmp_path) == []
    assert not (tmp_path / "staging").exists()


@each
def test_a_folder_may_be_a_link_to_another_disk(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = unpacking.os.replace

    def other_disk(source: Path, target: Path) -> None:
        if "staging" in Path(source).parts:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(unpacking.os, "replace", other_disk)
    assert run(MAKERS[name](tmp_path / name)) == ["patch0"]
    assert left(tmp_path) == ["out/patch0/a.jpg", "out/patch0/b.jpg"]
    assert (tmp_path / "out/patch0/b.jpg").read_bytes() == FILES["patch0/b.jpg"]


def zip_bomb(path: Path, size: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("a.json", "w") as member:
            for _ in range(size >> 20):
                member.write(bytes(1 << 20))


def tar_bomb(path: Path, size: int) -> None:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        info = tarfile.TarInfo("a.json")
        info.size = size
        archive.addfile(info, Zeros())


def long_header(path: Path, size: int) -> None:
    """A name of so many bytes, which tarfile reads at once."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        info = tarfile.TarInfo("a")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
        archive.addfile(info, Zeros())


class Zeros(io.RawIOBase):
    def read(self, count: int = -1) -> bytes:
        return bytes(count)


@pytest.mark.parametrize(
    ("name", "make"), [("a.zip", zip_bomb), ("a.tar.gz", tar_bomb), ("b.tar.gz", long_header)]
)
def test_an_archive_that_unfolds_to_much_more_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, make: Callable[[Path, int], None]
) -> None:
    monkeypatch.setattr(unpacking, "_SMALLEST_LIMIT", 1 << 20)
    make(tmp_path / name, 24 << 20)
    assert (tmp_path / name).stat().st_size < 200_000
    with pytest.raises(ArchiveError, match="more than 100 times its size; it is not unpacked") as refused:
        run(tmp_path / name)
    assert "\n" not in str(refused.value)
    assert left(tmp_path) == []
    assert not (tmp_path / "staging").exists()


@pytest.mark.parametrize(("name", "make"), [("a.zip", make_zip), ("a.tar.gz", make_tar)])
def test_an_archive_of_too_many_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, make: Callable[[Path], Path]
) -> None:
    monkeypatch.setattr(unpacking, "_MOST_MEMBERS", 1)
    with pytest.raises(ArchiveError, match="holds more than 1 files"):
        run(make(tmp_path / name))
    assert left(tmp_path) == []
    assert not (tmp_path / "staging").exists()
