"""Where a YOLO data set keeps its images and labels: data.yaml, darknet's obj.data, or folders alone."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.formats.yolo_label_files import LabelFiles, is_label, is_listing, labels_beside, text_files
from datamodules.images.files import SUFFIXES, list_images, walk
from datamodules.index.source import split_of
from datamodules.reading import kinds as sniff
from datamodules.reading.image_tree import ImageTree
from datamodules.reading.parsing import read_lines
from datamodules.reading.places import one_set, split_in
from datamodules.reading.text import as_utf8, read_text
from zoo.storage.opening import open_file
from zoo.storage.plain_yaml import parse_yaml

_SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
_TRAILING = 6  # parts of a path of another machine that are tried below the folder
_HEAD = 1 << 16  # bytes of a yaml by which it is recognised as YOLO's
_NAMES = re.compile(rb"^[\"']?names[\"']?\s*:", re.MULTILINE)
_IMAGES = re.compile(rb"^[\"']?(train|val|valid|test|nc|path)[\"']?\s*:", re.MULTILINE)
_AS_WRITTEN = ("names", "path", "train", "val", "valid", "test")
_MOST_FOLDERS = 20_000  # that are looked into outside the data set
_OF_THE_SYSTEM = (
    "/proc",
    "/sys",
    "/dev",
    "/etc",
    "/boot",
    "/run",
    "/usr/lib",
    "/usr/share",
    "/var/lib",
)  # and all below
_OF_MANY_SETS = ("/usr", "/usr/local", "/usr/src", "/var", "/opt", "/home", "/root", "/tmp")
_MAX_BYTES = 4 << 20  # of data.yaml; names of 20 000 classes take 0.6 MB
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "data.names")


def data_file(root: Path) -> Path | None:
    """data.yaml, the only yaml that has names, or darknet's *.data."""
    for file in [root / "data.yaml", root / "data.yml", *sorted(root.glob("*.y*ml"))]:
        if file.is_file() and _is_of_yolo(file):
            return file
    return next((f for f in sorted(root.glob("*.data")) if f.is_file() and "names" in load(f)), None)


def _is_of_yolo(file: Path) -> bool:
    """Whether a yaml gives names of classes. One that cannot be parsed counts if it seems to give them.

    Raises:
        ValueError: naming file and line, if it gives names and is no plain YAML.
    """
    try:
        return "names" in load(file)
    except ValueError:
        with open_file(file) as stream:
            head = as_utf8(stream.read(_HEAD))
        if _NAMES.search(head) and _IMAGES.search(head):
            raise
        return False  # a yaml of another program


def load(file: Path) -> dict[str, Any]:
    """Keys and values of data.yaml, or of obj.data with its file of names already read.

    Names and paths are the letters of the file (`no`, `0042`, `12:30`), and so are the class numbers before names.

    Raises:
        ValueError: naming file and line, if it is no plain YAML (`zoo.storage.plain_yaml`).
    """
    if file.suffix == ".data":
        return _darknet(file)
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError(
            f"{file} is larger than {_MAX_BYTES} bytes; names of classes take less; check which file it is"
        )
    content = parse_yaml(read_text(file), str(file), as_text=_AS_WRITTEN, most_bytes=_MAX_BYTES)
    if not isinstance(content, dict):
        return {}
    if isinstance(count := content.get("nc"), str) and count.strip().isdecimal():
        content["nc"] = int(count[:9])
    return content


def _darknet(file: Path) -> dict[str, Any]:
    try:
        lines = read_lines(file)
    except ValueError:
        return {}  # some other program's *.data
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.lstrip().startswith("#"))
    content: dict[str, Any] = {key.strip(): value.strip() for key, value in pairs}
    if "names" in content:
        found = next((p for p in _places(file.parent, {}, content["names"]) if os.path.isfile(p)), None)
        content["names"] = _names(found) if found else None
        count = str(content.pop("classes", ""))
        content["nc"] = int(count[:9]) if count.isdecimal() else None
    return content


def _names(file: Path) -> list[str]:
    lines = read_lines(file)
    return [line.strip() for line in lines if line.strip()]


@dataclass
class Found:
    """Where the images of a data set are.

    Attributes:
        images: per split, sorted.
        lost: per split what data.yaml names and does not exist.
        taken: what data.yaml names for a split -> the folder or list that was taken for it.
    """

    images: dict[str, list[Path]] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    taken: dict[tuple[str, str], Path] = field(default_factory=dict)


def find(root: Path, content: Mapping[str, Any]) -> Found:
    """The images of each split.

    A split is a folder, a txt file that lists images, or several of them. Folders are taken with all
    below. Without a name in data.yaml the usual folders are tried, then lists called as a split, then every
    folder of images with labels.
    """
    found = Found()
    for split, named in named_paths(content).items():
        images: dict[Path, None] = {}
        absent = []
        for name in named:
            own, place = _named_images(root, content, name)
            images |= dict.fromkeys(own)
            if own and place is not None:
                found.taken[split, name] = place
            else:
                absent.append(name)
        if not images:
            images = dict.fromkeys(_usual_images(root, split))
            if images:
                found.taken |= {(split, name): next(iter(images)).parent for name in absent}
                absent = []
        if images:
            found.images[split] = sorted(images)
        if absent:
            found.lost[split] = ", ".join(absent)
    if "train" not in found.images:
        lists = {s: own for s, own in _listed_splits(root, content).items() if s not in found.images}
        found.images |= lists if "train" in lists or found.images else {}
    if not found.images:
        found.images |= _labelled_folders(root)
    return Found({s: found.images[s] for s in _SPLIT_KEYS if s in found.images}, found.lost, found.taken)


def _usual_images(root: Path, split: str) -> list[Path]:
    keys = _SPLIT_KEYS[split]
    usual = [base for k in keys for base in (root / "images" / k, root / k / "images")]
    usual += [root / k for k in keys if labels_beside(root / k)]
    return next((images for u in usual if u.is_dir() and (images := images_below(u))), [])


def _listed_splits(root: Path, content: Mapping[str, Any]) -> dict[str, list[Path]]:
    """Per split the images that a txt of the folder lists: train.txt, val.txt, autosplit_train.txt."""
    found: dict[str, dict[Path, None]] = {}
    for file in text_files(root):
        split = split_of(file.stem)
        if split and is_listing(file):
            images = _listed_images(root, content, file)
            if 2 * sum(os.path.isfile(image) for image in images) >= len(images) > 0:
                found.setdefault(split, {}).update(dict.fromkeys(images))
    return {split: sorted(images) for split, images in found.items()}


def _labelled_folders(root: Path) -> dict[str, list[Path]]:
    """The images of folders with labels, by the split that their path names; those of no split are for training."""
    below = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if any(data_file(folder) for folder in below):
        return {}  # a data set with its own data.yaml
    labels = LabelFiles()
    labelled = [folder for folder in sniff.image_folders(root) if labels.any_in(folder)]
    chosen = one_set(root, labelled)
    base, folders = chosen or (root, [])
    found: dict[str, list[Path]] = {}
    for folder in folders:
        found.setdefault(split_in(folder, base) or "train", []).extend(list_images(folder))
    if list(found) == ["train"] or not found:
        whole = next((f for f in (root / "images", root / "Images") if f.is_dir()), None)
        # also images without labels, which the reader reports
        if whole and (images := images_below(whole)):
            return {"train": images}
    return {split: sorted(images) for split, images in found.items()}


def named_paths(content: Mapping[str, Any]) -> dict[str, list[str]]:
    """Per split what data.yaml names, as written."""
    paths = {}
    for split, keys in _SPLIT_KEYS.items():
        value = next((content[k] for k in keys if content.get(k)), None)
        paths[split] = [str(v) for v in (value if isinstance(value, list) else [value] if value else [])]
    return paths


def images_below(folder: Path) -> list[Path]:
    """Image files in a folder and all below, sorted; no hidden ones."""
    found: list[Path] = []
    for here, below, _ in walk(folder):
        below[:] = [d for d in below if not d.startswith(".")]
        found += list_images(Path(here))
    return sorted(found)


def _named_images(root: Path, content: Mapping[str, Any], named: str) -> tuple[list[Path], Path | None]:
    """The images that a path of data.yaml stands for, and the folder or list that was found for it."""
    places = _places(root, content, named)
    if named.lower().endswith(".txt"):
        listing = next((p for p in places if os.path.isfile(p)), None)
        return (_listed_images(root, content, listing) if listing else []), listing
    for place in places:
        if os.path.isdir(place) and (images := _images_of_split(root, named, place)):
            return images, place
    return [], None


def _images_of_split(root: Path, named: str, folder: Path) -> list[Path]:
    """The images in and below a folder that data.yaml names, here or elsewhere on the machine.

    Raises:
        ValueError: it holds the data set itself, or more folders than any data set has, as `../../..` does; or it is
            a folder of the system.
    """
    own, there, home = root.resolve(), folder.resolve(), Path.home().resolve()
    around = there in own.parents and not (there == own.parent and list_images(there))
    system = own not in (there, *there.parents) and any(
        str(place) in _OF_THE_SYSTEM for place in (there, *there.parents)
    )
    if around or system or str(there) in _OF_MANY_SETS or there == home or there in home.parents:
        raise ValueError(
            f"{root}: data.yaml names {named!r}, which is {there} and holds more than this data set; name the folder "
            "of the images"
        )
    if there == own or own in there.parents:
        return images_below(folder)
    images: list[Path] = []
    for number, (here, below, _) in enumerate(walk(folder)):
        if number == _MOST_FOLDERS:
            raise ValueError(
                f"{root}: data.yaml names {named!r}, which is {there} and holds more than {_MOST_FOLDERS} folders; "
                "name the folder of the images"
            )
        below[:] = [d for d in below if not d.startswith(".")]
        images += list_images(Path(here))
    return sorted(images)


def _listed_images(root: Path, content: Mapping[str, Any], listing: Path) -> list[Path]:
    lines = [line.strip() for line in read_lines(listing)]
    tree: ImageTree | None = None
    images = []
    for line in lines:
        if not line:
            continue
        places = [listing.parent / line, *_places(root, {"path": content.get("path")}, line)]
        image = next((p for p in places if p.suffix.lower() in SUFFIXES and os.path.isfile(p)), None)
        if image is None:
            tree = tree or ImageTree(root)
            image = tree.find(line)[0]
        # the reader reports an image that is listed and missing
        images.append(image or root / line)
    return [Path(os.path.normpath(p)) for p in images]


def _places(root: Path, content: Mapping[str, Any], named: str) -> list[Path]:
    """Where a path of data.yaml may lie: as written, else the longest end of `path`/it that exists below the folder.

    Roboflow writes ../train/images for the folder beside data.yaml, users of Colab absolute paths, and `path`
    is often that of another machine.
    """
    above = str(content.get("path") or "")
    parts, own = _parts(f"{above}/{named}"), _parts(named)
    ends = [root.joinpath(*parts[-n:]) for n in range(min(_TRAILING, len(parts)), 0, -1)]
    if len(own) > 1 and own[-1].lower() == "images":
        ends.pop()  # .../valid/images is not images/, which holds the other splits too
    return [root / above / named, root / named, *ends]


def _parts(path: str) -> list[str]:
    return [p for p in path.replace("\\", "/").split("/") if p not in ("", ".", "..")]


def loose_labels(root: Path) -> Path | None:
    """A txt with rows of numbers that belongs to an image of a usual folder; None if there is none.

    Other txt beside images are captions, licences or lists.
    """
    labels = LabelFiles()
    with sniff.one_walk():
        images = [image for own in find(root, {}).images.values() for image in own]
    empty = None
    for image in images:
        file = labels.find(image)
        if file is not None and (has_rows := is_label(file)) is not None:
            return file if has_rows else None
        empty = empty or file
    return empty
