"""uvicorn with what it lacks: connections that are cut when a client is slow, and an end that answers everybody."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from zoo.serving.door import App
from zoo.serving.keys import NO_NAME
from zoo.serving.limits import Limits

_LARGEST_HEAD = 32 * 1024


def protocol_of(limits: Limits) -> type[H11Protocol]:
    """A connection that is closed if its client sends no complete head, or takes no answer, in time."""

    class Connection(H11Protocol):
        _head_timer: asyncio.TimerHandle | None = None
        _write_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch_head()

        def data_received(self, data: bytes) -> None:
            try:
                super().data_received(data)
            except UnicodeDecodeError:  # a target that is not ASCII
                self.send_400_response("Invalid HTTP request received.")
            self._watch_head()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch_head()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            for timer in (self._head_timer, self._write_timer):
                if timer is not None:
                    timer.cancel()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._write_timer = self.loop.call_later(limits.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

        def shutdown(self) -> None:
            if self._is_idle():
                self.loop.call_later(limits.linger_seconds, super().shutdown)
            else:
                self.cycle.default_headers = self.server_state.default_headers
                super().shutdown()

        def _is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _watch_head(self) -> None:
            """The timer runs from the end of an answer, or the connection's begin, to the next complete head."""
            if not self._is_idle():
                if self._head_timer is not None:
                    self._head_timer.cancel()
                    self._head_timer = None
            elif self._head_timer is None and not self.transport.is_closing():
                self._head_timer = self.loop.call_later(limits.head_seconds, self.transport.abort)

    return Connection


class Server(uvicorn.Server):
    """Ends at SIGTERM or Ctrl-C with everybody answered and exit code 0; at a second Ctrl-C at once.

    Args:
        app: what is served.
        limits: of the server.
        ending: called when it is told to end.
    """

    def __init__(self, app: App, limits: Limits, ending: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            http=protocol_of(limits),
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=limits.connections,
            h11_max_incomplete_event_size=_LARGEST_HEAD,
            timeout_keep_alive=int(limits.head_seconds),
            timeout_graceful_shutdown=int(limits.end_seconds),
        )
        super().__init__(config)
        self._ending = ending

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes no new connection; answers what is there, and tells each client that it is the last answer."""
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        await asyncio.sleep(0)  # connections that have come by now are taken
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal."""
        self._ending()
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Inside, signals end the server; they are not raised again afterwards, as its end is what was asked for."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def bound(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ValueError: the address cannot be listened at.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, number)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except UnicodeError as error:  # of a label that is too long for a name
        raise ValueError(f"cannot listen at {host}, port {port}: {NO_NAME}") from error
    except OSError as error:
        hint = "; --port 0 takes a free one" if error.errno == errno.EADDRINUSE else ""
        raise ValueError(f"cannot listen at {host}, port {port}: {error.strerror}{hint}") from error
    listener.setblocking(False)
    return listener
