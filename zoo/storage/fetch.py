"""Fetching one file over http(s) or from disk: resumed, checked, and put in its place only when it is complete."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

from zoo.storage.deadline import Deadline
from zoo.storage.durable import FULL, sha256_of
from zoo.storage.opening import NoFileError, open_file

_CHUNK = 1 << 18
_TIMEOUT = 30.0  # seconds without any data
_LONGEST_ANSWER = 60.0  # seconds until the headers are there; of a small file, until all of it is
_WINDOW = 60.0  # seconds in each of which so much comes, or the connection is given up
_SLOWEST = 5_000  # bytes a second
_LARGEST = 8 << 30  # bytes, where no size is known
_ATTEMPTS = 4
_FIRST_PAUSE = 0.5  # seconds; doubles
_LONGEST_PAUSE = 30.0

ByteMeter = Callable[[int, int | None], None]  # bytes so far, bytes in all if known


class DownloadError(OSError):
    """The file could not be fetched; the message says why and what to do."""


class _TooSlowError(TimeoutError):
    """A server sends, and so slowly that the file would take days."""


class WrongFileError(ValueError):
    """A source gave a file of another size or hash than expected."""


@dataclass(frozen=True)
class Expected:
    """Size and hash of a file as known before it is fetched. `sha256` may be the beginning of a digest."""

    size: int | None = None
    sha256: str | None = None


def fetch(
    url: str,
    target: Path,
    expected: Expected,
    *,
    progress: ByteMeter | None = None,
    attempts: int = _ATTEMPTS,
    first_pause: float = _FIRST_PAUSE,
    largest: int | None = _LARGEST,
) -> str:
    """Fetches `url` (http, https, file, or a path) to `target`; returns the sha256 of the file.

    A part file from an interrupted fetch is resumed if the server can say that its file is still the
    same. `#sha256=<hex>` at the end of the URL is checked too. The caller holds a lock on `target`. Where
    the size is not expected, at most `largest` bytes are taken, if that is given.

    Raises:
        DownloadError: the source cannot be reached or does not have the file.
        WrongFileError: size or hash differ; the part file is removed.
    """
    address, fragment = urllib.parse.urldefrag(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    scheme = urllib.parse.urlsplit(address).scheme
    if scheme in ("http", "https"):
        limit = expected.size if expected.size is not None else largest
        _fetch_http(address, part, expected, progress, attempts, first_pause, limit)
    elif scheme in ("", "file"):
        _copy_file(address, part, expected.size if expected.size is not None else largest)
    else:
        raise DownloadError(f"{url} is neither http(s) nor a file; nothing else is fetched")
    digest = _check(part, url, expected, fragment)
    os.replace(part, target)
    _validator_file(part).unlink(missing_ok=True)
    return digest


def fetch_text(url: str, limit: int) -> bytes:
    """At most `limit` bytes of a small file.

    Raises:
        DownloadError: it cannot be reached, or is larger.
    """
    scheme = urllib.parse.urlsplit(url).scheme
    try:
        if scheme in ("http", "https"):
            raw = Deadline().call(lambda: _read_all(url, limit + 1), _LONGEST_ANSWER)
        elif scheme in ("", "file"):
            with open_file(_local_path(url)) as file:
                raw = file.read(limit + 1)
        else:
            raise DownloadError(f"{url} is neither http(s) nor a file; nothing else is fetched")
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, DownloadError):
            raise
        raise DownloadError(_explain(url, error)) from error
    if len(raw) > limit:
        raise DownloadError(f"{url} is larger than {limit} bytes")
    return raw


def _read_all(url: str, limit: int) -> bytes:
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as reply:
        raw: bytes = reply.read(limit)
    return raw


def _check(part: Path, url: str, expected: Expected, fragment: str) -> str:
    size, digest = part.stat().st_size, sha256_of(part)
    wanted = [expected.sha256] if expected.sha256 else []
    if fragment:
        match = re.fullmatch(r"sha256=([0-9a-f]{8,64})", fragment)
        if match is None:
            _forget(part)
            raise WrongFileError(f"{url}: the part after # must be sha256=<8 to 64 hex digits>")
        wanted.append(match[1])
    if expected.size is not None and size != expected.size:
        _forget(part)
        raise WrongFileError(f"{url} gave {size} bytes, expected {expected.size}; the file was thrown away")
    for start in wanted:
        if not digest.startswith(start):
            _forget(part)
            raise WrongFileError(
                f"{url} gave a file with sha256 {digest}, expected {start}; it was thrown away. It "
                "was changed at the source or on the way, or the expected hash is of another file."
            )
    return digest


def _fetch_http(
    url: str,
    part: Path,
    expected: Expected,
    progress: ByteMeter | None,
    attempts: int,
    first_pause: float,
    limit: int | None,
) -> None:
    for attempt in range(attempts):
        try:
            _fetch_once(url, part, expected, progress, limit)
            return
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, DownloadError) or not _may_pass(error) or attempt + 1 == attempts:
                raise DownloadError(_explain(url, error)) from error
            time.sleep(min(_LONGEST_PAUSE, first_pause * 2**attempt))


def _fetch_once(
    url: str, part: Path, expected: Expected, progress: ByteMeter | None, limit: int | None
) -> None:
    """One request; appends to the part file if the server resumes it, else starts again."""
    have = part.stat().st_size if part.exists() else 0
    validator = _read_validator(part, url) if have else None
    # with a hash to check against, a spliced file cannot pass; without one, only an unchanged file may grow
    if have and validator is None and expected.sha256 is None:
        have = 0
    headers = {"User-Agent": "detr-zoo", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator is not None:
            headers["If-Range"] = validator
    try:
        request = urllib.request.Request(url, headers=headers)
        reply = Deadline().call(lambda: urllib.request.urlopen(request, timeout=_TIMEOUT), _LONGEST_ANSWER)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing after `have`: the part is whole, or of another file
            total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if total is None or int(total[1]) != have:
                _forget(part)
                raise ConnectionResetError(f"{url} has no byte {have}; starting again") from error
            return
        raise
    with reply:
        resumed = reply.status == 206 and _starts_at(reply.headers, have)
        start = have if resumed else 0
        length = reply.headers.get("Content-Length")
        total_size = start + int(length) if length and length.isdigit() else expected.size
        if total_size is not None and limit is not None and total_size > limit:
            _forget(part)
            raise DownloadError(f"{url} would give {total_size} bytes, at most {limit} are expected")
        _write_validator(part, url, reply.headers)
        with open(part, "ab" if resumed else "wb") as file:
            _pump(reply, file, start, total_size, limit, progress)


def _pump(
    reply: Any, file: Any, start: int, total: int | None, limit: int | None, progress: ByteMeter | None
) -> None:
    done = start
    since, had = time.monotonic(), start
    while chunk := reply.read1(_CHUNK):  # what is there: `read` waits for all of it, however slowly it comes
        file.write(chunk)
        done += len(chunk)
        passed = time.monotonic() - since
        if passed > _WINDOW:
            if done - had < _SLOWEST * passed:
                raise _TooSlowError(f"{(done - had) / passed:.0f} bytes a second")
            since, had = since + passed, done
        if limit is not None and done > limit:
            raise DownloadError(f"{reply.url} gives more than the {limit} bytes expected")
        if progress is not None:
            progress(done, total)
    file.flush()
    os.fsync(file.fileno())
    if total is not None and done < total:
        raise ConnectionResetError(f"{reply.url} ended after {done} of {total} bytes")


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed: after a lost connection, a timeout or a busy server; not if the file, the
    network or disk space is missing.
    """
    if isinstance(error, OSError) and error.errno in FULL:
        return False
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 425, 429) or error.code >= 500
    if isinstance(
        error, urllib.error.URLError
    ):  # no connection: trying again would only delay the next source
        return isinstance(error.reason, TimeoutError)
    return True


def _explain(url: str, error: BaseException) -> str:
    if isinstance(error, (DownloadError, NoFileError)):
        return str(error)
    if isinstance(error, _TooSlowError):
        return f"{url} sends {error}, and fewer than {_SLOWEST} are not waited for; what came is kept"
    if isinstance(error, urllib.error.HTTPError):
        return f"{url} answered {error.code} {error.reason}"
    if isinstance(error, FileNotFoundError | IsADirectoryError):
        return f"{url} does not exist"
    if isinstance(error, OSError) and error.errno in FULL:
        return f"the disk became full while {url} came; make room, then run this again: it continues"
    reason = getattr(error, "reason", error)
    return f"{url} cannot be reached ({reason}): no network, or the server is down"


def _copy_file(address: str, part: Path, limit: int | None) -> None:
    source = _local_path(address)
    try:
        with open_file(source) as content:
            size = os.fstat(content.fileno()).st_size
            if limit is not None and size > limit:
                raise DownloadError(f"{source} has {size} bytes, at most {limit} are expected")
            with open(part, "wb") as copy:
                shutil.copyfileobj(content, copy, _CHUNK)
    except NoFileError as error:
        raise DownloadError(str(error)) from error
    except OSError as error:
        if isinstance(error, DownloadError):
            raise
        if error.errno in FULL:
            raise DownloadError(_explain(address, error)) from error
        raise DownloadError(f"{source} cannot be read: {error.strerror}") from error


def _local_path(address: str) -> Path:
    parts = urllib.parse.urlsplit(address)
    if parts.scheme != "file":
        return Path(address)
    if parts.netloc not in ("", "localhost"):
        raise DownloadError(f"{address} names a file of another machine; write file:///path")
    return Path(urllib.request.url2pathname(parts.path))


def _starts_at(headers: Message, position: int) -> bool:
    return headers.get("Content-Range", "").startswith(f"bytes {position}-")


def _validator_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_validator(part: Path, url: str) -> str | None:
    """The ETag (a strong one) or date that the part file's server gave, if it was for this URL."""
    try:
        note = json.loads(_validator_file(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(note["validator"]) if note.get("url") == _digest(url) and note.get("validator") else None


def _write_validator(part: Path, url: str, headers: Message) -> None:
    etag = headers.get("ETag", "")
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    text = json.dumps({"url": _digest(url), "validator": validator})
    _validator_file(part).write_text(text, encoding="utf-8")


def _digest(url: str) -> str:
    """Digest of the address; the address itself may hold a secret token, which must not be written to a file."""
    return hashlib.sha256(url.encode()).hexdigest()


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator_file(part).unlink(missing_ok=True)
