"""A loopback web server for shards, with range requests, that can be told to misbehave."""

from __future__ import annotations

import re
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from loopback_server import LoopbackServer, QuietHandler


class ShardServer(LoopbackServer):
    """Serves the files of a folder. Faults are used up one by one, by the replies for `.tar` files.

    Attributes:
        cuts: the reply's body ends after so many bytes, its Content-Length says more.
        statuses: the reply is this error.
        short: the reply has so many bytes less than asked for, and says so.
        stalls: seconds of silence before the reply.
        corrupt: name -> replies (or -1: all) in which byte `corrupt_at` of the file is another one.
        pause: seconds after each 4 KiB of every reply.
        ranges: whether Range headers are heeded.
        requests: (name, Range header or None) of each request.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.short: list[int] = []
        self.stalls: list[float] = []
        self.corrupt: dict[str, int] = {}
        self.corrupt_at = 700
        self.pause = 0.0
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []
        outer = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                try:
                    outer.reply(self)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client gave up, as some tests want

        super().__init__(Handler)

    def asked(self, name: str) -> int:
        """How often a file was asked for."""
        return sum(n == name for n, _ in self.requests)

    def reply(self, handler: BaseHTTPRequestHandler) -> None:
        name, asked = handler.path.lstrip("/"), handler.headers.get("Range")
        self.requests.append((name, asked))
        file = self.folder / name
        if not file.is_file():
            handler.send_error(404)
            return
        shard = name.endswith(".tar")
        if shard and self.statuses:
            handler.send_error(self.statuses.pop(0))
            return
        if shard and self.stalls:
            time.sleep(self.stalls.pop(0))
        content = self._content(file)
        start, end, status = 0, len(content), 200
        if asked and self.ranges:
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
            start, status = int(wanted[1]), 206
            end = min(int(wanted[2]) + 1, end) if wanted[2] else end
        body = content[start:end]
        if shard and self.short:
            body = body[: len(body) - self.short.pop(0)]
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        if status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        handler.end_headers()
        if shard and self.cuts:
            body = body[: self.cuts.pop(0)]
        for at in range(0, len(body), 4096):
            handler.wfile.write(body[at : at + 4096])
            if self.pause:
                time.sleep(self.pause)
        handler.close_connection = True

    def _content(self, file: Path) -> bytes:
        content = bytearray(file.read_bytes())
        left = self.corrupt.get(file.name, 0)
        if left:
            self.corrupt[file.name] = left - 1
            content[self.corrupt_at] ^= 0xFF
        return bytes(content)
