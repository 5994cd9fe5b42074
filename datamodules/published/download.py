"""Downloads a published data set: resumed, checked and unpacked; a file is there whole or not at all."""

from __future__ import annotations

import difflib
import http.client
import json
import secrets
import shutil
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from datamodules.published.downloads import Publication, RemoteFile, address, publications
from datamodules.published.unpacking import ArchiveError, unpack
from zoo.storage.durable import sha256_of, write_json
from zoo.storage.fetch import DownloadError, Expected, WrongFileError, fetch

WORK = ".downloads"  # below the output: archives, parts of files, and what is known of them
LEDGER = "ledger.json"
_ATTEMPTS = 12
_SPARE = 1 << 30  # bytes to leave on the disk
_TIMEOUT = 30.0
_NAMED = 3  # files that a message names


@dataclass(frozen=True)
class Downloaded:
    """A data set that is there.

    Attributes:
        publication: what was asked for.
        output: its folder, absolute.
        fetched: files that were fetched now.
        files: path -> what is known of each file that was asked for: see `_Ledger`.
    """

    publication: Publication
    output: Path
    fetched: list[str]
    files: dict[str, dict[str, Any]]


def download(
    name: str,
    output: str | Path,
    *,
    parts: Sequence[str] | None = None,
    source: str | None = None,
    jobs: int = 4,
    remove_archives: bool = False,
    first_pause: float = 0.5,
    say: Callable[[str], None] = lambda text: None,
) -> Downloaded:
    """Fetches and unpacks the files of a published data set that are not there yet.

    Args:
        name: of `publications()`.
        output: folder of the data set; archives are kept in `.downloads` below it.
        parts: of the data set; None for those that training and evaluation need.
        source: mirror with the same files: the beginning of its addresses, or a folder.
        jobs: files at a time.
        remove_archives: each one when it is unpacked.
        first_pause: seconds before the second attempt of a file; later pauses grow.
        say: takes the licence, how much there is to fetch, and a line for each file.

    Raises:
        ValueError: no such data set or part; not enough room; an archive is damaged; another download runs.
        DownloadError: a file cannot be had; says what else to try.
        WrongFileError: a file differs from what it is known to be.
    """
    publication = _publication(name)
    files = publication.select(parts or publication.default_parts)
    output = Path(output).expanduser().absolute()
    work = output / WORK
    say(f"{publication.title}\n{publication.licence}\n{publication.checksums}")
    _refuse_file(output)
    _refuse_missing_folder(source)
    with _alone(work):
        job = _Job(
            publication, output, source, jobs, remove_archives, first_pause, _Ledger.read(work / LEDGER)
        )
        todo = [file for file in files if not job.ledger.has(file, output)]
        _refuse_missing_files(job, todo)
        sizes = job.sizes(todo)
        say(
            f"{len(files) - len(todo)} of {len(files)} files are there; "
            f"{len(todo)} to fetch ({_gigabytes(sum(size or 0 for size in sizes.values()))})"
        )
        _refuse_full_disk(job, todo, sizes)
        job.run(todo, sizes, say)
        if remove_archives:
            for file in files:
                job.archive(file).unlink(missing_ok=True)
    entries = {file.path: job.ledger.entries[file.path] for file in files}
    return Downloaded(publication, output, [file.path for file in todo], entries)


def _publication(name: str) -> Publication:
    known = publications()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    raise ValueError(
        f"no data set {name!r} to download"
        + (f" (did you mean {near[0]!r}?)" if near else "")
        + f"; there are {', '.join(known)}"
    )


@dataclass
class _Ledger:
    """What was fetched and unpacked below one output, so that a second run does nothing twice.

    An entry has size, sha256, `pinned` (`known`: the sha256 was known before; `first_use`: it is that of the
    first file that unpacked whole), and `top`, what it made below the output.
    """

    path: Path
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def read(cls, path: Path) -> _Ledger:
        if not path.is_file():
            return cls(path)
        try:
            return cls(path, json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(
                f"{path} cannot be read ({error}); remove it: then files are fetched again"
            ) from error

    def has(self, file: RemoteFile, output: Path) -> bool:
        """Whether the file was unpacked and what it made is still there."""
        made = self.entries.get(file.path, {}).get("top", [])
        return bool(made) and all((output / name).exists() for name in made)

    def expected(self, file: RemoteFile) -> Expected:
        """What is known of it: by everybody, else from its first download here."""
        entry = self.entries.get(file.path, {})
        return Expected(file.size or entry.get("size"), file.sha256 or entry.get("sha256"))

    def add(self, file: RemoteFile, size: int, digest: str, top: list[str]) -> None:
        """Notes a file that arrived and unpacked whole."""
        with self.lock:
            pinned = "known" if file.sha256 else "first_use"
            self.entries[file.path] = {"size": size, "sha256": digest, "pinned": pinned, "top": top}
            write_json(self.path, self.entries, indent=1)


class _Stopped(Exception):
    """Another file failed, or the user pressed Ctrl-C; what came of this one stays for the next run."""


@dataclass
class _Job:
    """One download; the arguments are those of `download`."""

    publication: Publication
    output: Path
    source: str | None
    jobs: int
    remove_archives: bool
    first_pause: float
    ledger: _Ledger
    stop: threading.Event = field(default_factory=threading.Event)

    def address(self, file: RemoteFile) -> str:
        return address(self.source or self.publication.prefix, file.path)

    def archive(self, file: RemoteFile) -> Path:
        """Where an archive is kept until it is unpacked; two patches of two splits have one name."""
        return self.output / WORK / file.path

    def sizes(self, files: Sequence[RemoteFile]) -> dict[str, int | None]:
        """Bytes of each file, asked of the server where they are not known.

        Raises:
            DownloadError: there is no network, or no such file.
        """
        with ThreadPoolExecutor(8) as pool:
            return dict(zip((f.path for f in files), pool.map(self._size, files), strict=True))

    def _size(self, file: RemoteFile) -> int | None:
        known = self.ledger.expected(file).size
        return known if known is not None else self._ask_size(self.address(file))

    def _ask_size(self, url: str) -> int | None:
        if not _is_web(url):
            return _local(url).stat().st_size
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "detr-zoo"})
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as reply:
                length = reply.headers.get("Content-Length", "")
                return int(length) if length.isdigit() else None
        except urllib.error.HTTPError as error:
            if error.code in (404, 410):
                raise self.advised(DownloadError(f"{url} answered {error.code} {error.reason}")) from error
            return None  # not every server answers a HEAD
        except http.client.HTTPException:
            return None  # the GET will tell
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise self.advised(
                DownloadError(f"{url} cannot be reached ({reason}): no network, or the server is down")
            ) from error

    def advised(self, error: Exception) -> Exception:
        """The error with what else can be tried."""
        text = str(error).split("\n")[0].rstrip(".")
        return type(error)(f"{text}. What else there is: {self.publication.alternatives}")

    def run(
        self, files: Sequence[RemoteFile], sizes: dict[str, int | None], say: Callable[[str], None]
    ) -> None:
        """Fetches and unpacks several at a time; the first failure ends all, and every part file stays."""
        total = sum(size or 0 for size in sizes.values()) or None
        bar = tqdm(total=total, unit="B", unit_scale=True, disable=not files, mininterval=_interval())
        with bar, ThreadPoolExecutor(max(1, self.jobs)) as pool:
            futures = [pool.submit(self._one, file, bar) for file in files]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # also when the user pressed Ctrl-C
                self.stop.set()
                for future in futures:
                    future.cancel()
        for future in futures:
            error = None if future.cancelled() else future.exception()
            if error is not None and not isinstance(error, _Stopped):
                raise error
        for file in files:
            entry = self.ledger.entries[file.path]
            say(f"{file.path}  {entry['size']} bytes  sha256 {entry['sha256']} ({entry['pinned']})")

    def _one(self, file: RemoteFile, bar: Any) -> None:
        try:
            self._fetch_and_unpack(file, bar)
        except BaseException:
            self.stop.set()  # before this thread takes the next file
            raise

    def _fetch_and_unpack(self, file: RemoteFile, bar: Any) -> None:
        if self.stop.is_set():
            raise _Stopped
        target = self.archive(file) if file.is_archive else self.output / file.into / file.name
        expected = self.ledger.expected(file)
        digest = _whole(target, expected)
        if digest is None:
            digest = self._fetch(file, target, expected, bar)
        size = target.stat().st_size
        if self.stop.is_set():
            raise _Stopped
        top = self._unpack(file, target) if file.is_archive else [f"{file.into}/{file.name}"]
        self.ledger.add(file, size, digest, top)
        if self.remove_archives and file.is_archive:
            target.unlink()

    def _fetch(self, file: RemoteFile, target: Path, expected: Expected, bar: Any) -> str:
        seen = 0

        def progress(now: int, _: int | None) -> None:
            nonlocal seen
            if self.stop.is_set():
                raise _Stopped
            with self.ledger.lock:
                bar.update(now - seen)
            seen = now

        try:
            return fetch(
                self.address(file),
                target,
                expected,
                progress=progress,
                attempts=_ATTEMPTS,
                first_pause=self.first_pause,
                largest=None,
            )
        except (DownloadError, WrongFileError) as error:
            raise self.advised(error) from error

    def _unpack(self, file: RemoteFile, archive: Path) -> list[str]:
        into = self.output / file.into
        staging = self.output / WORK / f"unpacking-{secrets.token_hex(4)}"
        try:
            top = unpack(archive, into, staging)
            for nested in file.nested:
                unpack(into / nested, (into / nested).parent, staging)
        except ArchiveError as error:
            archive.unlink()
            raise ValueError(
                f"{error}. The file was thrown away; run the same command again. If it comes damaged again: "
                f"{self.publication.alternatives}"
            ) from error
        return [f"{file.into}/{name}" for name in top]


def _whole(target: Path, expected: Expected) -> str | None:
    """The sha256 of a file that an earlier run fetched, if it may be the right one."""
    if not target.is_file() or expected.size not in (None, target.stat().st_size):
        return None
    digest = sha256_of(target)
    return digest if digest.startswith(expected.sha256 or "") else None


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """One download into a folder at a time; leftovers of one that was killed are removed."""
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=1):
            for left_over in work.glob("unpacking-*"):
                shutil.rmtree(left_over)
            yield
    except Timeout as error:
        raise ValueError(f"another download into {work.parent} is running; wait for it") from error


def _refuse_file(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file; give a folder")


def _is_web(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _local(source: str) -> Path:
    """The path of a source that is no web address; publications add names to it as text."""
    return Path(source.removeprefix("file://"))


def _refuse_missing_folder(source: str | None) -> None:
    if source is not None and not _is_web(source) and not _local(source).is_dir():
        raise ValueError(f"--source {source}: there is no such folder")


def _refuse_missing_files(job: _Job, files: Sequence[RemoteFile]) -> None:
    """Raises ValueError if a folder that is the source lacks a file, before anything is copied."""
    if job.source is None or _is_web(job.source):
        return
    lacking = [file.path for file in files if not _local(job.address(file)).is_file()]
    if lacking:
        more = f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
        raise ValueError(
            f"--source {job.source} has no {', '.join(lacking[:_NAMED])}{more}; put the file there under "
            "this name, or choose other --parts"
        )


def _refuse_full_disk(job: _Job, files: Sequence[RemoteFile], sizes: dict[str, int | None]) -> None:
    """Raises ValueError if what is to come does not fit, before anything is fetched."""
    archives = {f.path: _missing_bytes(job, f, sizes[f.path] or 0) for f in files if f.is_archive}
    plain = sum(sizes[f.path] or 0 for f in files if not f.is_archive)
    unpacked = sum(int((sizes[f.path] or 0) * f.unpacks_to) for f in files if f.is_archive)
    keep_none = sum(sorted(archives.values())[-job.jobs :]) + unpacked + plain
    keep_all = sum(archives.values()) + unpacked + plain
    needed = (keep_none if job.remove_archives else keep_all) + _SPARE
    free = shutil.disk_usage(job.output).free
    if not files or needed <= free:
        return
    without = (
        ""
        if job.remove_archives
        else f", --remove-archives (then {_gigabytes(keep_none + _SPARE)} are enough)"
    )
    raise ValueError(
        f"{job.output} needs about {_gigabytes(needed)} for the archives and what they unpack to, and has "
        f"{_gigabytes(free)}: make room, or choose another --output, fewer --parts{without}"
    )


def _missing_bytes(job: _Job, file: RemoteFile, size: int) -> int:
    """Of an archive that came in part or whole before, only the rest takes room."""
    target = job.archive(file)
    part = target.with_name(f"{target.name}.part")
    here = next((p.stat().st_size for p in (target, part) if p.is_file()), 0)
    return max(0, size - here)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _interval() -> float:
    """Seconds between two writes of the bar: often on a terminal, rarely in a log."""
    return 0.2 if sys.stderr.isatty() else 30.0
