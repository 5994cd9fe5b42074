"""Label Studio json: full exports (`JSON`) and short ones (`JSON-MIN`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from datamodules.images.files import SUFFIXES
from datamodules.reading import kinds as sniff
from datamodules.reading.annotation_folder import AnnotationFolder, named_classes
from datamodules.reading.outlines import Points, around_ellipse, flat, polygon_box, rotated
from datamodules.reading.parsing import load_list
from datamodules.reading.records import ImageRecord, Mark, Remarks, enclosing, split_of_file

_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # put before the name of every uploaded file
_PAGE = re.compile(r"_(\d{1,9})$")
_LABEL_KEYS = ("rectanglelabels", "polygonlabels", "ellipselabels", "brushlabels", "keypointlabels", "labels")
_GEOMETRY = {*_LABEL_KEYS, "rectangle", "polygon", "ellipse", "brush"}
_IMAGE_KEYS = ("image", "images", "img", "image_url", "record", "photo", "url")


def annotation_files(root: Path) -> list[Path]:
    """Every Label Studio json in the folder."""
    return sniff.of_kind(root, ".json", "label_studio")


def _read(folder: AnnotationFolder) -> list[ImageRecord]:
    """Classes in alphabetical order.

    Of several annotations of a task the ground truth one is taken, else the latest; cancelled ones and
    predictions never. Percent become pixels by the original size that the export gives.

    Raises:
        ValueError: if no task has a box or polygon.
    """
    records: list[ImageRecord] = []
    kinds: set[str] = set()
    message = "task that cannot be understood ({error!r}); left out; export it again"
    for file in folder.files:
        for number, task in enumerate(load_list(file, "tasks"), start=1):
            with folder.left_out(file, message, f"task number {number}"):
                results = _results(task, file, folder.remarks)
                kinds |= {str(r.get("type")) for r in results or []}
                if results is not None:
                    records += _records(task, results, file, folder.root, folder.remarks)
    if not any(record.marks for record in records) and kinds and not kinds & _GEOMETRY:
        raise ValueError(
            f"{folder.root}: the Label Studio export has no boxes; its results are of the types {sorted(kinds)}; "
            "detection needs rectanglelabels or polygonlabels"
        )
    return records


def _results(task: Mapping[str, Any], file: Path, remarks: Remarks) -> list[dict[str, Any]] | None:
    """The results of the annotation that is used; None for a task without one."""
    where = f"task {task.get('id')}"
    if "annotations" not in task and "completions" not in task:
        return _short_results(task)
    done = [a for a in task.get("annotations") or task.get("completions") or [] if not a.get("was_cancelled")]
    if not done:
        message = "task without annotation; its image is left out; annotate it or submit it empty"
        remarks.add("warning", "unannotated", file, message, where)
        return None
    if len(done) > 1:
        message = "task with several annotations; the ground truth one, else the latest, is taken"
        remarks.add("warning", "several_annotations", file, message, where)
    chosen = max(done, key=lambda a: (bool(a.get("ground_truth")), str(a.get("updated_at") or ""), a["id"]))
    return list(chosen.get("result") or [])


def _short_results(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """JSON-MIN has the values of each control tag in a list under its name, and sizes among them."""
    results = []
    for key, values in task.items():
        for value in values if isinstance(values, list) else []:
            if isinstance(value, dict) and "original_width" in value:
                kind = next((k for k in _LABEL_KEYS if k in value), "")
                results.append({**value, "value": value, "type": kind, "to_name": key})
    return results


def _records(
    task: Mapping[str, Any], results: list[dict[str, Any]], file: Path, root: Path, remarks: Remarks
) -> Iterator[ImageRecord]:
    split = split_of_file(file, root)
    by_page: dict[int, list[dict[str, Any]]] = {}
    images = _image_urls(task)
    for result in results:
        page = _PAGE.search(str(result.get("to_name") or ""))
        number = int(page[1]) if page and len(images) > 1 else 0
        by_page.setdefault(number, []).append(result)
    if not images:
        message = "task without an image; left out"
        remarks.add("warning", "no_image", file, message, f"task {task.get('id')}")
    for number, url in enumerate(images):
        own = by_page.get(number, [])
        if not own and len(images) > 1:
            continue
        names = _names(url, str(task.get("file_upload") or ""))
        yield ImageRecord(
            names[0], file, split, _size(own), list(_marks(own, file, names[0], remarks)), names[1:]
        )


def _image_urls(task: Mapping[str, Any]) -> list[str]:
    data = task.get("data", task)
    found = next((data[k] for k in _IMAGE_KEYS if data.get(k)), None)
    if found is None:
        texts = [v for v in data.values() if isinstance(v, str)]
        found = next((v for v in texts if Path(urlsplit(v).path).suffix.lower() in SUFFIXES), "")
    if isinstance(found, list):
        return [str(v.get("url", "")) if isinstance(v, dict) else str(v) for v in found]
    return [str(found)] if found else []


def _names(url: str, upload: str) -> tuple[str, ...]:
    """Names under which the image may lie: the path of its address, the name of its upload."""
    parts = urlsplit(url)
    local = parse_qs(parts.query).get("d", [""])[0]
    path = unquote(local or parts.path or url)
    names = [path, upload if Path(upload).suffix.lower() in SUFFIXES else ""]
    names += [_UPLOAD_PREFIX.sub("", name.rsplit("/", 1)[-1]) for name in names]
    return tuple(dict.fromkeys(n for n in names if n)) or (url,)


def _size(results: list[dict[str, Any]]) -> tuple[int, int] | None:
    for result in results:
        height, width = result.get("original_height"), result.get("original_width")
        if isinstance(height, int) and isinstance(width, int):
            return height, width
    return None


def _marks(results: list[dict[str, Any]], file: Path, where: str, remarks: Remarks) -> Iterator[Mark]:
    # a region and its label may be two results of one id
    regions: dict[str, dict[str, Any]] = {}
    for number, result in enumerate(results):
        value = result.get("value")
        if isinstance(value, dict):
            regions.setdefault(str(result.get("id") or number), {}).update({**result, **value})
    for region in regions.values():
        labels = next((region[k] for k in _LABEL_KEYS if region.get(k)), None)
        if region.get("image_rotation"):
            message = "region on an image that was turned in the tool; left out; turn the file itself"
            remarks.add("error", "turned_image", file, message, where)
        elif "rle" in region or "brushlabels" in region:
            message = "brushlabels: painted masks are not read; left out; draw rectangles or polygons"
            remarks.add("error", "brush", file, message, where)
        elif "points" in region or "width" in region or "radiusX" in region:
            for label in labels or [""]:
                yield _mark(str(label), region, file, where, remarks)
        elif labels:
            message = f"{region.get('type')}: has no box; left out"
            remarks.add("warning", "no_box", file, message, where)


def _mark(label: str, region: Mapping[str, Any], file: Path, where: str, remarks: Remarks) -> Mark:
    """The object in pixels of the original size, which a turned box needs."""
    try:
        across, down = float(region["original_width"]) / 100, float(region["original_height"]) / 100
        angle = float(region.get("rotation") or 0)
        if "points" in region:
            points: Points = [(float(x) * across, float(y) * down) for x, y in region["points"]]
            return Mark(label, polygon_box(points), [flat(points)])
        x, y = float(region["x"]) * across, float(region["y"]) * down
        if "radiusX" in region:
            radii = float(region["radiusX"]) * across, float(region["radiusY"]) * down
            return Mark(label, around_ellipse((x, y), radii, angle))
        box = (x, y, float(region["width"]) * across, float(region["height"]) * down)
    except (KeyError, TypeError, ValueError):
        return Mark(label, None)
    if not angle % 360:
        return Mark(label, box)
    message = "turned box; the upright box around it is taken"
    remarks.add("warning", "turned_box", file, message, where)
    corners = rotated(box, angle, (x, y))  # Label Studio turns around the top left corner
    return Mark(label, enclosing(corners), [flat(corners)])


FORMAT = named_classes(
    name="label_studio",
    find=annotation_files,
    records=_read,
    lacks="Label Studio json (a list of tasks with annotations)",
    unlisted="image that the Label Studio export does not name; left out",
    title="Label Studio",
    places="json or json-min export, with the images",
)
