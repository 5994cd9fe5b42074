"""Writes Pascal VOC: Annotations/*.xml, JPEGImages/, ImageSets/Main/<split>.txt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from datamodules.writers.base import BoxWriter, Labelled, LabelledImage


class VocWriter(BoxWriter):
    """Corners count pixels from 1 and are inside the box, as in the official files."""

    flat = True

    def __init__(self, root: Path, classes: Mapping[int, str], splits: list[str]) -> None:
        super().__init__(root, classes)
        self._unseen = dict(classes)
        self._stems: dict[str, list[str]] = {split: [] for split in splits}
        for folder in ("Annotations", "ImageSets/Main"):
            (root / folder).mkdir(parents=True)

    def image_path(self, split: str, name: str) -> Path:
        """In JPEGImages, whatever its split."""
        return self._root / "JPEGImages" / name

    def add(self, split: str, image: LabelledImage) -> None:
        """Writes one xml; fractions of a pixel are written as such."""
        height, width = image.size
        tree = ElementTree.Element("annotation")
        ElementTree.SubElement(tree, "filename").text = image.name
        size = ElementTree.SubElement(tree, "size")
        for word, value in (("width", width), ("height", height), ("depth", 3)):
            ElementTree.SubElement(size, word).text = str(value)
        for labelled in self.plain_objects(image, split):
            self._add_object(tree, split, labelled, height, width)
        ElementTree.indent(tree)
        stem = Path(image.name).stem
        file = self._root / "Annotations" / f"{stem}.xml"
        ElementTree.ElementTree(tree).write(file, encoding="utf-8", xml_declaration=True)
        self._stems[split].append(stem)

    def _add_object(
        self, tree: ElementTree.Element, split: str, labelled: Labelled, height: int, width: int
    ) -> None:
        x, y, w, h = labelled.box
        x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
        if (x0, y0, x1, y1) != (x, y, x + w, y + h):
            self.losses["parts of boxes outside of the image, cut off"] += 1
        if x1 <= x0 + 1 or y1 <= y0 + 1:
            self.losses["boxes of at most one pixel in width or height, left out"] += 1
            self.dropped[split] += 1
            return
        self._unseen.pop(labelled.source_id, None)
        element = ElementTree.SubElement(tree, "object")
        ElementTree.SubElement(element, "name").text = self._classes[labelled.source_id]
        box = ElementTree.SubElement(element, "bndbox")
        for word, value in (("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1), ("ymax", y1)):
            ElementTree.SubElement(box, word).text = str(int(value)) if value == int(value) else repr(value)

    def close(self) -> None:
        """Writes the lists of the splits."""
        for split, stems in self._stems.items():
            text = "".join(f"{stem}\n" for stem in stems)
            (self._root / "ImageSets" / "Main" / f"{split}.txt").write_text(text, encoding="utf-8")
        by_alphabet = {name: i for i, name in enumerate(sorted(set(self._classes.values())))}
        moved = sum(by_alphabet[name] != i for i, name in self._classes.items())
        self.losses["class ids, which become positions by alphabet"] = moved
        self.losses["classes without an object"] = len(self._unseen)
