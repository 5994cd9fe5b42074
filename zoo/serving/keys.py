"""Keys that clients show as `Authorization: Bearer KEY`."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import shlex
import socket
from pathlib import Path

VARIABLE = "ZOO_API_KEYS"
NO_NAME = "no machine of this name is known"
SHORTEST = 16  # characters: what cannot be guessed over a network
_MAKE_ONE = "make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"


class Keys:
    """Those that are let in; with none, everybody is.

    Only their digests are kept. All are compared, each in constant time, so that the time of an answer does not tell
    how much of a key is right.
    """

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __len__(self) -> int:
        return len(self._digests)

    def admit(self, authorization: bytes | None) -> bool:
        """Whether a header's value shows one of them."""
        if not self._digests:
            return True
        scheme, _, shown = (authorization or b"").partition(b" ")
        given = _digest(shown.strip())
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == b"bearer" and any(matches)


def read_keys(file: Path | None) -> Keys:
    """Keys of a file, one a line, `#` before what is none; else of $ZOO_API_KEYS, with commas or blanks between them.

    Raises:
        OSError, ValueError: the file cannot be read, or has no key; a key is too short, or has other characters.
    """
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is no text file of keys: {error}") from error
        keys = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
        where = str(file)
        if not keys:
            raise ValueError(f"{where} has no key; write one a line; {_MAKE_ONE}")
    else:
        keys, where = os.environ.get(VARIABLE, "").replace(",", " ").split(), f"${VARIABLE}"
    for number, key in enumerate(keys, 1):
        if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(
                f"{where}: key {number} has {len(key)} characters; a key has at least {SHORTEST}, of ASCII and "
                f"without blanks; {_MAKE_ONE}"
            )
    return Keys(keys)


def refuse_open(host: str, keys: Keys) -> None:
    """Raises ValueError for an address beyond this machine without keys, or a name that is nobody's."""
    if keys or host == "localhost":
        return
    try:
        if ipaddress.ip_address(host).is_loopback:
            return
    except ValueError:
        _refuse_unknown(host)
    raise ValueError(
        f"--host {host} would let everybody in: without keys only this machine is served (127.0.0.1); give --keys FILE "
        f"or set {VARIABLE} ({_MAKE_ONE})"
    )


def _refuse_unknown(host: str) -> None:
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:  # UnicodeError of a label that is too long for a name
        raise ValueError(f"--host {shlex.quote(host)}: cannot listen there: {NO_NAME}") from error


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
