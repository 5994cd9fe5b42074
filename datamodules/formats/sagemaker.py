"""SageMaker Ground Truth: a manifest with a json object a line, of object detection jobs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.index.source import Source
from datamodules.reading import kinds as sniff
from datamodules.reading.image_tree import ImageTree
from datamodules.reading.json_lines import four, objects, whole_size
from datamodules.reading.parsing import MALFORMED
from datamodules.reading.reader import Reader, loose
from datamodules.reading.records import ImageRecord, Mark, Remarks, assemble, split_of_image

_METADATA = "-metadata"
_SUFFIXES = (".manifest", ".jsonl", ".json")


def annotation_files(root: Path) -> list[Path]:
    """Every file whose first line has a `source-ref`."""
    found = []
    for suffix in _SUFFIXES:
        for file in sniff.files(root, suffix):
            if any('"source-ref"' in line and line.startswith("{") for line in sniff.first_lines(file, 1)):
                found.append(file)
    return found


def read(root: Path, *, verify_sizes: bool = True) -> Source:
    """Reads the manifests; class ids are those of the job. Boxes are left, top, width, height in pixels.

    An image whose job failed, or which has no annotations of boxes, is left out with a remark.

    Raises:
        ValueError: if there is no manifest, or none of its jobs is of boxes.
    """
    files = annotation_files(root)
    if not files:
        raise ValueError(f"{root} has no manifest of lines with a source-ref")
    tree, remarks = ImageTree(root), Remarks(root)
    records: list[ImageRecord] = []
    ids: dict[str, int] = {}
    kinds: set[str] = set()
    for file in files:
        for number, line in objects(file, remarks):
            where = f"line {number}"
            try:
                kinds |= _kinds(line)
                job = _job(line)
                if job:
                    records.append(_record(line, job, file, ids))
                else:
                    message = "image without annotations of boxes, or of which the job failed; left out"
                    remarks.add("warning", "unannotated", file, message, where)
            except MALFORMED:
                message = "line that cannot be understood; left out; export the manifest again"
                remarks.add("error", "malformed_labels", file, message, where)
    if not records and kinds and not any("object-detection" in kind for kind in kinds):
        raise ValueError(
            f"{root}: the manifest is of the job {', '.join(sorted(kinds))} and has no boxes; detection needs "
            "groundtruth/object-detection"
        )
    for record in records:
        record.split = split_of_image(record, root, tree)
    return assemble(
        "sagemaker", root, records, tree, ids=ids, notes=remarks.faults(), verify_sizes=verify_sizes,
        unlisted="image that no manifest names; left out",
    )  # fmt: skip


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


FORMAT = Reader(
    name="sagemaker",
    look=loose(annotation_files),
    read=read,
    title="SageMaker Ground Truth",
    places="output.manifest, or train.manifest and validation.manifest, with the images",
)
