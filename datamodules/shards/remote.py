"""Reading files at any fsspec address (http, https, s3, gs, memory, ...), with retries.

Every request is for a byte range of known length, so a cut reply is noticed and only its block is asked
for again. `zoo.storage.fetch` fetches single files of unknown length over plain http; shards
need other file systems, and many small ranges of few files.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.index.image_store import StoreError
from zoo.storage.durable import sha256_of

_BLOCK = 8 << 20  # bytes of a request while a whole file is fetched; what a cut connection can cost
_FIRST_ATTEMPTS = 3  # at an address that has never answered: most likely it is mistyped
_FETCHES = 3  # of a file that comes whole but with another hash
_TEMPORARY = frozenset({408, 425, 429})  # answers 4xx that are tried again; every other one is final
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError, ValueError)

_log = logging.getLogger(__name__)
_jitter = random.Random()  # a generator for the network alone, so that a training's draws stay what they are


class NoRangesError(StoreError):
    """The server answers a request for a range with the whole file, which `content` is."""

    def __init__(self, message: str, content: bytes = b"") -> None:
        super().__init__(message)
        self.content = content


@dataclass(frozen=True)
class RemoteFolder:
    """The files below an fsspec address.

    Attributes:
        address: with its protocol, without a slash at the end.
        attempts: of every request; the pauses between them double, with jitter, up to a minute in all.
        first_pause: seconds.
        timeout: seconds without a byte after which a http connection counts as lost.
    """

    address: str
    attempts: int = 8
    first_pause: float = 0.5
    timeout: float = 30.0

    def where(self, name: str) -> str:
        """The address of a file."""
        return f"{self.address}/{name}"

    def read(self, name: str, start: int, end: int, size: int) -> bytes:
        """The bytes [start, end) of a file of `size` bytes.

        Raises:
            NoRangesError: the server knows no ranges and sent the whole file instead.
            StoreError: naming address and reason, when every attempt has failed.
        """

        def once() -> bytes:
            content: bytes = self._cat(name, start, end)
            if len(content) != end - start:
                if len(content) == size:
                    raise NoRangesError(
                        f"{self.where(name)}: the server does not answer range requests", content
                    )
                raise ConnectionResetError(f"it gave {len(content)} bytes, {end - start} were asked for")
            return content

        return self._patiently(name, once)

    def read_all(self, name: str) -> bytes:
        """Reads a small file of unknown size, the first one of an address: if nothing answers there, this fails soon.

        Raises:
            StoreError: as `read`.
        """
        return self._patiently(name, lambda: self._cat(name, None, None), min(_FIRST_ATTEMPTS, self.attempts))

    def fetch(
        self, name: str, target: Path, size: int, sha256: str, progress: Callable[[int], None] | None = None
    ) -> None:
        """Fetches the whole file to `target` and checks it; goes on where an interrupted fetch ended.

        The caller holds a lock on `target`. A file with another hash is fetched anew, all of it, since
        the hash does not tell which of its blocks is damaged.

        Raises:
            StoreError: the file cannot be had, or has another hash at every attempt; names both hashes.
        """
        part = target.with_name(f"{target.name}.part")
        found = ""
        for attempt in range(_FETCHES):
            self._complete(name, part, size, progress)
            found = sha256_of(part)
            if found == sha256:
                os.replace(part, target)
                return
            part.unlink()
            _log.warning(
                "%s came with sha256 %s, expected %s; fetching it again", self.where(name), found, sha256
            )
            self._pause(self._length_of_pause(attempt))
        raise StoreError(
            f"{self.where(name)} has sha256 {found} after {_FETCHES} fetches, expected {sha256}: the "
            "file is damaged or of another packing; upload it again, with the manifest it belongs to"
        )

    def _complete(self, name: str, part: Path, size: int, progress: Callable[[int], None] | None) -> None:
        with open(part, "ab") as file:
            if file.tell() > size:
                file.truncate(0)
                file.seek(0)
            while (have := file.tell()) < size:
                try:
                    block = self.read(name, have, min(have + _BLOCK, size), size)
                except NoRangesError as whole:
                    file.truncate(0)
                    file.seek(0)
                    block = whole.content
                file.write(block)
                if progress is not None:
                    progress(len(block))
            file.flush()
            os.fsync(file.fileno())

    def _cat(self, name: str, start: int | None, end: int | None) -> bytes:
        import fsspec

        # Made anew at each call, and cached by fsspec for a process and thread: an instance from before
        # a fork has an event loop whose thread does not exist in the child.
        system, path = fsspec.core.url_to_fs(self.where(name), **self._options())
        content: bytes = system.cat_file(path, start=start, end=end)
        return content

    def _options(self) -> dict[str, Any]:
        if not self.address.startswith(("http://", "https://")):
            return {}
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.timeout, sock_read=self.timeout)
        return {"client_kwargs": {"timeout": timeout}}

    def _patiently(self, name: str, once: Callable[[], bytes], first_attempts: int | None = None) -> bytes:
        """The result of `once`, tried again while it fails; `first_attempts`: attempts if nothing has ever answered."""
        for attempt in range(self.attempts):
            try:
                return once()
            except NoRangesError:
                raise
            except Exception as error:  # every file system raises other exceptions
                silent = _no_server(error)
                attempts = first_attempts if silent and first_attempts is not None else self.attempts
                reason = f"nobody answers at {_host(self.address)}" if silent else self._reason(error)
                if _is_final(error) or attempt + 1 >= attempts:
                    tried = "" if attempt == 0 else f" ({attempt + 1} attempts)"
                    advice = "; check the address and the network" if silent else ""
                    raise StoreError(f"{self.where(name)} cannot be read{tried}: {reason}{advice}") from error
                pause = self._length_of_pause(attempt)
                _log.warning(
                    "%s: retrying in %.2g s (%d of %d): %s",
                    self.where(name), pause, attempt + 2, attempts, reason,
                )  # fmt: skip
            self._pause(pause)
        raise AssertionError("attempts must be at least 1")

    def _length_of_pause(self, attempt: int) -> float:
        # the workers of many ranks lose a server at one moment; they must not all come back at one moment
        return self.first_pause * 2**attempt * _jitter.uniform(0.5, 1.0)

    def _pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def _reason(self, error: Exception) -> str:
        """What happened, in words that name no library."""
        if isinstance(error, FileNotFoundError):
            return "there is no such file"
        status = getattr(error, "status", None)
        if isinstance(status, int):
            return f"the server answered {status}"
        if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
            return f"no byte came for {self.timeout:g} s"
        if type(error).__module__.partition(".")[0] == "aiohttp":
            deeper = getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
            return f"no connection ({deeper})" if deeper else "the connection broke off"
        if isinstance(error, ConnectionError):
            return f"the connection broke off ({error})" if str(error) else "the connection broke off"
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _is_final(error: Exception) -> bool:
    """Whether a later attempt cannot succeed either: no such file, no permission, no such protocol."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _TEMPORARY
    return isinstance(error, _FINAL)


def _no_server(error: BaseException) -> bool:
    """Whether nothing listens at the address, or its name is not known; the cause may lie deeper."""
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            return False
        if isinstance(seen, (ConnectionRefusedError, socket.gaierror)):
            return True
        seen = getattr(seen, "os_error", None) or seen.__cause__ or seen.__context__
    return False


def _host(address: str) -> str:
    """`http://host:port` of an address."""
    protocol, mark, rest = address.partition("://")
    return f"{protocol}{mark}{rest.partition('/')[0]}"
