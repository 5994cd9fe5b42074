"""`zoo serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.runs.console import Console


def serve(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Registered names (NAME, NAME@alias), exported files or folders; ID=... names one in requests.",
            metavar="MODEL...",
        ),
    ],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; another than this machine needs keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: a free one.")] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(
            "--keys", help="File with a key a line; default $ZOO_API_KEYS. Clients send one as Bearer."
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            "--cors", help="Origin of a page that may ask, e.g. https://example.org; may be repeated."
        ),
    ] = None,
    urls: Annotated[
        bool, typer.Option("--urls/--no-urls", help="Fetch images at http(s) addresses of public machines.")
    ] = True,
    device: Annotated[
        str,
        typer.Option(
            "--device", help="cpu, cuda:0 or several as cuda:0,cuda:1; auto: a GPU if there is one."
        ),
    ] = "auto",
    workers: Annotated[
        int, typer.Option("--workers", min=1, max=64, help="Copies of each model on each device.")
    ] = 1,
    batch_size: Annotated[
        int,
        typer.Option("--batch-size", min=1, max=1024, help="Images computed at once, if they have one size."),
    ] = 8,
    wait_ms: Annotated[
        float,
        typer.Option("--wait-ms", min=0, max=10_000, help="That a batch waits for images on their way."),
    ] = 5.0,
    queue: Annotated[
        int, typer.Option("--queue", min=1, help="Requests that may wait; one more is answered 429.")
    ] = 128,
    max_bytes: Annotated[int, typer.Option("--max-bytes", min=1, help="Of an image.")] = 20 << 20,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", min=1, help="Of an image, by its header.")
    ] = 50_000_000,
    registry: Annotated[
        Path | None,
        typer.Option("--registry", help="Local registry; default $ZOO_REGISTRY or ./mlruns/registry."),
    ] = None,
) -> int:
    """Answer HTTP requests with detections, as in: zoo serve my_model@champion. SIGTERM and Ctrl-C end it."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(f"zoo serve needs {error.name}: pip install 'detr-zoo[serve]'") from error
    from zoo.serving.keys import read_keys, refuse_open
    from zoo.serving.limits import Limits

    known = read_keys(keys)
    refuse_open(host, known)  # before a model is loaded
    from zoo.serving.serve import serve as run

    limits = Limits(
        batch_size=batch_size,
        wait=wait_ms / 1000,
        queue=queue,
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        urls=urls,
    )
    devices = [name.strip() for name in device.split(",")]
    return run(
        names, limits, console=Console(), host=host, port=port, keys=known, origins=cors or (), devices=devices,
        workers=workers, registry=registry,
    )  # fmt: skip
