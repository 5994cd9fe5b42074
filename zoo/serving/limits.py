"""What a server takes from strangers, and for how long it waits for them."""

from __future__ import annotations

from dataclasses import dataclass

MB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one server.

    Attributes:
        batch_size: images that a model computes at once.
        wait: seconds that a batch waits for images that are on their way.
        queue: requests that are worked on or wait; one more is answered 429.
        max_bytes: of an image.
        max_pixels: of an image, by its header.
        urls: whether images may be given by their address.
        held_bytes: of all requests that are being read or worked on.
        connections: open at a time.
        head_seconds: for a request line and its headers, and for a connection between two requests.
        body_seconds: for a body.
        fetch_seconds: for an image at an address.
        decode_seconds: for decoding and resizing one.
        answer_seconds: for all together; then 503.
        write_seconds: for a client to take what was sent.
        end_seconds: for requests that are answered after SIGTERM.
        linger_seconds: after SIGTERM, in which a request on an open connection is still taken.
        scans: of a progressive JPEG; each costs a pass over the image, however few bytes it has.
    """

    batch_size: int = 8
    wait: float = 0.005
    queue: int = 128
    max_bytes: int = 20 * MB
    max_pixels: int = 50_000_000
    urls: bool = True
    held_bytes: int = 512 * MB
    connections: int = 500
    head_seconds: float = 15.0
    body_seconds: float = 60.0
    fetch_seconds: float = 20.0
    decode_seconds: float = 20.0
    answer_seconds: float = 120.0
    write_seconds: float = 30.0
    end_seconds: float = 25.0  # Kubernetes kills after 30
    linger_seconds: float = 1.0
    scans: int = 200

    @property
    def body_bytes(self) -> int:
        """Of a request: an image in base64, and what stands around it."""
        return self.max_bytes * 4 // 3 + 64 * 1024
