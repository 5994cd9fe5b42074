"""A server of tiny detectors in a thread of this process, at a port of its own."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image
from registry_case import INPUT, LABELS, tiny_module

from zoo.contract.preprocess import InputContract
from zoo.detector import Detector
from zoo.serving.app import create_app, guarded
from zoo.serving.connections import Server, bound
from zoo.serving.keys import Keys
from zoo.serving.limits import Limits
from zoo.serving.metrics import Metrics
from zoo.serving.served import Served
from zoo.serving.service import Service


@dataclass
class Running:
    url: str
    port: int
    service: Service
    lines: list[str]  # of its log
    end: Callable[[], None]  # as SIGTERM does


def tiny_detector(name: str = "tiny") -> Detector:
    module = tiny_module()
    module.adopt(LABELS, InputContract.from_dict(INPUT))
    return Detector(module, name)


@contextlib.contextmanager
def running(
    detectors: Mapping[str, list[Detector]],
    limits: Limits,
    keys: tuple[str, ...] = (),
    origins: tuple[str, ...] = (),
) -> Iterator[Running]:
    metrics, lines = Metrics(), []
    service = Service({name: Served(name, copies) for name, copies in detectors.items()}, limits, metrics)
    app = guarded(create_app(service, metrics), Keys([*keys]), service, metrics, origins, lines.append)
    listener = bound("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = Server(app, limits, lambda: None)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Running(
            f"http://127.0.0.1:{port}", port, service, lines, lambda: setattr(server, "should_exit", True)
        )
    finally:
        server.should_exit = True
        thread.join()


def png(seed: int = 0, size: tuple[int, int] = (40, 60)) -> bytes:
    """Noise of (h, w) `size`."""
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()
