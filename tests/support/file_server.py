"""A loopback web server with Range requests that can be told to misbehave."""

import re
import time

from loopback_server import LoopbackServer, QuietHandler


class FileServer(LoopbackServer):
    """Serves `files` (path -> bytes). `cuts`: bytes after which the next replies end, one entry a reply.

    `requests` holds (path, Range header or None) of each GET. A HEAD is answered with `heads` (statuses) in turn,
    if it has any, else with the size of the file. `drip` (bytes, seconds): so many at a time, with such pauses.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.requests: list[tuple[str, str | None]] = []
        self.heads: list[int] = []
        self.drip: tuple[int, float] | None = None
        self.ranges = True
        self.etag = '"v1"'
        outer = self

        class Handler(QuietHandler):
            def do_GET(self):
                outer.reply(self)

            def do_HEAD(self):
                outer.reply_head(self)

        super().__init__(Handler)

    def reply_head(self, handler):
        content = self.files.get(handler.path)
        handler.send_response(self.heads.pop(0) if self.heads else 404 if content is None else 200)
        handler.send_header("Content-Length", str(len(content or b"")))
        handler.end_headers()

    def reply(self, handler):
        asked = handler.headers.get("Range")
        self.requests.append((handler.path, asked))
        if self.statuses:
            handler.send_error(self.statuses.pop(0))
            return
        content = self.files.get(handler.path)
        if content is None:
            handler.send_error(404)
            return
        start, status = 0, 200
        condition = handler.headers.get("If-Range")
        if asked and self.ranges and condition in (None, self.etag):
            start, status = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]), 206
            if start >= len(content):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(content)}")
                handler.end_headers()
                return
        body = content[start:]
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        if self.etag:
            handler.send_header("ETag", self.etag)
        if status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.end_headers()
        if self.cuts:
            body = body[: self.cuts.pop(0)]
        size, pause = self.drip or (len(body) or 1, 0.0)
        try:
            for start in range(0, len(body), size):
                handler.wfile.write(body[start : start + size])
                time.sleep(pause)
        except OSError:  # the client has left
            pass
