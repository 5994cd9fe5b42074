"""`zoo export --to transformers`: a folder that transformers loads, and the certificate that both compute the same."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from PIL import Image

from zoo.detector import Detector
from zoo.exporting.transformers import CERTIFICATE, WEIGHTS, export_transformers
from zoo.prediction.image_input import read_rgb
from zoo.runs.console import Console
from zoo.runs.predict import open_source
from zoo.storage.durable import write_json
from zoo.storage.staging import put_in_place, staged

COMPARED = 8  # images


def to_transformers(
    detector: Detector,
    output: Path,
    *,
    data: str | Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Writes the folder and its certificate, which is returned; a folder whose certificate failed has no weights.

    Args:
        detector: a model in PyTorch.
        output: new or empty folder.
        data: an image or a folder of images, on the first of which both are compared; None: on drawn ones.
        console: for the user.

    Raises:
        ValueError: transformers has no such network, or the folder is not empty.
        OSError: an image cannot be read.
    """
    console, folder = console or Console(), output.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{output} exists and is not empty; give another --output")
    images = None if data is None else _first_images(str(data))
    with staged(folder.parent) as staging:
        device = detector.module.device
        try:
            document = export_transformers(detector.to("cpu"), staging, images)
        finally:
            detector.to(device)
        document["images"] = f"the first of {data}" if data is not None else "drawn"
        write_json(staging / CERTIFICATE, document, indent=2)
        if not document["passed"]:
            (staging / WEIGHTS).unlink()
        put_in_place(staging, folder, lambda there: any(there.iterdir()))
    _say(document, folder, console)
    return document


def _first_images(source: str) -> list[Image.Image]:
    given = itertools.islice(open_source(source), COMPARED)
    images = (read_rgb(one.content) for one in given)
    return [image for image in images if isinstance(image, Image.Image)]


def _say(document: dict[str, Any], folder: Path, console: Console) -> None:
    found = document["differences"]
    parts = ", ".join(
        f"{name} {'without bound' if found[name] is None else format(found[name], '.1g')}"
        for name in ("logits", "boxes", "masks")
        if name != "masks" or found[name] is not None
    )
    console.say(
        f"compared    {document['runtime']} on {found['images']} images; largest differences: {parts}"
    )
    if found["other_sizes"]:
        console.say(
            f"note        {found['other_sizes']} of them are so long that transformers' processor gives them another "
            "size, some pixels off; the networks were compared on ours"
        )
    for failure in document["failures"]:
        console.say(f"differs     {failure}", red=True)
    what = "exported   " if document["passed"] else "refused, so only its certificate is in"
    console.say(f"{what} {folder}", red=not document["passed"])
