"""Where a YOLO data set keeps its images and labels: data.yaml, darknet's obj.data, or folders alone."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.formats.parsing import read_lines
from datamodules.formats.text import as_utf8, read_text
from datamodules.images import SUFFIXES, ImageFolder, list_images, walk
from zoo.opening import open_file
from zoo.plain_yaml import parse_yaml

_SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
_LABEL_FOLDERS = ("labels", "Labels", "Annotations", "annotations")
_SHORTEST_ROW = 5  # class cx cy w h
_TRAILING = (5, 4, 3, 2, 1)  # parts of a path of another machine that are tried below the folder
_HEAD = 1 << 16  # bytes of a yaml that tell whose it is
_NAMES = re.compile(rb"^[\"']?names[\"']?\s*:", re.MULTILINE)
_IMAGES = re.compile(rb"^[\"']?(train|val|valid|test|nc|path)[\"']?\s*:", re.MULTILINE)
_AS_WRITTEN = ("names", "path", "train", "val", "valid", "test")
_MOST_FOLDERS = 20_000  # that are looked into outside the data set
_MAX_BYTES = 4 << 20  # of data.yaml; names of 20 000 classes take 0.6 MB
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "data.names")


def data_file(root: Path) -> Path | None:
    """data.yaml, the only yaml that has names, or darknet's *.data."""
    for file in [root / "data.yaml", root / "data.yml", *sorted(root.glob("*.y*ml"))]:
        if file.is_file() and _is_of_yolo(file):
            return file
    return next((f for f in sorted(root.glob("*.data")) if f.is_file() and "names" in load(f)), None)


def _is_of_yolo(file: Path) -> bool:
    """Whether a yaml gives names of classes. One that cannot be parsed is ours if it looks as if it did.

    Raises:
        ValueError: naming file and line, if it is ours and no plain YAML.
    """
    try:
        return "names" in load(file)
    except ValueError:
        with open_file(file) as stream:
            head = as_utf8(stream.read(_HEAD))
        if _NAMES.search(head) and _IMAGES.search(head):
            raise
        return False  # of conda, of a cluster, of a pipeline: no business of ours


def load(file: Path) -> dict[str, Any]:
    """Keys and values of data.yaml, or of obj.data with its file of names already read.

    Names and paths are the letters of the file (`no`, `0042`, `12:30`), and so are the class numbers before names.

    Raises:
        ValueError: naming file and line, if it is no plain YAML (`zoo.plain_yaml`).
    """
    if file.suffix == ".data":
        return _darknet(file)
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError(
            f"{file} is larger than {_MAX_BYTES} bytes; names of classes are shorter, look what it is"
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
        found = next((p for p in _places(file.parent, {}, content["names"]) if p.is_file()), None)
        content["names"] = _names(found) if found else None
        count = str(content.pop("classes", ""))
        content["nc"] = int(count) if count.isdigit() else None
    return content


def _names(file: Path) -> list[str]:
    lines = read_lines(file)
    return [line.strip() for line in lines if line.strip()]


def split_images(root: Path, content: Mapping[str, Any]) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Per split its images, sorted; per lost split what data.yaml names and is not there.

    A split is a folder, a txt file that lists images, or several of them. Folders are taken with all
    below. Without a name in data.yaml the usual folders are tried.
    """
    found: dict[str, list[Path]] = {}
    lost: dict[str, str] = {}
    for split, named in named_paths(content).items():
        keys = _SPLIT_KEYS[split]
        images: dict[Path, None] = {}
        absent = []
        for name in named:
            own = _named_images(root, content, name)
            images |= dict.fromkeys(own)
            absent += [] if own else [name]
        if not images:
            usual = [base for k in keys for base in (root / "images" / k, root / k / "images")]
            usual += [root / k for k in keys if _labels_beside(root / k)]
            folder = next((u for u in usual if u.is_dir() and images_below(u)), None)
            images = dict.fromkeys(images_below(folder)) if folder else {}
            absent = absent if not images else []
        if images:
            found[split] = sorted(images)
        if absent:
            lost[split] = ", ".join(absent)
    if not found:
        folder = next((f for f in (root / "images", root / "Images") if f.is_dir() and images_below(f)), None)
        folder = folder or (root if _labels_beside(root) else None)
        if folder:
            found["train"] = images_below(folder)
    return found, lost


def named_paths(content: Mapping[str, Any]) -> dict[str, list[str]]:
    """Per split what data.yaml names, as written."""
    paths = {}
    for split, keys in _SPLIT_KEYS.items():
        value = next((content[k] for k in keys if content.get(k)), None)
        paths[split] = [str(v) for v in (value if isinstance(value, list) else [value] if value else [])]
    return paths


def text_files(folder: Path) -> list[Path]:
    """Text files of a folder, whatever the case of their suffix; hidden ones are none."""
    if not folder.is_dir():
        return []
    found = (e for e in os.scandir(folder) if e.name.lower().endswith(".txt") and not e.name.startswith("."))
    return sorted(folder / e.name for e in found if e.is_file())


def images_below(folder: Path) -> list[Path]:
    """Image files in a folder and all below, sorted; hidden ones are none."""
    found: list[Path] = []
    for here, below, _ in walk(folder):
        below[:] = [d for d in below if not d.startswith(".")]
        found += list_images(Path(here))
    return sorted(found)


def _labels_beside(folder: Path) -> bool:
    """Whether a folder has a txt of the name of an image in it."""
    if not folder.is_dir():
        return False
    stems = {p.stem for p in list_images(folder)}
    return any(f.stem in stems for f in folder.glob("*.txt"))


def _named_images(root: Path, content: Mapping[str, Any], named: str) -> list[Path]:
    places = _places(root, content, named)
    if named.lower().endswith(".txt"):
        listing = next((p for p in places if p.is_file()), None)
        return _listed_images(root, content, listing) if listing else []
    return next((images for p in places if p.is_dir() and (images := _images_of_split(root, named, p))), [])


def _images_of_split(root: Path, named: str, folder: Path) -> list[Path]:
    """The images in and below a folder that data.yaml names, here or elsewhere on the machine.

    Raises:
        ValueError: it holds the data set itself, or more folders than any set: `../../..` is no place of images.
    """
    own, there, home = root.resolve(), folder.resolve(), Path.home().resolve()
    around = there in own.parents and not (there == own.parent and list_images(there))
    if around or there == home or there in home.parents:
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
    images = []
    for line in lines:
        if line:
            places = [listing.parent / line, *_places(root, content, line)]
            # an image that is listed and absent is told by the reader
            images.append(next((p for p in places if p.is_file()), root / line))
    return [Path(os.path.normpath(p)) for p in images if p.suffix.lower() in SUFFIXES]


def _places(root: Path, content: Mapping[str, Any], named: str) -> list[Path]:
    """Where a path of data.yaml may lie: as it says, else its end below the folder.

    Roboflow writes ../train/images for the folder beside data.yaml, users of Colab absolute paths.
    """
    parts = [p for p in named.replace("\\", "/").split("/") if p not in ("", ".", "..")]
    base = root / str(content.get("path") or "")
    ends = [root.joinpath(*parts[-n:]) for n in _TRAILING if len(parts) >= n]
    if len(parts) > 1 and parts[-1].lower() == "images":
        ends.pop()  # .../valid/images is not images/, which holds the other splits too
    return [base / named, root / named, *ends]


def loose_labels(root: Path) -> Path | None:
    """A txt with rows of numbers that belongs to an image of a usual folder; None if there is none.

    Other txt beside images are captions, licences or lists.
    """
    labels = LabelFiles()
    images = [image for own in split_images(root, {})[0].values() for image in own]
    empty = None
    for image in images:
        file = labels.find(image)
        if file is not None and (row := _first_row(file)):
            return file if all(map(_is_number, row)) and len(row) >= _SHORTEST_ROW else None
        empty = empty or file
    return empty


def _first_row(file: Path) -> list[str]:
    with open_file(file) as stream:
        head = as_utf8(stream.read(_HEAD)).decode("utf-8-sig", errors="replace")
    return next((line.replace(",", " ").split() for line in head.splitlines() if line.strip()), [])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class LabelFiles:
    """Finds the txt of an image; lists every folder once."""

    def __init__(self) -> None:
        self._folders: dict[Path, ImageFolder] = {}

    def folder(self, image: Path) -> Path:
        """Where the labels of the image's folder lie."""
        return self._of(image.parent).folder

    def find(self, image: Path) -> Path | None:
        """The txt of an image, None if there is none."""
        return self._of(image.parent).find(f"{image.stem}.txt")[0]

    def _of(self, folder: Path) -> ImageFolder:
        if folder not in self._folders:
            places = label_folders(folder)
            chosen = next((p for p in places if text_files(p)), places[0])
            self._folders[folder] = ImageFolder(chosen)
        return self._folders[folder]


def label_folders(images: Path) -> list[Path]:
    """Where labels of an image folder may lie: the last `images` in its path becomes `labels`; or beside."""
    parts = list(images.parts)
    position = next((i for i in range(len(parts) - 1, -1, -1) if parts[i].lower() == "images"), None)
    replaced = (
        [] if position is None
        else [Path(*parts[:position], word, *parts[position + 1 :]) for word in _LABEL_FOLDERS]
    )  # fmt: skip
    return [*replaced, images, images / "labels"]
