"""What kind an annotation file is, by its content: names of files can mislead, keys and tags do not."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import Literal, TypeVar

from datamodules.images.files import ARRAYS, SUFFIXES, walk
from datamodules.reading.text import as_utf8, encoding_of
from zoo.storage.opening import open_file

_T = TypeVar("_T")
_HEAD = 1 << 16
_SUFFIXES = (
    ".json", ".xml", ".csv", ".tsv", ".txt", ".jsonl", ".manifest", ".odgt", ".tfrecord", ".tfrecords", ".record",
    ".parquet", ".arrow", ".mat", ".pkl", ".pickle", ".npy", ".npz", ".h5", ".hdf5", ".lmdb",
)  # fmt: skip
_TEXTS = 40  # of a folder that are kept: YOLO has one an image
_LOOKED_AT = 20  # files of a folder that are taken as a sample of all
_DEPTH = 4  # folders below the data set's own that are looked into
_FIRST_TAG = re.compile(rb"<([A-Za-z_][\w.-]*)")
_NO_ELEMENT = re.compile(rb"<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^>]*>", re.DOTALL)
_KEYS_OF_A_LIST = (
    ("createml", (b'"coordinates"', b'"annotations"', b'"image"')),
    ("label_studio", (b'"annotations"', b'"result"')),
    ("label_studio", (b'"annotations"', b'"data"')),
    ("label_studio", (b'"annotator"', b'"annotation_id"')),
    ("label_studio", (b'"completions"', b'"data"')),
    ("bdd100k", (b'"labels"', b'"category"', b'"box2d"')),
)
_KEYS_OF_AN_OBJECT = (
    ("vott_json", (b'"assets"', b'"asset"')),
    ("supervisely", (b'"objects"', b'"size"', b'"classTitle"')),
    ("supervisely", (b'"objects"', b'"size"', b'"tags"')),  # nothing is drawn
    ("bdd100k", (b'"frames"', b'"category"', b'"box2d"')),
    ("via", (b'"_via_img_metadata"',)),
    ("via", (b'"filename"', b'"regions"', b'"shape_attributes"')),
    ("via", (b'"filename"', b'"regions"', b'"file_attributes"')),  # nothing is drawn yet
    ("via", (b'"project"', b'"vid_list"', b'"metadata"', b'"attribute"')),  # its third version
    ("via", (b'"project"', b'"fid_list"', b'"metadata"', b'"attribute"')),
)


class _Walk:
    """One walk over a folder: annotation files by suffix, folders, and those with images."""

    def __init__(self, root: Path) -> None:
        self.files: dict[str, list[Path]] = {suffix: [] for suffix in _SUFFIXES}
        self.folders: list[Path] = []
        self.with_images: list[Path] = []
        for folder, below, names in walk(root):
            here = Path(folder)
            self.folders.append(here)
            deep = len(here.relative_to(root).parts) >= _DEPTH
            below[:] = [] if deep else sorted(d for d in below if not d.startswith("."))
            has_image, texts = False, 0
            for name in sorted(names):
                suffix = os.path.splitext(name)[1].lower()
                if name.startswith("."):
                    continue
                has_image = has_image or suffix in SUFFIXES
                texts += suffix == ".txt"
                listed = suffix in _SUFFIXES and (suffix != ".txt" or texts <= _TEXTS)
                if listed and os.path.isfile(f"{folder}/{name}"):  # not a pipe, for reading one never ends
                    self.files[suffix].append(here / name)
            self.with_images += [here] if has_image else []


_WALKS: ContextVar[dict[Path, _Walk] | None] = ContextVar("walks", default=None)


@contextmanager
def one_walk() -> Iterator[None]:
    """Within this context every folder is walked once, however many formats ask for its files."""
    if _WALKS.get() is not None:
        yield  # inside another such context
        return
    token = _WALKS.set({})
    try:
        yield
    finally:
        _WALKS.reset(token)


def _walked(root: Path) -> _Walk:
    walks = _WALKS.get()
    if walks is None:
        return _Walk(root)
    if root not in walks:
        walks[root] = _Walk(root)
    return walks[root]


def files(root: Path, suffix: str) -> list[Path]:
    """Files with the suffix in `root` and a few levels below, by folder and name, without hidden ones.

    Only the first few txt files of each folder are listed.
    """
    return _walked(root).files[suffix]


def texts_of_kind(root: Path, fits: Callable[[str], bool]) -> list[Path]:
    """Every txt of the folders where most of the first lines of most of the first few txt that are not empty fit."""
    found: list[Path] = []
    for folder, group in groupby(files(root, ".txt"), key=lambda file: file.parent):
        heads = (head for file in group if (head := first_lines(file, 3)))
        if mostly(lambda lines: mostly(fits, lines), list(islice(heads, 5))):
            found += (file for file in sorted(folder.glob("*.txt")) if not file.name.startswith("."))
    return found


def mostly(holds: Callable[[_T], bool], values: Sequence[_T]) -> bool:
    """Whether something holds for more than half of some values: a damaged one does not hide what the others are."""
    return 2 * sum(map(holds, values)) > len(values)


def folders(root: Path, names: Collection[str]) -> list[Path]:
    """Folders in `root` and a few levels below whose lower-case names are among `names`."""
    return [f for f in _walked(root).folders if f.name.lower() in names]


def image_folders(root: Path) -> list[Path]:
    """Folders in `root` and a few levels below that have image files in them."""
    walked = _walked(root)
    return walked.with_images or list(dict.fromkeys(file.parent for file in walked.files[ARRAYS]))


def of_kind(root: Path, suffix: Literal[".json", ".xml"], kind: str) -> list[Path]:
    """The files of a kind. A folder counts as having none if none of its first files is of that kind."""
    kind_of = json_kind if suffix == ".json" else xml_kind
    found = []
    for _, group in groupby(files(root, suffix), key=lambda file: file.parent):
        own = list(group)
        if any(kind_of(file) == kind for file in own[:_LOOKED_AT]):
            found += [file for file in own if kind_of(file) == kind]
    return found


def json_kind(file: Path) -> str:
    """`labelme`, `vott_json`, `via`, ..., or an empty word for any other json."""
    return _json_kind(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=4096)
def _json_kind(file: Path, _changed: int) -> str:
    text = ends(file)
    if text.startswith(b"["):
        return next((kind for kind, keys in _KEYS_OF_A_LIST if all(k in text for k in keys)), "")
    if not text.startswith(b"{"):
        return ""
    if b'"shapes"' in text and (b'"imagePath"' in text or b'"imageHeight"' in text):
        return "labelme"
    return next((kind for kind, keys in _KEYS_OF_AN_OBJECT if all(k in text for k in keys)), "")


def xml_kind(file: Path) -> str:
    """`cvat`, `voc`, `labelme`, or an empty word for any other or broken xml."""
    text = _NO_ELEMENT.sub(b"", ends(file))
    tag = _FIRST_TAG.search(text)
    if tag is None:
        return ""
    if tag[1] == b"annotations":
        return "cvat"
    if tag[1] != b"annotation":
        return ""
    # Roboflow's VOC has polygons beside the boxes, LabelMe has no bndbox
    outlined = b"<imagesize" in text or b"<polygon" in text or b"<segm>" in text
    return "labelme" if outlined and b"<bndbox" not in text and b"<size>" not in text else "voc"


def table_head(file: Path) -> tuple[list[str], list[str], str]:
    """The first two rows of a table and its delimiter; empty rows if it has fewer or is no table."""
    with open_file(file) as stream:
        head = stream.read(_HEAD)
    # a file that is no text is reported when the table is read
    text = head.decode(encoding_of(head) or "utf-8", errors="replace")
    lines = [line for line in islice(io.StringIO(text.removeprefix("\ufeff"), newline=""), 2) if line.strip()]
    if not lines:
        return [], [], ","
    delimiter = max(",;\t", key=lines[0].count)
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    except csv.Error:
        return [], [], ","
    return rows[0], rows[1] if len(rows) > 1 else [], delimiter


def first_lines(file: Path, count: int) -> list[str]:
    """The first lines that are not empty, very long ones cut; bytes that are no text are replaced."""
    lines: list[str] = []
    with file.open(encoding="utf-8-sig", errors="replace") as stream:
        while len(lines) < count and (line := stream.readline(_HEAD)):
            lines += [line.strip()] if line.strip() else []
    return lines


def ends(file: Path) -> bytes:
    """The first and last bytes of a file, without a byte order mark: keys may stand at either end."""
    with open_file(file) as stream:
        head = stream.read(_HEAD)
        stream.seek(max(len(head), (file.stat().st_size & ~1) - _HEAD))
        tail = stream.read()
    return as_utf8(head + tail).lstrip(b"\xef\xbb\xbf \t\r\n")
