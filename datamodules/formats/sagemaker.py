"""SageMaker Ground Truth: a manifest with a json object a line, of object detection jobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datamodules.reading import kinds as sniff
from datamodules.reading.annotation_folder import AnnotationFolder, named_classes
from datamodules.reading.json_lines import four, objects, whole_size
from datamodules.reading.parsing import MALFORMED
from datamodules.reading.records import ImageRecord, Mark

_METADATA = "-metadata"
_SUFFIXES = (".manifest", ".jsonl", ".json")


def annotation_files(root: Path) -> list[Path]:
    """Every file whose first line has a `source-ref`."""
    return [file for suffix in _SUFFIXES for file in sniff.files(root, suffix) if _is_manifest(file)]


def _is_manifest(file: Path) -> bool:
    return any('"source-ref"' in line and line.startswith("{") for line in sniff.first_lines(file, 1))


def _read(folder: AnnotationFolder) -> Iterator[ImageRecord]:
    """Class ids are those of the job. Boxes are left, top, width, height in pixels.

    An image whose job failed, or which has no annotations of boxes, is left out with a remark.

    Raises:
        ValueError: if none of the jobs is of boxes.
    """
    ids: dict[str, int] = {}
    folder.ids = ids
    kinds: set[str] = set()
    boxed = False
    message = "line that cannot be understood; left out; export the manifest again"
    for file in folder.files:
        for number, line in objects(file, folder.remarks):
            with folder.left_out(file, message, f"line {number}"):
                kinds |= _kinds(line)
                if job := _job(line):
                    record = _record(line, job, file, ids)
                    boxed = True
                    yield folder.with_split(record)
                else:
                    unboxed = "image without annotations of boxes, or of which the job failed; left out"
                    folder.remarks.add("warning", "unannotated", file, unboxed, f"line {number}")
    if not boxed and kinds and not any("object-detection" in kind for kind in kinds):
        raise ValueError(
            f"{folder.root}: the manifest is of the job {', '.join(sorted(kinds))} and has no boxes; detection needs "
            "groundtruth/object-detection"
        )


def _kinds(line: Mapping[str, Any]) -> set[str]:
    """What the jobs of a line are, e.g. groundtruth/image-classification."""
    every = (value for key, value in line.items() if key.endswith(_METADATA) and isinstance(value, dict))
    return {str(value["type"]) for value in every if value.get("type")}


def _job(line: Mapping[str, Any]) -> str:
    """The attribute with boxes; of several the last, which corrects the others; empty if there is none."""
    jobs = [(key, value) for key, value in line.items() if isinstance(value, dict)]
    boxed = [key for key, value in jobs if isinstance(value.get("annotations"), list)]
    return boxed[-1] if boxed else ""


def _record(line: Mapping[str, Any], job: str, file: Path, ids: dict[str, int]) -> ImageRecord:
    labels, metadata = line[job], line.get(job + _METADATA) or {}
    for number, name in (metadata.get("class-map") or {}).items():
        if int(number) not in ids.values():
            ids.setdefault(str(name), int(number))
    names = {int(number): str(name) for number, name in (metadata.get("class-map") or {}).items()}
    marks = []
    for annotation in labels["annotations"]:
        number = int(annotation["class_id"])
        try:
            box = four(annotation[key] for key in ("left", "top", "width", "height"))
        except MALFORMED:
            box = None
        marks.append(Mark(names.get(number, str(number)), box))
    shapes = labels.get("image_size") or [{}]
    size = whole_size(shapes[0].get("height"), shapes[0].get("width"))
    return ImageRecord(str(line["source-ref"]), file, size=size, marks=marks)


FORMAT = named_classes(
    name="sagemaker",
    find=annotation_files,
    records=_read,
    lacks="manifest of lines with a source-ref",
    unlisted="image that no manifest names; left out",
    title="SageMaker Ground Truth",
    places="output.manifest, or train.manifest and validation.manifest, with the images",
)
