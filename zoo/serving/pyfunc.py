"""The second door: MLflow's own tools load and serve a published version by this module, which its MLmodel names.

mlflow.pyfunc.load_model("models:/NAME@champion").predict(DataFrame({"image": [ADDRESS, DATA_URI, BASE64]}))
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zoo.detector import Detector
from zoo.registry.manifest import MANIFEST_FILE, read_manifest
from zoo.registry.mlflow_model import COLUMN
from zoo.registry.pull import Pulled
from zoo.registry.store import verify_folder
from zoo.storage.image_fetch import decode_text, fetch, scheme_of


class PyfuncDetector:
    """A detector as MLflow calls it."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[Any]:
        """The document of each image, as `zoo predict --json` writes it; of one that cannot be read `{"error": why}`.

        Args:
            model_input: a DataFrame with the column `image`, or a list: http(s) addresses of public machines, data
                URIs, base64. Never paths: who may send images to a server may not read its files.
            params: `threshold`, `max_detections`, and `as_text` for documents as JSON text.

        Raises:
            ValueError: another input, or a threshold that is none.
        """
        given = {name: value for name, value in (params or {}).items() if value is not None}
        threshold, most = given.get("threshold"), given.get("max_detections")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold!r}; scores are numbers between 0 and 1")
        if most is not None and most < 1:
            raise ValueError(f"max_detections is {most}; it is at least 1")
        documents = [self._document(image, threshold, most) for image in _images_in(model_input)]
        return [json.dumps(one) for one in documents] if given.get("as_text") else documents

    def _document(self, image: str | bytes, threshold: float | None, most: int | None) -> dict[str, Any]:
        try:
            prediction = self.detector.predict(_bytes_of(image), threshold).only(most=most)
        except (ValueError, OSError) as error:
            return {"error": str(error)[:500]}
        return prediction.to_dict(with_png=True)


def _load_pyfunc(path: str) -> PyfuncDetector:
    """Called by MLflow with the folder of a version; every hash is checked first.

    Raises:
        ValueError, OSError: the files are not those of the manifest.
    """
    folder = Path(path)
    manifest = read_manifest(folder / MANIFEST_FILE)
    verify_folder(folder, manifest)
    return PyfuncDetector(Detector.from_pulled(Pulled(manifest, folder, "local", False, ())))


def _images_in(model_input: Any) -> Iterable[str | bytes]:
    columns = getattr(model_input, "columns", None)
    if columns is not None and COLUMN not in columns:
        raise ValueError(f"the input has no column {COLUMN!r}")
    rows = model_input if columns is None else model_input[COLUMN]
    if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Iterable):
        raise ValueError(f"the input is a DataFrame with the column {COLUMN!r}, or a list of images")
    return rows


def _bytes_of(image: Any) -> bytes:
    """The bytes of an address, data URI or base64.

    Raises:
        ValueError, ConnectionError: it is none of these, or cannot be fetched.
    """
    if isinstance(image, bytes):
        return image
    if not isinstance(image, str):
        raise ValueError(f"an image is text or bytes, not {type(image).__name__}")
    return fetch(image) if scheme_of(image) in ("http", "https") else decode_text(image)
