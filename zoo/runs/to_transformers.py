"""`zoo export --to transformers`: a folder that transformers loads, and the certificate that both compute the same."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from PIL import Image

from zoo.detector import Detector
from zoo.exporting.transformers import (
    CERTIFICATE,
    WEIGHTS,
    certified,
    class_of,
    drawn_images,
    export_transformers,
)
from zoo.prediction.image_input import read_rgb
from zoo.registry.hugging_face.folder import read_json
from zoo.runs.console import Console, quoted
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
    _say(document, console)
    what = "exported   " if document["passed"] else "refused, so only its certificate is in"
    console.say(f"{what} {folder}", red=not document["passed"])
    return document


def check_transformers(
    folder: Path, source: Detector, *, data: str | Path | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Repeats the certificate of a folder on this machine; the new one.

    Args:
        folder: that `to_transformers` wrote.
        source: the model that it was made of.
        data: as of `to_transformers`.
        console: for the user.
    """
    images = drawn_images() if data is None else _first_images(str(data))
    document = certified(source.to("cpu"), folder, class_of(source)[1], images)
    beside = folder / CERTIFICATE
    if beside.is_file() and read_json(beside, str(folder)).get("file") != document["file"]:
        document["failures"].append(f"the weights are not those of the certificate beside them, {beside}")
        document["passed"] = False
    console = console or Console()
    _say(document, console)
    what = "equal" if document["passed"] else "not equal"
    console.say(f"{folder} and {source.name} are {what}", red=not document["passed"])
    return document


def source_of(folder: Path) -> str:
    """Name of the model that a folder was made of, by its certificate.

    Raises:
        ValueError: there is no certificate, or the file is none.
    """
    path = folder / CERTIFICATE
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {CERTIFICATE}; name the model that it was made of: "
            f"zoo export NAME --check {quoted(folder)}"
        )
    source = read_json(path, str(folder)).get("source")
    if not isinstance(source, dict) or not isinstance(source.get("name"), str):
        raise ValueError(f"{path} is no certificate of zoo export: it has no source.name")
    return str(source["name"])


def _first_images(source: str) -> list[Image.Image]:
    given = itertools.islice(open_source(source), COMPARED)
    images = (read_rgb(one.content) for one in given)
    return [image for image in images if isinstance(image, Image.Image)]


def _say(document: dict[str, Any], console: Console) -> None:
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
