"""Where Pascal VOC sets keep xml files, images and lists of splits: as published, and as people lay them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from datamodules.index import Fault, shown_path
from datamodules.index.source import split_of
from datamodules.reading import kinds as sniff
from datamodules.reading.parsing import read_lines
from datamodules.reading.places import ANNOTATION_WORDS, ImagePlaces, one_set, set_folder, split_in

_LOOKED_AT = 20  # xml files by which the format is recognised
_LIST_FOLDERS = ("imagesets/main", "imagesets", "splits", "")


@dataclass(frozen=True)
class XmlFolder:
    """A folder of VOC's xml files.

    Attributes:
        folder: where they lie.
        files: the xml files, by name.
        images: the folder of their images.
        split: the one its path names, None if it names none.
        apart: whether it is a folder for annotations, not one of images with the xml beside them.
    """

    folder: Path
    files: tuple[Path, ...]
    images: Path
    split: str | None
    apart: bool


@dataclass(frozen=True)
class Layout:
    """The xml folders of one data set, its own folder first, and those that are not read with the reason."""

    base: Path
    folders: tuple[XmlFolder, ...]
    left_out: tuple[Fault, ...] = ()


def find(root: Path) -> Layout | None:
    """The VOC set in a folder or, where there is only one, in a folder of it; None if there is none."""
    with sniff.one_walk():
        groups = {
            folder: tuple(own) for folder, own in groupby(sniff.files(root, ".xml"), lambda f: f.parent)
        }
        chosen = one_set(root, [folder for folder, own in groups.items() if _of_voc(own)])
        if chosen is None:
            return None
        base, folders = chosen
        places = ImagePlaces(root)
        found = [
            own for folder in folders for own in _xml_folders(root, base, folder, groups[folder], places)
        ]
    return _without_repeats(root, base, found) if found else None


def _of_voc(files: Sequence[Path]) -> bool:
    """Whether one of the first xml files is VOC's: CVAT and LabelMe write xml too."""
    return any(sniff.xml_kind(file) == "voc" for file in islice(files, _LOOKED_AT))


def _xml_folders(
    root: Path, base: Path, folder: Path, files: tuple[Path, ...], places: ImagePlaces
) -> list[XmlFolder]:
    """The folder and that of its images, in parts if the images are in several folders; empty if none fits."""
    split = split_in(folder, base)
    stems = [file.stem for file in files]
    images, held, of = places.best(folder / "x.xml", split, stems)
    apart = any(part.lower() in ANNOTATION_WORDS for part in folder.relative_to(base).parts)
    if not held:
        if not apart:
            return []
        images = next(
            (p for p in sorted(base.iterdir()) if p.is_dir() and p.name.lower() == "jpegimages"), images
        )
        images = base / "JPEGImages" if images == folder else images
    elif held < of and split is None:
        parts = places.scattered(stems, images)
        if len(parts) > 1:
            by_stem = {file.stem: file for file in files}
            return [
                XmlFolder(folder, tuple(by_stem[stem] for stem in own), place, split_in(place, base), apart)
                for place, own in parts.items()
            ]
    return [XmlFolder(folder, files, images, split, apart and images != folder)]


def bases(root: Path) -> list[Path]:
    """The folders of all VOC sets in and below a folder."""
    with sniff.one_walk():
        groups = groupby(sniff.files(root, ".xml"), lambda file: file.parent)
        return list(dict.fromkeys(set_folder(folder, root) for folder, own in groups if _of_voc(tuple(own))))


def _without_repeats(root: Path, base: Path, found: list[XmlFolder]) -> Layout:
    """The folders of splits; one without a split is read only if no other is the training split."""
    split = [own for own in found if own.split]
    rest = [own for own in found if not own.split]
    if not split or not rest or not any(own.split == "train" for own in split):
        return Layout(base, tuple(found))
    if {own.folder for own in split} == {
        own.folder for own in rest
    }:  # images in several folders, not repeats
        return Layout(base, tuple(found))
    known = {file.stem for own in split for file in own.files}
    notes = []
    for own in rest:
        new = sum(file.stem not in known for file in own.files)
        where = " and ".join(shown_path(s.folder, root) for s in split)
        if new:
            message = (
                f"{new} of {len(own.files)} xml files here are not in {where}, and their path names no split; "
                "they are not read; move them to a folder train/, val/ or test/ to use them"
            )
            notes.append(Fault("warning", "not_read", shown_path(own.folder, root), None, message))
        else:
            message = f"the {len(own.files)} xml files here are in {where} too; read once, from there"
            notes.append(Fault("note", "repeated_annotations", shown_path(own.folder, root), None, message))
    return Layout(base, tuple(split), tuple(notes))


def lists(base: Path, stems: Sequence[str]) -> tuple[dict[str, list[str]], Path | None]:
    """Per split the stems that its list names, of VOC's ImageSets/Main or txt files of the set's own folder.

    Returns them and the folder of the lists; no split and None where there is no list.
    """
    known = frozenset(stems)
    for place in _LIST_FOLDERS:
        folder = _folder(base, place)
        if folder is None:
            continue
        named: dict[str, list[str]] = {}
        for file in sorted(folder.glob("*.txt")):
            key = file.stem.lower()
            if key in ("train", "trainval") or key == split_of(key) or (key and key in _OTHER_WORDS):
                own = _stems(file, known)
                # a txt in the set's own folder may be anything; those in ImageSets are lists
                if place.startswith("imagesets") or any(stem in known for stem in own):
                    named[_OTHER_WORDS.get(key, key)] = own
        if named:
            return _splits(named), folder
    return {}, None


_OTHER_WORDS = {"valid": "val", "validation": "val", "training": "train", "testing": "test"}


def _folder(base: Path, place: str) -> Path | None:
    """A folder below `base`, found in any letter case."""
    here: Path | None = base
    for part in place.split("/") if place else ():
        below = sorted(here.iterdir()) if here else []
        here = next((p for p in below if p.is_dir() and p.name.lower() == part), None)
    return here


def _stems(file: Path, known: frozenset[str]) -> list[str]:
    lines = (line.strip() for line in read_lines(file))
    return list(dict.fromkeys(_stem(line, known) for line in lines if line and line[0] != "#"))


def _stem(line: str, known: frozenset[str]) -> str:
    """The stem that a line of a list names; lists of a class have a -1, 0 or 1 after it, others a path."""
    if line in known:
        return line
    first = line.split()[0]
    name = first.replace("\\", "/").rsplit("/", 1)[-1]
    return next((s for s in (first, name, name.rpartition(".")[0]) if s in known), first)


def _splits(named: dict[str, list[str]]) -> dict[str, list[str]]:
    if "train" not in named and "trainval" in named:
        held_out = set(named.get("val", []))
        named["train"] = [stem for stem in named["trainval"] if stem not in held_out]
    return {split: named[split] for split in ("train", "val", "test") if split in named}
