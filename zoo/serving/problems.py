"""Errors as problem documents (RFC 9457), in OpenAI's shape where its clients read them."""

from __future__ import annotations

import http
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

KIND = "zoo.problem"
MEDIA_TYPE = "application/problem+json"
OPENAI_PATHS = "/v1/chat/"
A_FILE = "a file is sent as a form to /v1/detect: curl -F file=@photo.jpg"
_LONGEST = 400  # characters of a client's own words in an answer
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Problem(Exception):
    """Why a request gets no detections, for its sender: no paths of the server, nothing of its inside.

    Args:
        status: of HTTP.
        kind: in a few words with hyphens, which a program can tell it by.
        detail: one line: what is wrong and what is right.
        headers: of the answer.
    """

    def __init__(self, status: int, kind: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = " ".join(detail.split())[: 2 * _LONGEST]
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, Any]:
        """The document."""
        title = http.HTTPStatus(self.status).phrase
        return {
            "type": f"urn:detr-zoo:problem:{self.kind}",
            "title": title,
            "status": self.status,
            "detail": self.detail,
        }

    def to_openai(self) -> dict[str, Any]:
        """The same as OpenAI's clients read it."""
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _OPENAI_TYPES.get(self.status, usual)
        return {"error": {"message": self.detail, "type": kind, "param": None, "code": self.kind}}

    def response(self, path: str) -> Response:
        """The answer to a request for `path`."""
        openai = path.startswith(OPENAI_PATHS)
        document = self.to_openai() if openai else self.to_dict()
        media_type = "application/json" if openai else MEDIA_TYPE
        return _Answer(msgspec.json.encode(document), self.status, self.headers, media_type, kind=self.kind)


class _Answer(Response):
    """Leaves the problem's kind in the scope, where the server's log finds it."""

    def __init__(self, *arguments: Any, kind: str) -> None:
        super().__init__(*arguments)
        self._kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        scope[KIND] = self._kind
        await super().__call__(scope, receive, send)


def server_fault() -> Problem:
    """An error of this program."""
    return Problem(500, "server", "an error of the server; its log says which")


def shown(words: object) -> str:
    """What a client sent, as it may stand in an answer: short and on one line."""
    return " ".join(str(words)[:80].split())
