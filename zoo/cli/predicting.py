"""`zoo predict`: files, folders, addresses and data URIs to boxes, masks, JSON and drawn pictures."""

from __future__ import annotations

import base64
import binascii
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from zoo.cli.console import Console
from zoo.cli.prediction_files import PredictionFiles
from zoo.detector import DEFAULT_THRESHOLD, Detector, Prediction, read_picture
from zoo.segments import Segment

MAX_BYTES = 64 << 20  # of one picture, fetched or in a data URI
SECONDS = 20.0  # without an answer from a server
PICTURE_TYPES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
PREDICTIONS_FILE = "predictions.json"


@dataclass(frozen=True)
class Source:
    """One picture to look at: how the user named it, a name for its files, its bytes or path."""

    given: str
    stem: str
    content: Path | bytes


def predict(
    load: Callable[[], Detector],
    sources: Sequence[str],
    threshold: float | None,
    output: Path,
    console: Console,
) -> None:
    """Detects in every source, prints what is found, writes predictions.json and a picture for each.

    A model with masks adds results.json or, with a panoptic rule, panoptic.json and the id maps in panoptic/.

    Args:
        load: gives the detector; called once the pictures are known to be there.
        sources: files, folders, addresses, data URIs.
        threshold: scores below it are left out; None for the model's own.
        output: folder; made if absent.
        console: for the user.

    Raises:
        ValueError, OSError: a source is no picture or cannot be reached.
    """
    if not sources:
        raise ValueError(
            "nothing to look at: zoo predict MODEL IMAGE..., where IMAGE is a file, folder or address"
        )
    pictures = [picture for source in sources for picture in open_source(source)]
    detector = load()
    output.mkdir(parents=True, exist_ok=True)
    documents, files = [], PredictionFiles(output)
    used: set[str] = set()
    for picture in pictures:
        image = read_picture(picture.content)
        assert isinstance(image, Image.Image)
        prediction = detector.predict(image, threshold)
        stem = _unique(picture.stem, used)
        drawn = files.draw(image, prediction, stem)
        image_id = files.add(prediction, stem, picture.given[:200])
        documents.append(
            {
                "source": picture.given[:200],
                "image_id": image_id,
                "picture": str(drawn),
                **prediction.to_dict(),
            }
        )
        say(picture, prediction, drawn, console)
    files_written = {kind: str(path) for kind, path in files.write().items()}
    result = {
        "model": detector.name,
        "threshold": DEFAULT_THRESHOLD if threshold is None else threshold,
        "predictions": documents,
        "files": files_written,
    }
    predictions = output / PREDICTIONS_FILE
    predictions.write_text(json.dumps(result, indent=2, ensure_ascii=False), encoding="utf-8")
    for path in (*files_written.values(), predictions):
        console.say(f"{path}")
    console.result(result)


def say(picture: Source, prediction: Prediction, drawn: Path, console: Console) -> None:
    """One line per segment, else per detection; then where the picture is."""
    console.say(f"{picture.given[:120]}")
    if prediction.panoptic is not None:
        lowest = prediction.panoptic_threshold
        lines = [_segment_line(segment, prediction) for segment in prediction.panoptic.segments]
    else:
        lowest = prediction.threshold
        rows = zip(prediction.labels, prediction.scores, prediction.boxes_xyxy, strict=True)
        lines = [
            f"Detected {label} with confidence {score:.3f} at location "
            f"[{', '.join(f'{value:.2f}' for value in box)}]"
            for label, score, box in rows
        ]
    for line in lines:
        console.say(line)
    if not lines:
        console.say(f"nothing scores {lowest} or more; try a lower --threshold")
    console.say(f"drawn       {drawn}")


def _segment_line(segment: Segment, prediction: Prediction) -> str:
    name = prediction.label_map.name_of_head[segment.label]
    share = 100 * segment.area / (prediction.size[0] * prediction.size[1])
    return f"Segment {segment.id}: {name} with confidence {segment.score:.3f} on {share:.1f} % of the picture"


def open_source(source: str) -> Iterator[Source]:
    """The pictures behind a file, folder, http(s) address or data URI.

    Raises:
        FileNotFoundError: no such file, or a folder without pictures.
        ValueError: too large, no picture, or an address of another kind.
        ConnectionError: the server does not answer in time.
    """
    scheme = urllib.parse.urlsplit(source).scheme.lower() if ":" in source[:12] else ""
    if scheme == "data":
        yield Source(source[:40] + "...", "data_uri", decode_data_uri(source))
    elif scheme in ("http", "https"):
        name = Path(urllib.parse.urlsplit(source).path).stem
        yield Source(source, re.sub(r"[^\w.-]", "_", name) or "download", fetch(source))
    elif len(scheme) > 1:
        raise ValueError(
            f"{source[:80]}: {scheme}: addresses are not fetched; use http, https, data, or a file"
        )
    elif Path(source).is_dir():
        found = sorted(p for p in Path(source).iterdir() if p.suffix.lower() in PICTURE_TYPES)
        if not found:
            raise FileNotFoundError(f"folder {source} holds no picture ({', '.join(PICTURE_TYPES)})")
        for path in found:
            yield Source(str(path), path.stem, path)
    elif Path(source).is_file():
        yield Source(source, Path(source).stem, Path(source))
    else:
        raise FileNotFoundError(f"{source} is neither a file nor a folder")


def decode_data_uri(uri: str) -> bytes:
    """The bytes of `data:[type][;base64],...`."""
    if len(uri) > MAX_BYTES * 4 // 3 + 200:
        raise ValueError(f"the data URI has {len(uri)} characters; a picture may have {MAX_BYTES} bytes")
    header, comma, payload = uri.partition(",")
    if not comma:
        raise ValueError(f"{uri[:40]!r} is no data URI: it has no comma; write data:image/png;base64,...")
    if not header.lower().endswith(";base64"):
        return urllib.parse.unquote_to_bytes(payload)
    try:
        return base64.b64decode(urllib.parse.unquote(payload), validate=True)
    except binascii.Error as error:
        raise ValueError(f"the data URI {uri[:40]!r}... is not valid base64: {error}") from error


def fetch(address: str) -> bytes:
    """The bytes behind an http(s) address, within limits of size and time."""
    request = urllib.request.Request(address, headers={"User-Agent": "detr-zoo"})
    try:
        with _OPENER.open(request, timeout=SECONDS) as answer:
            declared = int(answer.headers.get("Content-Length") or 0)
            content: bytes = b"" if declared > MAX_BYTES else answer.read(MAX_BYTES + 1)
    except (urllib.error.URLError, TimeoutError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(f"{address} could not be fetched: {reason}") from error
    if declared > MAX_BYTES or len(content) > MAX_BYTES:
        raise ValueError(f"{address} is larger than {MAX_BYTES >> 20} MB, which no picture here may be")
    return content


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """None ends the redirect with the server's answer as an error."""
        if urllib.parse.urlsplit(newurl).scheme not in ("http", "https"):
            raise urllib.error.URLError(f"redirected to {newurl[:60]}, which is not fetched")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_HttpOnly)


def _unique(stem: str, used: set[str]) -> str:
    name, number = stem, 2
    while name in used:
        name, number = f"{stem}_{number}", number + 1
    used.add(name)
    return name
