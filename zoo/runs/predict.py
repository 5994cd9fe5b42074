"""`zoo predict`: files, folders, addresses and data URIs to boxes, masks, JSON and painted pictures."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from datamodules.images.files import SUFFIXES, list_images
from datamodules.tiling.items import MANY
from zoo.contract.segments import Segment
from zoo.contract.tiles import Tiles
from zoo.detector import Detector, GivenTiles, Prediction
from zoo.pictures.painting import seen_rgb
from zoo.prediction.image_input import read_input, size_of
from zoo.registry.manifest import Thresholds
from zoo.runs.console import Console, counted
from zoo.runs.geo import GeoFile
from zoo.runs.prediction_files import PredictionFiles
from zoo.storage.durable import write_json
from zoo.storage.image_fetch import decode_data_uri, fetch, scheme_of

_LONGEST_STEM = 180  # bytes; file systems take 255, with what is added
PREDICTIONS_FILE = "predictions.json"


@dataclass(frozen=True)
class GivenImage:
    """One image to detect in: how the user named it, a name for its files, its bytes or path."""

    given: str
    stem: str
    content: Path | bytes


def predict(
    load: Callable[[], Detector],
    sources: Sequence[str],
    threshold: float | None,
    output: Path,
    console: Console,
    allow_private: bool = False,
    tiles: GivenTiles | None = None,
    tile_overlap: float | None = None,
) -> dict[str, Any]:
    """Detects in every source, prints what is found, writes predictions.json and a picture for each.

    An image that cannot be read is reported and left out, unless it is the only one.

    A model with masks adds results.json or, with a panoptic rule, panoptic.json and the id maps in panoptic/.

    Args:
        load: gives the detector; called once the images are known to exist.
        sources: files, folders, addresses, data URIs.
        threshold: scores below it are left out; None for the model's own.
        output: folder; made if absent.
        console: for the user.
        allow_private: whether addresses may be of this machine and its network.
        tiles: as of `Detector.predict`.
        tile_overlap: likewise.

    Returns:
        what predictions.json holds; `unreadable` names the images that were left out.

    Raises:
        ValueError, OSError: a source does not exist or cannot be reached, or no image can be read.
    """
    if not sources:
        raise ValueError(
            "no image is given: zoo predict MODEL IMAGE..., where IMAGE is a file, folder or address"
        )
    images = [given for source in sources for given in open_source(source, allow_private)]
    unreadable: list[str] = []
    detector = load()
    output.mkdir(parents=True, exist_ok=True)
    if threshold is None and detector.thresholds is not None:
        console.say(threshold_line(detector.thresholds))
    documents, files = [], PredictionFiles(output)
    used: set[str] = set()
    placed = GeoFile()
    for given in images:
        try:
            image = read_input(given.content, detector.input)
        except (ValueError, OSError) as error:
            if len(images) == 1:
                raise
            unreadable.append(str(error))
            console.say(f"left out    {error}")
            continue
        say_many(detector.tiles_of(tiles, tile_overlap), image, console)
        prediction = detector.predict(
            given.content if isinstance(image, Tensor) else image,
            threshold,
            tiles=tiles,
            tile_overlap=tile_overlap,
        )
        stem = _unique(given.stem, used)
        painted = files.draw(seen_rgb(image) if isinstance(image, Tensor) else image, prediction, stem)
        image_id = files.add(prediction, stem, given.given[:200])
        documents.append(
            {
                "source": given.given[:200],
                "image_id": image_id,
                "picture": str(painted),
                **prediction.to_dict(),
            }
        )
        if isinstance(given.content, Path):
            placed.add(given.content, documents[-1])
        say(given, prediction, painted, console)
    if not documents:
        raise ValueError(f"none of {len(images)} images can be read; the first: {unreadable[0]}")
    if any(document.get("detections") for document in documents):
        console.say("locations are [left, top, right, bottom] in pixels of the image (xyxy)")
    for note in placed.notes:
        console.say(note)
    files_written = {kind: str(path) for kind, path in (files.write() | placed.write(output)).items()}
    result = {
        "model": detector.name,
        "threshold": detector.default_threshold if threshold is None else threshold,
        "predictions": documents,
        "unreadable": unreadable,
        "files": files_written,
    }
    predictions = output / PREDICTIONS_FILE
    write_json(predictions, result, indent=2)
    for path in (*files_written.values(), predictions):
        console.say(f"{path}")
    if unreadable:
        message = f"{counted(len(unreadable), 'image')} of {len(images)} could not be read; the first: {unreadable[0]}"
        console.say(message)
    return result


def threshold_line(chosen: Thresholds) -> str:
    """From which score detections are shown, and why."""
    own = f", its own for {len(chosen.classes)} of the classes" if chosen.classes else ""
    right = ""
    if isinstance(chosen.precision, float) and isinstance(chosen.recall, float):
        right = f" ({chosen.precision:.0%} of what is shown there is right, {chosen.recall:.0%} of the objects found)"
    return (
        f"threshold   {chosen.all:.3f}{own}: the {chosen.chosen_for} on {chosen.split}{right}, kept with the model; "
        "--threshold N takes its place"
    )


def say_many(tiles: Tiles | None, image: Image.Image | Tensor, console: Console) -> None:
    """Before it takes its time, that an image is cut into very many tiles."""
    size = size_of(image)
    views = 1 if tiles is None else tiles.num_views(*size)
    if views - 1 > MANY:
        console.say(
            f"tiles       {tiles}: {views - 1:,} of an image of {size[0]}x{size[1]}, each as costly as an image; "
            "larger ones: --tiles N"
        )


def say(given: GivenImage, prediction: Prediction, painted: Path, console: Console) -> None:
    """One line per segment, else per detection; then where the picture is."""
    console.say(f"{given.given[:120]}")
    if prediction.tiles is not None:
        cut = (
            f"{prediction.views - 1} and the whole image"
            if prediction.views > 1
            else "the whole image is one"
        )
        console.say(f"tiles       {prediction.tiles}: {cut} (--tiles none: without)")
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
    console.say(f"drawn       {painted}")


def _segment_line(segment: Segment, prediction: Prediction) -> str:
    name = prediction.label_map.name_of_head[segment.label]
    share = 100 * segment.area / (prediction.size[0] * prediction.size[1])
    return f"Segment {segment.id}: {name} with confidence {segment.score:.3f} on {share:.1f} % of the image"


def open_source(source: str, allow_private: bool = False) -> Iterator[GivenImage]:
    """The images behind a file, folder, http(s) address or data URI.

    Raises:
        FileNotFoundError: no such file, or a folder without images.
        ValueError: too large, no image, or an address of another kind.
        ConnectionError: the server does not answer in time.
    """
    scheme = scheme_of(source)
    if scheme == "data":
        yield GivenImage(source[:40] + "...", "data_uri", decode_data_uri(source))
    elif scheme in ("http", "https"):
        name = _stem(Path(urllib.parse.urlsplit(source).path))
        yield GivenImage(
            source, re.sub(r"[^\w.-]", "_", name) or "download", fetch(source, private=allow_private)
        )
    elif scheme:
        raise ValueError(
            f"{source[:80]}: {scheme}: addresses are not fetched; use http, https, data, or a file"
        )
    elif os.path.isdir(source):
        found = list_images(Path(source))
        if not found:
            raise FileNotFoundError(f"folder {source} holds no image ({', '.join(sorted(SUFFIXES))})")
        for path in found:
            yield GivenImage(str(path), _stem(path), path)
    elif os.path.isfile(source):
        yield GivenImage(source, _stem(Path(source)), Path(source))
    else:
        raise FileNotFoundError(f"{source[:200]} is neither a file nor a folder")


def _stem(path: Path) -> str:
    """The name of an image without its ending, short enough to name files after it."""
    return os.fsdecode(os.fsencode(path.stem)[:_LONGEST_STEM])


def _unique(stem: str, used: set[str]) -> str:
    name, number = stem, 2
    while name in used:
        name, number = f"{stem}_{number}", number + 1
    used.add(name)
    return name
