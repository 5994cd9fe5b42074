"""Roboflow's COCO export: train/, valid/ and test/ with images and _annotations.coco.json in each."""

from __future__ import annotations

from pathlib import Path

from datamodules.formats import coco
from datamodules.images.files import ImageFolder
from datamodules.index import Fault, shown_path
from datamodules.index.growing_columns import Scratch
from datamodules.index.source import Source, split_of
from datamodules.reading.reader import Reader, laid_out

FILE = "_annotations.coco.json"
_PLACEHOLDER = 0


def annotation_files(root: Path) -> dict[str, Path]:
    """Per split: annotation file; a folder that is itself one split counts as train."""
    found = {split_of(f.parent.name): f for f in sorted(root.glob(f"*/{FILE}"))}
    files = {split: found[split] for split in ("train", "val", "test") if split in found}
    if not files and (root / FILE).is_file():
        files = {"train": root / FILE}
    return {str(split): file for split, file in files.items()}


def read(root: Path, *, verify_sizes: bool = True, scratch: Scratch | None = None) -> Source:
    """Reads the export; category 0 without annotations is Roboflow's name for the project, no class."""
    files = annotation_files(root)
    if not files:
        raise ValueError(f"{root} has no {FILE} in train/, valid/ or test/")
    loaded = {split: coco.load(file, scratch) for split, file in files.items()}
    without = _placeholder(loaded)
    source = coco.assemble(
        "roboflow_coco",
        root,
        {split: [file] for split, file in files.items()},
        {file: ImageFolder(file.parent) for file in files.values()},
        {files[split]: content for split, content in loaded.items()},
        verify_sizes=verify_sizes,
        without=without,
    )
    if not without:
        return source
    of = {
        split: c.name for split, content in loaded.items() for c in content.categories if c.id == _PLACEHOLDER
    }
    first, name = next(iter(of.items()))
    message = (
        f"category 0 {name!r} has no annotation: it is Roboflow's name of the project and none of the "
        "classes; nothing to do unless it was meant as one"
    )
    note = Fault("note", "placeholder_category", shown_path(files[first], root), _PLACEHOLDER, message)
    return Source(source.format, root, source.classes, source.splits, (note, *source.notes))


def _placeholder(loaded: dict[str, coco.CocoFile]) -> frozenset[int]:
    listed = any(c.id == _PLACEHOLDER for content in loaded.values() for c in content.categories)
    used = any(content.annotations.uses_category(_PLACEHOLDER) for content in loaded.values())
    others = any(c.id != _PLACEHOLDER for content in loaded.values() for c in content.categories)
    return frozenset({_PLACEHOLDER}) if listed and others and not used else frozenset()


FORMAT = Reader(
    name="roboflow_coco",
    look=laid_out(lambda root: annotation_files(root).values()),
    read=read,
    title="Roboflow COCO export",
    places="train/_annotations.coco.json, train/*.jpg, valid/..., test/...",
    streamed=True,
)
