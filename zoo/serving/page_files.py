"""The page of a server: its files, read once, and the headers that confine it to its own server."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "page"
# not of the platform's own table, which may call a module text/plain; a browser then refuses it
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class PageFile(NamedTuple):
    """What is answered for one path."""

    content: bytes
    media_type: str


def page_files() -> dict[str, PageFile]:
    """Path on the server -> file: `/` is the page, the others lie under `/page/`."""
    found = {
        f"/page/{path.name}": PageFile(path.read_bytes(), _MEDIA_TYPES[path.suffix])
        for path in sorted(FOLDER.iterdir())
    }
    return {"/": found.pop("/page/index.html"), **found}
