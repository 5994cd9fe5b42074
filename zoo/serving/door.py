"""What every request passes before it is looked at: who may come in, how much it may bring, and a line about it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from zoo.serving.keys import Keys
from zoo.serving.limits import MB, Limits
from zoo.serving.metrics import Metrics
from zoo.serving.problems import KIND, Problem, server_fault

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger(__name__)
GONE = 499  # a client that did not wait; nginx's number, which nobody is sent
_BEHIND_KEYS = ("/v1/", "/metrics")
_OF_THIS_MACHINE = (b"localhost", b"127.0.0.1", b"[::1]")


class Recorder:
    """Writes one line and the metrics of each request, and answers where the program is at fault.

    Args:
        app: what is inside.
        metrics: of the server.
        say: writes a line for the operator.
        paths: those that are counted by themselves; others are `other`, or a stranger could make any number of them.
    """

    def __init__(
        self, app: App, metrics: Metrics, say: Callable[[str], None], paths: tuple[str, ...]
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._say = say
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status, path = time.monotonic(), 0, str(scope["path"])

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            log.exception("an error of this program, at %s", path[:80])
            if not status:
                await server_fault().response(path)(scope, receive, noting)
        finally:
            seconds = time.monotonic() - begun
            name = path if path in self._paths else "other"
            self._metrics.requests.labels(name, str(status or GONE)).inc()
            self._metrics.seconds.labels(name).observe(seconds)
            client = (scope.get("client") or ("-",))[0]
            self._say(
                f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')}  {client}  {scope['method'][:10]} {path[:80]}  "
                f"{status or GONE}  {1000 * seconds:.0f} ms{'  ' * (KIND in scope)}{scope.get(KIND, '')}"
            )


class Door:
    """Asks for a key, and holds what a request sends within limits while it is sent.

    Args:
        app: what is inside.
        keys: without any, only a browser or program that calls this machine by its own name comes in: a page of
            another place that has its name mean this machine (DNS rebinding) does not.
        limits: of the server.
    """

    def __init__(self, app: App, keys: Keys, limits: Limits) -> None:
        self._app = app
        self._keys = keys
        self._limits = limits
        self._held = 0  # bytes of all requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except Problem as problem:
            await problem.response(scope["path"])(scope, receive, send)
            return
        body = _Body(receive, self._limits, self._hold)
        try:
            await self._app(scope, body.receive, send)
        finally:
            self._held -= body.size

    def _hold(self, more: int) -> None:
        self._held += more
        if self._held > self._limits.held_bytes:
            raise Problem(503, "busy", "too much is being sent at this time; try again", {"Retry-After": "2"})

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if not self._keys:
            host = headers.get(b"host", b"").lower()
            name = host if host.endswith(b"]") else host.rpartition(b":")[0] or host
            if name not in _OF_THIS_MACHINE:
                raise Problem(
                    421, "host", "this server has no keys and answers only to localhost, 127.0.0.1 and [::1]"
                )
        elif scope["path"].startswith(_BEHIND_KEYS) and not self._keys.admit(headers.get(b"authorization")):
            raise Problem(
                401, "key", "a key is needed: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"}
            )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limits.body_bytes:
            raise _too_large(self._limits)


class _Body:
    """A request's body, cut off where it is too long or too slow."""

    def __init__(self, receive: Receive, limits: Limits, hold: Callable[[int], None]) -> None:
        self.size = 0
        self._receive = receive
        self._limits = limits
        self._hold = hold
        self._end: float | None = None
        self._complete = False

    async def receive(self) -> Message:
        """ASGI.

        Raises:
            Problem: the body is too long or too slow.
        """
        if self._complete:
            return await self._receive()
        if self._end is None:
            self._end = time.monotonic() + self._limits.body_seconds
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._end - time.monotonic()))
        except asyncio.TimeoutError:
            raise Problem(
                408,
                "body-slow",
                f"the body was not complete within {self._limits.body_seconds:g} seconds",
                {"Connection": "close"},
            ) from None
        more = len(message.get("body", b""))
        self.size += more
        self._hold(more)
        if self.size > self._limits.body_bytes:
            raise _too_large(self._limits)
        self._complete = not message.get("more_body", False)
        return message


def _too_large(limits: Limits) -> Problem:
    return Problem(
        413,
        "body-bytes",
        f"the request is larger than {limits.body_bytes / MB:.1f} MB, which an image may have",
    )
