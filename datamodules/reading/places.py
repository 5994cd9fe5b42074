"""Where data sets keep annotations and images: names of annotation folders, of image folders and of splits.

Readers whose annotation files lie apart from the images share this: VOC's `annotations/` beside `images/`, COCO's
json in each split folder, whatever the letter case and the order of split and kind in the path.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path

from datamodules.images.files import ARRAYS, SUFFIXES, ImageFolder
from datamodules.index.source import split_of
from datamodules.reading import kinds as sniff

ANNOTATION_WORDS = frozenset({
    "annotations", "annotation", "annots", "annot", "anns", "ann", "anno", "annos", "xmls", "xml", "labels",
    "label", "bboxes", "bbox", "boxes", "jsons", "json",
})  # fmt: skip
IMAGE_WORDS = frozenset({
    "images", "image", "imgs", "img", "jpegimages", "pngimages", "data", "pictures", "photos", "frames", "jpegs",
    "jpgs", "jpg", "png", "rgb",
})  # fmt: skip
_FILLERS = frozenset({"zip", "set", "split", "voc", "coco", "pascal", "dataset"})
_OF_ANOTHER_SPLIT = 2  # in the order of likely folders
_SAMPLE = 50  # names that tell where the images of an annotation file are
_SPELLED = 40  # folders in which names are looked for whatever their spelling; in all others to the letter


def split_in(folder: Path, root: Path) -> str | None:
    """The split that a folder of the path is named after, the nearest folder first."""
    return next((s for part in reversed(folder.relative_to(root).parts) if (s := split_of(part))), None)


def set_folder(folder: Path, root: Path, plain: bool = False) -> Path:
    """The folder of the data set that a folder of annotation files belongs to.

    Args:
        folder: `root` or below.
        root: the folder that was given.
        plain: take only folders as those of a split whose names have no other word.
    """
    parts = list(folder.relative_to(root).parts)
    first = next((i for i, part in enumerate(parts) if part.lower() in ANNOTATION_WORDS), len(parts))
    parts = parts[:first]
    while parts and (parts[-1].lower() in IMAGE_WORDS or _of_split(parts[-1], plain)):
        parts.pop()
    return root.joinpath(*parts)


def _of_split(name: str, plain: bool) -> bool:
    if split_of(name) is None:
        return False
    words = "".join(c if c.isalpha() else " " for c in name.lower()).split()
    known = ANNOTATION_WORDS | IMAGE_WORDS | _FILLERS
    return not plain or all(word in known or split_of(word) for word in words)


def one_set(root: Path, folders: Iterable[Path]) -> tuple[Path, list[Path]] | None:
    """The data set of these annotation folders and which of them are its own: `root`, or the only one below.

    None if there is none, or if there are several below `root` of which none is the likeliest.
    """
    every = list(folders)
    groups = _grouped(root, every, plain=False)
    named = {split_in(f, root) for own in groups.values() for f in own} - {None}
    if named and "train" not in named:  # test_samples/ may be a name and no split
        groups = _grouped(root, every, plain=True)
    if root in groups:
        return root, groups[root]
    return next(iter(groups.items())) if len(groups) == 1 else None


def is_at(root: Path, files: Iterable[Path]) -> bool:
    """Whether the data set of one of these annotation files is `root` itself and not a folder in it."""
    return any(set_folder(file.parent, root) == root for file in files)


def _grouped(root: Path, folders: Iterable[Path], plain: bool) -> dict[Path, list[Path]]:
    groups: dict[Path, list[Path]] = {}
    for folder in folders:
        groups.setdefault(set_folder(folder, root, plain), []).append(folder)
    return groups


def beside(root: Path) -> str:
    """A message about a folder that is one part of a data set, annotations or images, with the other beside it.

    Empty if it is no such part, or nothing lies beside it. Folders further up are not looked at.
    """
    here = root.resolve()
    word = here.name.lower()
    kinds = {"annotations": ANNOTATION_WORDS, "images": IMAGE_WORDS}
    own = next((kind for kind, words in kinds.items() if word in words), None)
    if own is None:
        return ""
    other = "images" if own == "annotations" else "annotations"
    for folder in sorted(p for p in here.parent.iterdir() if p.is_dir() and p != here):
        fits = folder.name.lower() in kinds[other] or (other == "images" and split_of(folder.name))
        if fits and next(folder.iterdir(), None) is not None:
            return (
                f"{root} holds the {own} of a data set only; its {other} are in {root.parent / folder.name}: give "
                f"the folder of both, {shlex.quote(str(root.parent if root.parent != root else here.parent))}"
            )
    return ""


class ImagePlaces:
    """The folders below `root` that hold images, and which of them holds those of an annotation file."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[Path, ImageFolder] = {}
        self._stems: dict[Path, set[str]] = {}

    @cached_property
    def _candidates(self) -> list[Path]:
        """Folders with images, and those above them, for a file name may begin with a folder."""
        found: dict[Path, None] = {}
        arrays = (file.parent for file in sniff.files(self._root, ARRAYS))
        for folder in dict.fromkeys([*sniff.image_folders(self._root), *arrays]):
            found[folder] = None
            for above in folder.parents:
                if above == self._root or self._root not in above.parents:
                    break
                found[above] = None
        return [self._root, *(f for f in found if f != self._root)]

    def best(self, file: Path, split: str | None, names: Sequence[str]) -> tuple[Path, int, int]:
        """(folder, names of a sample that it has, size of the sample); the likeliest folder if none has any.

        Args:
            file: the annotation file, or one of the folder.
            split: its split.
            names: of the images; without a suffix any image of that stem fits.
        """
        sample = list(names[:: max(1, len(names) // _SAMPLE)])
        if not sample:
            return self._root, 0, 0
        ordered = sorted(self._candidates, key=lambda folder: self._distance(folder, file, split))
        # images of the same name in the folder of another split are other images
        own = [folder for folder in ordered if self._distance(folder, file, split)[0] < _OF_ANOTHER_SPLIT]
        for folders in (own, ordered):
            best, count = self._most(folders, sample)
            if count:
                return best, count, len(sample)
        return ordered[0], 0, len(sample)

    def _most(self, folders: Sequence[Path], sample: Sequence[str]) -> tuple[Path, int]:
        """The first of the folders that hold most of the names, and how many."""
        counts = {folder: self._exact(folder, sample) for folder in folders}
        best = max(folders, key=counts.__getitem__)
        if counts[best] == len(sample):
            return best, counts[best]
        near = {folder: self._spelled(folder, sample) for folder in folders[:_SPELLED]}
        nearest = max(near, key=near.__getitem__)
        return (nearest, near[nearest]) if near[nearest] > counts[best] else (best, counts[best])

    def scattered(self, stems: Sequence[str], first: Path) -> dict[Path, list[str]]:
        """The stems by the folder that has an image of each; `first` where several or none has one."""
        found: dict[Path, list[str]] = {}
        folders = [first, *(folder for folder in self._candidates if folder != first)]
        for stem in stems:
            place = next((folder for folder in folders if stem in self._stems_of(folder)), first)
            found.setdefault(place, []).append(stem)
        return found

    def _distance(self, folder: Path, file: Path, split: str | None) -> tuple[int, bool, int, str]:
        """How unlikely a folder is: of another split, of another name, far from the annotation file."""
        own = split_in(folder, self._root)
        other = 0 if own == split else 1 if own is None or split is None else _OF_ANOTHER_SPLIT
        stem = file.stem.removeprefix("instances_").lower()
        way = os.path.relpath(folder, file.parent)
        return other, folder.name.lower() != stem, len(Path(way).parts), way

    def _exact(self, folder: Path, sample: Collection[str]) -> int:
        return sum(self._holds(folder, name) for name in sample)

    def _holds(self, folder: Path, name: str) -> bool:
        if os.path.splitext(name)[1].lower() in (*SUFFIXES, ARRAYS):
            return bool(name) and "\0" not in name and os.path.isfile(f"{folder}/{name.lstrip('/')}")
        return name in self._stems_of(folder)

    def _stems_of(self, folder: Path) -> set[str]:
        if folder not in self._stems:
            with os.scandir(folder) as entries:
                parts = [os.path.splitext(entry.name) for entry in entries if not entry.name.startswith(".")]
            self._stems[folder] = {stem for stem, suffix in parts if suffix.lower() in SUFFIXES}
        return self._stems[folder]

    def _spelled(self, folder: Path, sample: Collection[str]) -> int:
        if folder not in self._folders:
            self._folders[folder] = ImageFolder(folder)
        return sum(self._folders[folder].find(name)[0] is not None for name in sample)
