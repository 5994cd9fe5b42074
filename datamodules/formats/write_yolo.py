"""Writes YOLO: data.yaml, images/<split>/ and labels/<split>/ with one txt an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import yaml

from datamodules.formats.writing import Pictured, plain_objects

_FAR = 1.5  # readers take larger numbers for pixels


class YoloWriter:
    """Boxes and classes by position; no crowds, ids, areas or outlines."""

    flat = False

    def __init__(self, root: Path, classes: Mapping[int, str], splits: list[str]) -> None:
        self.losses: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._root = root
        self._position = {source_id: i for i, source_id in enumerate(classes)}
        if list(classes) != list(range(len(classes))):
            self.losses["class ids, which become positions 0, 1, 2, ..."] = len(classes)
        content: dict[str, object] = {split: f"images/{split}" for split in splits}
        content |= {"nc": len(classes), "names": list(classes.values())}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None)
        (root / "data.yaml").write_text(text, encoding="utf-8")

    def image_path(self, split: str, name: str) -> Path:
        """In images/<split>."""
        return self._root / "images" / split / name

    def add(self, split: str, picture: Pictured) -> None:
        """Rows `class cx cy w h` with all digits."""
        height, width = picture.size
        rows: dict[str, None] = {}
        for labelled in plain_objects(picture, split, self.losses, self.dropped):
            x, y, w, h = labelled.box
            values = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
            if max(map(abs, values)) > _FAR:
                self.losses["parts of boxes far outside of the image, cut off"] += 1
                x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
                values = [
                    (x0 + x1) / 2 / width,
                    (y0 + y1) / 2 / height,
                    (x1 - x0) / width,
                    (y1 - y0) / height,
                ]
            row = " ".join([str(self._position[labelled.source_id]), *map(repr, values)])
            if row in rows:
                self.losses["second copies of the same box of the same class, left out"] += 1
                self.dropped[split] += 1
            rows[row] = None
        path = (self._root / "labels" / split / picture.name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")

    def close(self) -> None:
        """Nothing is left to write."""
