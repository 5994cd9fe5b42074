"""Writes COCO json: annotations/instances_<split>.json and the images in <split>/. Loses nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from datamodules.index.plain_json import encode
from datamodules.writers.base import LabelledImage


class CocoWriter:
    """Streams: images into the file itself, annotations into one beside it that is appended at the end."""

    flat = False

    def __init__(self, root: Path, classes: Mapping[int, str], splits: list[str]) -> None:
        self.losses: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._root = root
        self._categories = [{"id": i, "name": name} for i, name in classes.items()]
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        self._images: dict[str, BinaryIO] = {}
        self._annotations: dict[str, BinaryIO] = {}
        for split in splits:
            self._images[split] = self._file(split).open("wb")
            self._images[split].write(b'{"images": [')
            self._annotations[split] = self._part(split).open("w+b")

    def image_path(self, split: str, name: str) -> Path:
        """In the folder of the split."""
        return self._root / split / name

    def add(self, split: str, image: LabelledImage) -> None:
        """Writes one image and its objects with their ids, areas, crowds and outlines."""
        height, width = image.size
        entry = {"id": image.image_id, "file_name": image.name, "width": width, "height": height}
        _append(self._images[split], entry, b'{"images": [')
        for labelled in image.objects:
            annotation: dict[str, Any] = {
                "id": labelled.annotation_id,
                "image_id": image.image_id,
                "category_id": labelled.source_id,
                "bbox": list(labelled.box),
                "area": labelled.area,
                "iscrowd": int(labelled.crowd),
            }
            if labelled.outline is not None:
                annotation["segmentation"] = labelled.outline.to_coco()
            _append(self._annotations[split], annotation, b"")

    def close(self) -> None:
        """Appends the annotations to the images of each file."""
        for split, stream in self._images.items():
            part = self._annotations[split]
            part.seek(0)
            stream.write(b'],\n"annotations": [')
            while block := part.read(1 << 20):
                stream.write(block)
            categories = encode(self._categories)
            stream.write(b'],\n"categories": ' + categories + b"}\n")
            stream.close()
            part.close()
            self._part(split).unlink()

    def _file(self, split: str) -> Path:
        return self._root / "annotations" / f"instances_{split}.json"

    def _part(self, split: str) -> Path:
        return self._root / "annotations" / f".{split}.part"


def _append(stream: BinaryIO, value: dict[str, Any], start: bytes) -> None:
    stream.write((b"\n" if stream.tell() == len(start) else b",\n") + encode(value))
