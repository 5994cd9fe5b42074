"""Requests as a stranger may send them, byte for byte, and the status that each gets."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

BOUNDARY = "xXx"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


@dataclass(frozen=True)
class Hostile:
    """What is sent, the status that it must get (0: the connection is closed), and the kind of the problem."""

    name: str
    request: bytes
    status: int
    kind: str = ""


def asked(
    body: bytes = b"",
    content_type: str | None = "application/json",
    path: str = "/v1/detect",
    method: str = "POST",
    headers: tuple[str, ...] = (),
    length: int | None = None,
) -> bytes:
    """A whole request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    if content_type is not None:
        lines.append(f"Content-Type: {content_type}")
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in headers):
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def as_json(**fields: Any) -> bytes:
    return asked(json.dumps(fields).encode())


def with_image(**fields: Any) -> bytes:
    return as_json(image=text_of(PNG), **fields)


def image(content: bytes) -> bytes:
    return as_json(image=text_of(content))


def form(*parts: tuple[str, bytes], end: str = f"--{BOUNDARY}--\r\n", content_type: str = FORM) -> bytes:
    """A form of (head of the part, content)."""
    body = b"".join(
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"
        for head, content in parts
    )
    return asked(body + end.encode(), content_type)


def answer_of(port: int, request: bytes, seconds: float = 10.0) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; status 0 where the connection ends without an answer, -1 where it stays."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        try:
            connection.sendall(request)
        except OSError:
            pass  # it has answered before all was sent
        response = http.client.HTTPResponse(connection, method=request.partition(b" ")[0].decode("latin-1"))
        try:
            response.begin()
            return response.status, dict(response.headers), response.read()
        except TimeoutError:
            return -1, {}, b""
        except (http.client.HTTPException, OSError):
            return 0, {}, b""


def text_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG whose header says so much, with any chunks."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def bomb(side: int) -> bytes:
    """A PNG of black pixels: a few bytes for many of them."""
    packer = zlib.compressobj(9)
    rows = [packer.compress(bytes(1 + 3 * side)) for _ in range(side)]
    return png_of(side, side, chunk(b"IDAT", b"".join([*rows, packer.flush()])))


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose header says so much."""
    content = bytearray(encoded(NOISE, "JPEG"))
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def many_scans(number: int) -> bytes:
    """A progressive JPEG with its last scan so many times."""
    content = encoded(NOISE, "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    tables = content.rindex(b"\xff\xc4", 0, last)
    return content[:-2] + content[tables:-2] * number + content[-2:]


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
PNG = encoded(NOISE, "PNG")
JPEG = encoded(NOISE, "JPEG")
GIF_HUGE = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"\x2c" + bytes(9) + b"\x02\x00\x3b"
CHUNKED = ("Transfer-Encoding: chunked",)
CHUNK = b"10000\r\n" + bytes(65536) + b"\r\n"
UPGRADE = ("Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
FILE = 'name="file"; filename="a.png"'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n%%EOF"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


def deep(opening: str, closing: str, number: int = 100_000) -> bytes:
    return asked(f"{opening * number}1{closing * number}".encode())


def chat(*content: Any, **fields: Any) -> bytes:
    messages = [{"role": "user", "content": list(content)}]
    return asked(json.dumps({"messages": messages, **fields}).encode(), path="/v1/chat/completions")


def url_part(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


PATHS = [
    *(Hostile(f"{m} /v1/detect", asked(method=m, content_type=None), 405, "method") for m in ("GET", "PUT",
        "DELETE", "PATCH", "OPTIONS", "FOO")),
    Hostile("HEAD /v1/detect", asked(method="HEAD", content_type=None), 405),
    Hostile("POST /v1/models", asked(path="/v1/models"), 405, "method"),
    Hostile("POST /metrics", asked(path="/metrics"), 405, "method"),
    *(
        Hostile(f"GET {path}", asked(path=path, method="GET", content_type=None), 404)
        for path in (
            "/v1", "/nothing", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//v1/models", "/v1/models/",
            "/v1/models/..%2f..%2fetc", "/v1/models/%00", "/v1/models/%ff%fe", "/docs", "/v1/models/" + "a" * 9000,
        )
    ),
    *(
        Hostile(f"POST {path}", with_image().replace(b"/v1/detect", path.encode()), 422, "query")
        for path in ("/v1/detect?threshold=0.8", "/v1/detect?threshold", "/v1/detect?a=1&a=2", "/v1/detect?%00=%ff")
    ),
    Hostile("POST /v1/chat/completions?model=a", asked(b"{}", path="/v1/chat/completions?model=a"), 422, "query"),
    *(
        Hostile(f"GET {path}", asked(path=path, method="GET", content_type=None), 422, "query")
        for path in ("/v1/models?limit=1", "/v1/models/tiny?full")
    ),
]  # fmt: skip
BODIES = [
    *(
        Hostile(f"type {kind}", asked(PNG, kind), 415, "content-type")
        for kind in (None, "", "text/plain", "image/png", "application/xml",
        "application/x-www-form-urlencoded", "application/jsonp", ";;;")
    ),
    *(
        Hostile(f"JSON {name}", asked(body), 400, "json")
        for name, body in {
            "empty": b"", "blank": b"  ", "cut off": b'{"image": "a', "words": b"hello",
            "not UTF-8": b'{"image": "\xff"}',
            "UTF-16": '{"image": "a"}'.encode("utf-16"), "with a BOM": b"\xef\xbb\xbf{}",
            "a key twice": b'{"image": "a", "image": "b"}',
            "NaN": b'{"image": "a", "threshold": NaN}', "Infinity": b'{"image": "a", "threshold": Infinity}',
            "-Infinity": b'{"image": "a", "threshold": -Infinity}', "1e999": b'{"image": "a", "threshold": 1e999}',
            "5000 digits": b'{"image": "a", "threshold": ' + b"1" * 5000 + b"}", "two": b"{}{}",
            "gzip": b"\x1f\x8b\x08\x00",
        }.items()
    ),
    Hostile("JSON lists in lists", deep("[", "]"), 400, "json"),
    Hostile("JSON objects in objects", deep('{"image":', "}", 20_000), 400, "json"),
    *(Hostile(f"JSON {value}", asked(value.encode()), 422, "value") for value in ("[]", "1", "null", '"image"',
        "true", "{}")),
    *(Hostile(f"image {value!s:.9}", as_json(image=value), 422, "value") for value in (1, None, ["a"],
        {"url": "a"}, "", True)),
    *(
        Hostile(f"{name} {value!s:.20}", with_image(**{name: value}), 422, "value")
        for name, value in (
            ("threshold", "0.5"), ("threshold", -0.1), ("threshold", 1.01), ("threshold", True), ("threshold",
            [0.5]), ("threshold", 1e300),
            ("max_detections", 0), ("max_detections", -1), ("max_detections", 1.5), ("max_detections", 10**30),
            ("max_detections", "3"),
            ("classes", "disc"), ("classes", []), ("classes", [1]), ("classes", [""]), ("classes",
            ["disc"] * 1001), ("classes", {"disc": 1}),
            ("model", 1), ("model", ""), ("model", "a" * 10_000), ("treshold", 0.5), ("__class__", "x"),
            ("\u0000", 1),
        )
    ),
    Hostile("classes unknown", with_image(classes=["disk"]), 422, "class"),
    Hostile("classes <script>", with_image(classes=["<script>"]), 422, "class"),
    Hostile("model unknown", with_image(model="tinny"), 404, "model"),
    Hostile("model a path", with_image(model="../../etc/passwd"), 404, "model"),
    Hostile("model with a line feed", with_image(model="a\r\nX: y"), 404, "model"),
]  # fmt: skip
FORMS = [
    Hostile("form without boundary", form((FILE, PNG), content_type="multipart/form-data"), 400, "form"),
    Hostile("form with another boundary", form((FILE, PNG), content_type="multipart/form-data; boundary=y"),
        400, "form"),
    Hostile("form that is none", asked(b"hello", FORM), 400, "form"),
    Hostile("form empty", asked(b"", FORM), 422, "form"),
    Hostile("form cut off", form((FILE, PNG), end=""), 422, "form"),
    Hostile("form without a file", form(('name="threshold"', b"0.5")), 422, "form"),
    Hostile("form with two files", form((FILE, PNG), (FILE, PNG)), 400, "form"),
    Hostile("form with the file elsewhere", form(('name="image"; filename="a.png"', PNG)), 422, "form"),
    Hostile("form with the file as text", form(('name="file"', PNG)), 422, "form"),
    Hostile("form with a field twice", form((FILE, PNG), ('name="threshold"', b"1"), ('name="threshold"',
        b"0")), 422, "form"),
    Hostile("form with 2000 fields", form((FILE, PNG), *[('name="classes"', b"disc")] * 2000), 400, "form"),
    Hostile("form with a long field", form((FILE, PNG), ('name="model"', b"a" * 70_000)), 400, "form"),
    Hostile("form with a part without a name", form(("x=1", PNG)), 400, "form"),
    Hostile("form with an unknown field", form((FILE, PNG), ('name="iou"', b"1")), 422, "value"),
    Hostile("form with threshold NaN", form((FILE, PNG), ('name="threshold"', b"NaN")), 422, "value"),
    Hostile("form with threshold 0x1", form((FILE, PNG), ('name="threshold"', b"0x1")), 422, "value"),
    Hostile("form with an empty file", form((FILE, b"")), 422, "image"),
    Hostile("form with a name that is a path", form(('name="file"; filename="../../etc/passwd"', b"root:")),
        422, "image"),
]  # fmt: skip
IMAGES = [
    *(
        Hostile(f"image {name}", image(content), 422, "image")
        for name, content in {
            "of words": b"hello", "HTML": b"<html></html>", "SVG": SVG, "EPS": EPS, "PDF": b"%PDF-1.7\n",
            "ZIP": b"PK\3\4" + bytes(99),
            "pickle": b"\x80\x04\x95cos\nsystem\n.", "numpy": b"\x93NUMPY\x01\x00",
            "PNG without data": png_of(9, 9),
            "PNG cut off": PNG[: len(PNG) // 2], "PNG of 0 pixels": png_of(0, 9),
            "PNG with broken data": png_of(9, 9, chunk(b"IDAT", b"x" * 50)),
            "PNG with a text of 70 MB": png_of(9, 9, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(70 << 20)))),
            "JPEG head alone": JPEG[:200], "TIFF in a circle": b"II*\0\x08\0\0\0" + b"\0\0\x08\0\0\0",
            "GIF head alone": b"GIF89a", "BMP head alone": b"BM" + bytes(60),
            "WebP head alone": b"RIFF\x20\0\0\0WEBPVP8 ",
        }.items()
    ),
    Hostile("image bomb of 20 kB", image(bomb(3000)), 413, "image-pixels"),
    Hostile("image PNG of 2**31 x 2**31", image(png_of(2**31 - 1, 2**31 - 1)), 413, "image-pixels"),
    Hostile("image PNG of 1 x 80 million", image(png_of(1, 80_000_000)), 413, "image-pixels"),
    Hostile("image JPEG of 65500 x 65500", image(jpeg_of(65500, 65500)), 413, "image-pixels"),
    Hostile("image GIF of 65535 x 65535", image(GIF_HUGE), 413, "image-pixels"),
    Hostile("image JPEG of 400 scans", image(many_scans(400)), 422, "image-scans"),
    Hostile("image too large", image(PNG + bytes(230_000)), 413, "image-bytes"),
    Hostile("image in broken base64", as_json(image="a"), 422, "image-base64"),
    Hostile("image in base64 of URLs", as_json(image="_-_-"), 422, "image-base64"),
    Hostile("image a Chinese word", as_json(image="图片"), 422, "image-base64"),
    Hostile("image a path", as_json(image="/etc/passwd"), 422, "image-base64"),
    Hostile("data URI without a comma", as_json(image="data:image/png;base64"), 422, "image-base64"),
    Hostile("data URI in broken base64", as_json(image="data:image/png;base64,a"), 422, "image-base64"),
    Hostile("data URI of words", as_json(image="data:,hello"), 422, "image"),
]  # fmt: skip
ADDRESSES = [
    *(
        Hostile(f"address {address}", as_json(image=address), 422, "image-fetch")
        for address in (
            "http://127.0.0.1/a.png", "http://localhost/a.png", "http://127.1/", "http://2130706433/",
            "http://0/", "http://0x7f.1/",
            "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://169.254.169.254/latest/meta-data/",
            "http://10.0.0.1/", "http://192.168.0.1/",
            "http://[fe80::1]/", "http://100.100.100.200/", "http://127.0.0.1:22/",
            "http://user:word@127.0.0.1/", "http://", "http://[", "https:///a",
            "http://a..b/", "http://1.1.1.1:99999/",
        )
    ),
    *(Hostile(f"address {a}", as_json(image=a), 422, "image-address") for a in ("file:///etc/passwd",
        "ftp://a/b", "gopher://a", "javascript:1", "jar:x")),
]  # fmt: skip
CHATS = [
    Hostile("chat empty", asked(b"{}", path="/v1/chat/completions"), 422, "value"),
    Hostile("chat without messages", asked(b'{"messages": []}', path="/v1/chat/completions"), 400, "image"),
    Hostile("chat without an image", chat({"type": "text", "text": "hello"}), 400, "image"),
    Hostile("chat with two images", chat(url_part("data:,a"), url_part("data:,b")), 400, "image"),
    Hostile("chat with words for an image", chat(url_part("data:,a")), 422, "image"),
    Hostile("chat with a loopback address", chat(url_part("http://127.0.0.1/")), 422, "image-fetch"),
    Hostile("chat with n = 2", chat(url_part("data:,a"), n=2), 400, "n"),
    Hostile("chat with a number for an address", chat(url_part(1)), 422, "value"),
    Hostile("chat with deep messages", deep('{"messages":', "}", 20_000).replace(b"/v1/detect",
        b"/v1/chat/completions"), 400, "json"),
    Hostile("chat as a form", asked(b"x", FORM, path="/v1/chat/completions"), 400, "json"),
]  # fmt: skip
WIRE = [
    Hostile("garbage", b"\x00\x01\x02\x03\r\n\r\n", 400),
    Hostile("TLS", bytes.fromhex("16030100a5010000a10303") + bytes(160), 400),
    Hostile("HTTP/0.9", b"GET /\r\n\r\n", 400),
    Hostile("no Host", b"GET /healthz HTTP/1.1\r\n\r\n", 400),
    Hostile("another Host", asked(path="/healthz", method="GET").replace(b"localhost", b"evil.example"), 421,
        "host"),
    Hostile("two Hosts", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: a\r\n\r\n", 400),
    Hostile("a target that is not ASCII", b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    Hostile("headers of 100 kB", asked(headers=("X: " + "a" * 100_000,)), 400),
    Hostile("5000 headers", asked(headers=tuple(f"X{i}: a" for i in range(5000))), 400),
    Hostile("Content-Length -1", asked(headers=("Content-Length: -1",)), 400),
    Hostile("Content-Length a", asked(headers=("Content-Length: a",)), 400),
    Hostile("two Content-Lengths", asked(b"{}", headers=("Content-Length: 2", "Content-Length: 3")), 400),
    Hostile("Content-Length 10**30", asked(length=10**30), 400),
    Hostile("Content-Length 1 GB", asked(length=1 << 30), 413, "body-bytes"),
    Hostile("Transfer-Encoding gzip", asked(headers=("Transfer-Encoding: gzip",)), 400),
    Hostile("a chunk of no size", asked(b"zz\r\n", headers=CHUNKED), 400),
    Hostile("chunks of 400 kB", asked(CHUNK * 6 + b"0\r\n\r\n", headers=CHUNKED), 413, "body-bytes"),
    Hostile("a body that stops", asked(b"{", length=100), 408, "body-slow"),
    Hostile("a chunk that stops", asked(b"5\r\n{", headers=CHUNKED), 408, "body-slow"),
    Hostile("a head that stops", b"POST /v1/detect HTTP/1.1\r\nHost: local", 0),
    Hostile("nothing", b"", 0),
    Hostile("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 421, "host"),
    Hostile("WebSocket", asked(method="GET", headers=UPGRADE), 405, "method"),
]  # fmt: skip
REQUESTS = (*PATHS, *BODIES, *FORMS, *IMAGES, *ADDRESSES, *CHATS, *WIRE)
