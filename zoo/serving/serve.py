"""`zoo serve`: loads models and answers requests until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from zoo.detector import Detector
from zoo.runs.console import Console, counted
from zoo.runs.devices import check_device, device_for
from zoo.runs.subject import load
from zoo.runs.threads import chosen
from zoo.serving.app import create_app, guarded
from zoo.serving.connections import Server, bound
from zoo.serving.keys import Keys, read_keys, refuse_open
from zoo.serving.limits import Limits
from zoo.serving.metrics import Metrics
from zoo.serving.served import Served, id_of, place_of
from zoo.serving.service import Service

_BACKLOG = 2048


def serve(
    names: Sequence[str],
    limits: Limits,
    *,
    console: Console,
    host: str = "127.0.0.1",
    port: int = 8000,
    keys: Keys | None = None,
    origins: Sequence[str] = (),
    devices: Sequence[str] = ("auto",),
    workers: int = 1,
    registry: Path | None = None,
) -> int:
    """Serves models until SIGTERM or Ctrl-C; returns the exit code.

    Args:
        names: registered names, exported files, checkpoints or folders, each with or without `ID=` before it.
        limits: of the server.
        console: for the operator.
        host: to listen at; without keys only this machine.
        port: 0 for a free one.
        keys: of those that are let in; None: those of $ZOO_API_KEYS.
        origins: of pages that may ask, for CORS.
        devices: `cpu`, `cuda:0`, ...; `auto` is the first GPU, or else the CPU.
        workers: copies of each model on each device.
        registry: folder of the user's registry.

    Raises:
        ValueError, OSError: a model that is not there, two of one id, an address that cannot be listened at, or
            another one than this machine without keys; no device or origin.
    """
    known = read_keys(None) if keys is None else keys
    refuse_open(host, known)
    ids = [id_of(name) for name in names]
    _refuse_same(ids, names)
    check_origins(origins)
    for device in devices:
        check_device(device)
    with contextlib.closing(bound(host, port)) as listener, chosen(console) as threads:
        places = [str(pick) for pick in devices for _ in range(workers)]
        torch.set_num_threads(max(1, threads // len(places)))
        models = {
            id_: Served(id_, copies_of(place_of(name), places, registry))
            for id_, name in zip(ids, names, strict=True)
        }
        metrics = Metrics()
        service = Service(models, limits, metrics)
        listener.listen(_BACKLOG)  # from here on a connection is taken, if only a moment later
        say_start(service, listener, known, console)
        app = guarded(create_app(service, metrics), known, service, metrics, origins, console.say)
        return run(app, service, listener, console)


def _refuse_same(ids: Sequence[str], names: Sequence[str]) -> None:
    twice = [name for id_, name in zip(ids, names, strict=True) if ids.count(id_) > 1]
    if twice:
        first, second = (shlex.quote(place_of(name)) for name in twice[:2])
        raise ValueError(
            f"two models are called {id_of(twice[0])!r}; tell them apart: zoo serve a={first} b={second}"
        )


def run(app: object, service: Service, listener: socket.socket, console: Console) -> int:
    """Answers until a signal; returns 0, or 1 if requests had to be left without an answer."""

    def ending() -> None:
        service.draining = True

    server = Server(app, service.limits, ending)  # type: ignore[arg-type]
    asyncio.run(server.serve([listener]))
    left = service.inside
    console.say(
        f"ended       {counted(left, 'request')} without an answer"
        if left
        else "ended       all requests are answered"
    )
    if service.images.late or left:  # threads that nobody can end would keep the process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1 if left else 0)
    return 0


def check_origins(origins: Sequence[str]) -> None:
    """Raises ValueError for what no browser sends as an origin."""
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s?#]+", origin):
            raise ValueError(
                f"--cors {origin}: an origin is a scheme and host, as https://example.org, or * for all"
            )


def copies_of(place: str, devices: Sequence[str], registry: Path | None) -> list[Detector]:
    """The detector once for each device, after a first image of black pixels, which takes longer than others."""
    copies = []
    for device in devices:
        detector = load(place, registry)
        detector.to(device_for(device, detector))
        height, width = detector.input.size
        channels = detector.input.channels
        detector.predict(torch.zeros(channels, height, width, dtype=torch.uint8))
        copies.append(detector)
    return copies


def say_start(service: Service, listener: socket.socket, keys: Keys, console: Console) -> None:
    """What is served, where, for whom, and a line to try it."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}"
    here = address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    for served in service.models.values():
        card = served.card
        console.say(
            f"model       {served.id}: {card['kind']}, {len(card['label_map'])} classes, {card['runtime']}, "
            f"licence {card['licence'] or 'unknown'}"
        )
    model = f" -F model={next(iter(service.models))}" if len(service.models) > 1 else ""
    key = " -H 'Authorization: Bearer KEY'" if keys else ""
    who = (
        f"whoever has one of {counted(len(keys), 'key')}" if keys else "this machine alone: there are no keys"
    )
    console.say(f"for         {who}")
    console.say(f"try         curl{key} -F file=@photo.jpg{model} {here}/v1/detect")
    console.say(f"serving     {address} (Ctrl-C ends)")
