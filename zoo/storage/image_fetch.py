"""The bytes of an image behind an http(s) address or in a data URI, within limits of size and time."""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

MAX_BYTES = 64 << 20  # of one image, fetched or in a data URI
SECONDS = 20.0  # without an answer from a server
SECONDS_IN_ALL = 120.0  # of one image, however slowly a server sends it
_BLOCK = 1 << 16


def scheme_of(source: str) -> str:
    """`http`, `data`, ... of an address; empty for a path, also one with a drive letter of Windows."""
    head, colon, _ = source[:12].partition(":")
    return head.lower() if colon and len(head) > 1 and head[0].isalpha() and head.isalnum() else ""


def decode_data_uri(uri: str) -> bytes:
    """The bytes of `data:[type][;base64],...`.

    Raises:
        ValueError: it is too long or malformed.
    """
    if len(uri) > MAX_BYTES * 4 // 3 + 200:
        raise ValueError(f"the data URI has {len(uri)} characters; an image may have {MAX_BYTES} bytes")
    header, comma, payload = uri.partition(",")
    if not comma:
        raise ValueError(f"{uri[:40]!r} is not a data URI: it has no comma; write data:image/png;base64,...")
    if not header.lower().endswith(";base64"):
        return urllib.parse.unquote_to_bytes(payload)
    try:
        return base64.b64decode(urllib.parse.unquote(payload), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the data URI {uri[:40]!r}... is not valid base64: {error}") from error


def fetch(address: str) -> bytes:
    """The bytes behind an http(s) address.

    Raises:
        ConnectionError: no answer, an incomplete one, or none in time.
        ValueError: it is too large.
    """
    deadline = time.monotonic() + SECONDS_IN_ALL
    content = io.BytesIO()
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "detr-zoo"})
        with _OPENER.open(request, timeout=SECONDS) as answer:
            declared = int(answer.headers.get("Content-Length") or 0)
            while declared <= MAX_BYTES and content.tell() <= MAX_BYTES and (block := answer.read1(_BLOCK)):
                content.write(block)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"it is not complete after {SECONDS_IN_ALL:.0f} seconds")
            if content.tell() < declared <= MAX_BYTES:
                raise ConnectionError(f"it ends after {content.tell()} of {declared} bytes")
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise ConnectionError(f"{address[:200]} could not be fetched: {str(reason)[:200]}") from error
    if declared > MAX_BYTES or content.tell() > MAX_BYTES:
        raise ValueError(f"{address[:200]} is larger than {MAX_BYTES >> 20} MB, the limit for an image")
    return content.getvalue()


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """None ends the redirect with the server's answer as an error."""
        if urllib.parse.urlsplit(newurl).scheme not in ("http", "https"):
            raise urllib.error.URLError(f"redirected to {newurl[:60]}, which is not fetched")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_HttpOnly)
