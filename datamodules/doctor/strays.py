"""Files that no annotation names: in the folders of the images, and whole folders of images that are not read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from datamodules.images.files import SUFFIXES, header_size
from datamodules.index import AnnotationIndex, Fault, Severity, relative
from datamodules.index.source import Source

_MOST = 50  # faults of one folder and kind that are listed one by one
# files beside the images of a format that are expected there
_BESIDE = {
    "coco": (".json",),
    "roboflow_coco": (".json",),
    "voc": (".xml",),
    "yolo": (".txt", ".yaml", ".yml"),
}
_IMAGES_OF_A_README = 20  # an example or two beside the set: less than a twentieth of its images
_WITH_ID_MAPS = frozenset({"shards", "coco_panoptic"})  # their masks are image files too
_MASKS = frozenset({
    "annotations", "labels", "masks", "mask", "segmentationclass", "segmentationobject", "segmentation", "depth",
    "__macosx",
})  # fmt: skip
_ANY = (".json", ".xml", ".txt", ".csv", ".yaml", ".yml")


def stray_faults(source: Source, faults: Iterable[Fault]) -> Iterator[Fault]:
    """Faults for images that no split lists and for other files, in the folders of the images."""
    if isinstance(source.root, str):
        return  # an address of shards has no folder to search
    root, splits = source.root, source.splits
    listed = {str(f) for index in splits.values() for f in index.files.tolist()}
    listed |= {f.file for f in faults}
    # a broken annotation file cannot name its image, but has the same stem
    broken = (PurePosixPath(f.file) for f in faults if f.severity == "error")
    stems = {path.stem for path in broken if path.suffix in _ANY}
    beside = _BESIDE.get(source.format, _ANY)
    for folder in _image_folders(splits):
        unlisted: list[str] = []
        foreign: list[str] = []
        for name in sorted(_files(root, folder)):
            path = PurePosixPath(name)
            if name in listed or path.suffix.lower() in beside:
                continue
            if not _is_image(root / name):
                foreign.append(name)
            elif path.stem not in stems:
                unlisted.append(name)
        yield from _listed(
            folder, unlisted, "warning", "unlisted_image",
            "no annotation file lists it, so it is not used; annotate it (without objects too) or remove it",
        )  # fmt: skip
        yield from _listed(
            folder, foreign, "note", "stray_file", "no image and no annotation that is read; nothing to do"
        )


def unread_folders(source: Source, faults: Iterable[Fault]) -> Iterator[Fault]:
    """A warning for each folder of images of which none is in any split, with how many there are."""
    if isinstance(source.root, str) or source.format in _WITH_ID_MAPS:
        return
    if any(f.kind in ("unlisted_image", "unlisted_images") and f.file == "." for f in faults):
        return  # the reader has reported all unlisted images
    root = source.root
    known = _image_folders(source.splits)
    used = {str(up) for folder in known for up in (PurePosixPath(folder), *PurePosixPath(folder).parents)} | {
        "."
    }
    counts: Counter[str] = Counter()
    beside: dict[str, Counter[str]] = {}
    for here, folders, names in os.walk(root):
        folders[:] = [f for f in sorted(folders) if not f.startswith(".") and not _of_masks(f)]
        own = relative(here, root)
        if own in known:
            folders[:] = []  # `stray_faults` searches these
            continue
        found = sum(PurePosixPath(n).suffix.lower() in SUFFIXES and not n.startswith(".") for n in names)
        if found:
            place = own
            while str(PurePosixPath(place).parent) not in used:
                place = str(PurePosixPath(place).parent)
            counts[place] += found
            suffixes = (PurePosixPath(n).suffix.lower() for n in names)
            beside.setdefault(place, Counter()).update(x for x in suffixes if x in _ANY)
    read = sum(len(index) for index in source.splits.values())
    for place, number in counts.items():
        if place == "." and number * _IMAGES_OF_A_README < read:
            continue
        files = ", ".join(f"{n} x {suffix}" for suffix, n in sorted(beside[place].items()))
        also = f", and {files} beside them are not read" if files else ""
        yield Fault(
            "warning", "unread_folder", place, None,
            f"{number} images here are in no split and not used{also}; "
            "nothing to do if they are no part of the set, else annotate them as the rest is",
        )  # fmt: skip


def _of_masks(folder: str) -> bool:
    """Whether images in a folder of this name are annotations themselves."""
    return folder.lower() in _MASKS or folder.lower().startswith(("panoptic_", "stuff_"))


def _image_folders(splits: Mapping[str, AnnotationIndex]) -> list[str]:
    """The top folders of the images, none inside another."""
    parents = {str(PurePosixPath(f).parent) for index in splits.values() for f in index.files.tolist()}
    parents = {p for p in parents if not p.startswith("..")}  # what lies outside is not the data set's
    return [p for p in sorted(parents) if not any(str(up) in parents for up in PurePosixPath(p).parents)]


def _files(root: Path, folder: str) -> Iterator[str]:
    """Below `folder`, relative to `root`; links to folders are not followed, so that they cannot form a loop."""
    for above, folders, names in os.walk(root / folder):
        folders[:] = [
            f for f in folders if not f.startswith(".") and f.lower() not in ("annotations", "labels")
        ]
        yield from (relative(Path(above, name), root) for name in names)


def _is_image(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    if path.suffix:
        return path.suffix.lower() in SUFFIXES
    try:  # an image may have lost its suffix
        header_size(path)
    except ValueError:
        return False
    return True


def _listed(folder: str, names: list[str], severity: Severity, kind: str, message: str) -> Iterator[Fault]:
    for name in names[:_MOST]:
        yield Fault(severity, kind, name, None, message)
    if len(names) > _MOST:
        endings = Counter(PurePosixPath(name).suffix for name in names[_MOST:])
        counted = ", ".join(f"{n} x {s or 'no suffix'}" for s, n in sorted(endings.items()))
        yield Fault(severity, kind, folder, None, f"and {len(names) - _MOST} more files there ({counted})")
