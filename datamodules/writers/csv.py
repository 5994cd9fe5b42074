"""Writes tables: <split>/_annotations.csv beside the images, as Roboflow does, and classes.csv with ids."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from datamodules.writers.base import BoxWriter, LabelledImage

_HEADER = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")


class CsvWriter(BoxWriter):
    """One row for each object; an image without objects has a row with an empty box."""

    flat = False

    def __init__(self, root: Path, classes: Mapping[int, str], splits: list[str]) -> None:
        super().__init__(root, classes)
        with (root / "classes.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows((name, i) for i, name in self._classes.items())
        self._streams = {}
        for split in splits:
            (root / split).mkdir(parents=True, exist_ok=True)
            file = root / split / "_annotations.csv"
            self._streams[split] = file.open("w", encoding="utf-8", newline="")
            csv.writer(self._streams[split]).writerow(_HEADER)

    def image_path(self, split: str, name: str) -> Path:
        """In the folder of the split."""
        return self._root / split / name

    def add(self, split: str, image: LabelledImage) -> None:
        """Writes the rows of one image, corners with all digits."""
        height, width = image.size
        rows = csv.writer(self._streams[split])
        objects = self.plain_objects(image, split)
        for labelled in objects:
            x, y, w, h = labelled.box
            corners = [repr(float(v)) for v in (x, y, x + w, y + h)]
            rows.writerow((image.name, width, height, self._classes[labelled.source_id], *corners))
        if not objects:
            rows.writerow((image.name, width, height, "", "", "", "", ""))

    def close(self) -> None:
        """Closes the files."""
        for stream in self._streams.values():
            stream.close()
