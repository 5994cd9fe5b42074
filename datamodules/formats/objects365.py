"""Objects365 v2 (2020): zhiyuan_objv2_{train,val}.json and patches of images, wherever tools unpack them.

Classes are matched by id: the published names have typing errors and trailing blanks, and the order of the
categories differs between files. Known errors of the published files are corrected or left out
here, by file name; any other error becomes a fault, as for every data set.
"""

from __future__ import annotations

import os
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from datamodules.formats import coco
from datamodules.formats.coco_images import CocoImage, Images
from datamodules.images.files import frame_size
from datamodules.index import AnnotationIndex, Fault, IndexBuilder, shown_path
from datamodules.index.growing_columns import Scratch
from datamodules.index.source import Source, image_overlaps
from datamodules.reading.reader import Reader, laid_out
from zoo.storage.plain_yaml import parse_yaml

SPLITS = ("train", "val")
# listed in the training json, but in none of the archives (mmdetection, EasyCV and DINO skip them)
MISSING = frozenset({"objects365_v2_00908726", "objects365_v1_00320532", "objects365_v1_00320534"})
# broken images, which a published converter to COCO drops
BROKEN = frozenset({
    "objects365_v1_00162953", "objects365_v1_00175464", "objects365_v1_00712985", "objects365_v2_00904061",
    "objects365_v2_01339848", "objects365_v2_01524152", "objects365_v2_02037230", "objects365_v2_02081009",
})  # fmt: skip
# width and height are exchanged in the json; there may be more such files, see `verify_sizes`
TRANSPOSED = frozenset({"objects365_v2_02024631", "objects365_v2_01118660", "objects365_v1_00509398"})

_SAMPLE = 64  # images that are looked for to find the layout, besides one of each folder
_FEW = 10  # missing files of a folder that are named one by one


@cache
def class_names() -> dict[int, str]:
    """category_id (1 to 365) -> name as published."""
    text = (
        resources.files("datamodules.formats").joinpath("objects365_classes.yaml").read_text(encoding="utf-8")
    )
    return dict(enumerate(parse_yaml(text, "objects365_classes.yaml")["names"], start=1))


def annotation_files(root: Path) -> dict[str, Path]:
    """Per split the official json, in or below its folder, in annotations/ or at the top; empty without one."""
    found = {}
    for split in SPLITS:
        name = f"zhiyuan_objv2_{split}.json"
        places = [root / split / name, root / "annotations" / name, root / name]
        places += sorted(root.glob(f"{split}/*/{name}"))  # an archive with a folder of its own
        file = next((p for p in places if p.is_file()), None)
        if file is not None:
            found[split] = file
    return found


@dataclass(frozen=True)
class Layout:
    """Where the images of a split are: `folder` / (the file_name of the json without its first `strip` parts).

    `images/v1/patch8/x.jpg` lies in train/images/v1/patch8, train/patch8, or train, as it was unpacked.
    """

    folder: Path
    strip: int

    def relative(self, file_name: str) -> str:
        """Name below `folder`."""
        return file_name.split("/", self.strip)[-1]


def find_layout(root: Path, split: str, names: Sequence[str]) -> Layout:
    """The layout in which most of a sample of the images are found; the sample has one image of each folder.

    Raises:
        ValueError: naming the places where no image of the sample was found.
    """
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(name.rpartition("/")[0], name)
    sample = {*first.values(), *names[:: max(1, len(names) // _SAMPLE)]}
    depth = min((name.count("/") + 1 for name in sample), default=1)
    folders = (root / split, root / split / "images", root / "images" / split)
    candidates = [Layout(folder, strip) for folder in folders if folder.is_dir() for strip in range(depth)]

    def hits(layout: Layout) -> int:
        return sum(os.path.isfile(layout.folder / layout.relative(name)) for name in sample)

    best = max(candidates, key=hits, default=None)
    if best is None or (sample and not hits(best)):
        raise ValueError(
            f"none of {len(sample)} images of the {split} json was found below "
            f"{', '.join(str(f) for f in folders)} (first: {names[0] if names else None}); unpack the "
            f"patches into {root / split}, or fetch them with `zoo data download objects365 --parts {split}`"
        )
    return best


def read(root: Path, *, verify_sizes: bool = False, scratch: Scratch | None = None) -> Source:
    """Both splits, or the one whose json exists.

    Args:
        root: folder with train/ and val/.
        verify_sizes: read the header of every image instead of the known transposed ones.
        scratch: where working columns go.

    Raises:
        ValueError: if there is no json, one is not of Objects365 v2, or its images are not found.
    """
    files = annotation_files(root)
    if not files:
        raise ValueError(
            f"{root} has no zhiyuan_objv2_train.json and no zhiyuan_objv2_val.json, in train/, val/, "
            "annotations/ or itself; `zoo data download objects365 --parts annotations` fetches them"
        )
    notes: list[Fault] = []
    splits = {}
    for split, file in files.items():
        content = coco.load(file, scratch)
        notes += check_classes(shown_path(file, root), content)
        splits[split] = read_split(root, split, file, content, verify_sizes)
    return Source("objects365", root, class_names(), splits, (*notes, *image_overlaps(root, splits)))


def check_classes(file: str, content: coco.CocoFile) -> Iterator[Fault]:
    """A warning for each class that is spelled in an unknown way.

    Raises:
        ValueError: if an id is unknown or most names have other ids: the file is of v1, or of another data set.
    """
    ours = class_names()
    listed = {c.id: str(c.name) for c in content.categories}
    other = {i: name for i, name in listed.items() if i not in ours or _plain(name) != _plain(ours[i])}
    unknown = [i for i in other if i not in ours]
    # corrected spellings differ for 17 classes; a list in another order agrees by chance only
    if unknown or len(other) > len(listed) // 2:
        example = unknown[0] if unknown else next(iter(other))
        raise ValueError(
            f"{file} is not of Objects365 v2 (2020): its category {example} is {listed[example]!r}, that of v2 "
            f"is {ours.get(example)!r} ({len(other)} of {len(listed)} differ). Objects365 v1 (2019) has other "
            "classes, ids and images: read it with datamodules.custom.CustomDataModule, format: coco"
        )
    for i, name in other.items():
        message = f"category {i} is spelled {name!r}, published as {ours[i]!r}; classes are matched by id"
        yield Fault("warning", "class_spelling", file, i, message)


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def read_split(
    root: Path, split: str, file: Path, content: coco.CocoFile, verify_sizes: bool
) -> AnnotationIndex:
    """One split as an index, without the images that are known to be missing or broken."""
    builder = IndexBuilder(root, class_names(), scratch=content.scratch)
    images = _valid_images(builder, file, content)
    layout = find_layout(root, split, _sample(images))
    absent = _absent(builder, layout, images)
    for image in images:
        if image.id in absent or _known_fault(builder, image):
            builder.exclude_image(image.id)
        else:
            _add_image(builder, layout, image, verify_sizes)
    content.annotations.add_to(builder, shown_path(file, root))
    return builder.build()


def _stem(image: CocoImage) -> str:
    """`objects365_v1_00420917`, unique over both splits."""
    return str(image.file_name).rpartition("/")[2].rpartition(".")[0]


class _Listed(Sequence[CocoImage]):
    """The usable images of a json, made one by one: a list of all would take half a gigabyte."""

    def __init__(self, every: Images) -> None:
        self._every = every
        self._rows = array("q")

    def append(self, row: int) -> None:
        """Adds an image by its position in the json."""
        self._rows.append(row)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self._every[row] for row in self._rows[number]]
        return self._every[self._rows[number]]


def _sample(images: Sequence[CocoImage]) -> list[str]:
    """Names of the first image, of one in each folder, and of some in between."""
    first: dict[str, str] = {}
    for image in images:
        first.setdefault(image.file_name.rpartition("/")[0], image.file_name)
    return [*first.values(), *(image.file_name for image in images[:: max(1, len(images) // _SAMPLE)])]


def _valid_images(builder: IndexBuilder, file: Path, content: coco.CocoFile) -> Sequence[CocoImage]:
    listed = _Listed(content.images)
    for row, image in enumerate(content.images):
        known = isinstance(image.id, int) and isinstance(image.file_name, str)
        if known and coco.declared_size(image) is not None:
            listed.append(row)
            continue
        if isinstance(image.id, int):
            builder.exclude_image(image.id)
        message = (
            f"image {image.id!r} with file_name {image.file_name!r} and size {image.width!r}x{image.height!r} "
            "is left out; it needs an integer id, a name and a size; is the json as published?"
        )
        builder.fault("error", "invalid_image", file, str(image.id), message)
    return listed


def _known_fault(builder: IndexBuilder, image: CocoImage) -> bool:
    """Whether an image is left out because its published file is; the warning names it."""
    stem = _stem(image)
    if stem in MISSING:
        text = "the published json lists it, the published archives do not have it"
        builder.fault("warning", "known_missing", image.file_name, image.id, f"{text}; left out, as expected")
        return True
    if stem in BROKEN:
        text = "the published file is known to be broken"
        builder.fault("warning", "known_broken", image.file_name, image.id, f"{text}; left out, as expected")
        return True
    return False


def _add_image(builder: IndexBuilder, layout: Layout, image: CocoImage, verify_size: bool) -> None:
    path = f"{layout.folder}/{layout.relative(image.file_name)}"  # making a Path takes longer than everything else here
    size = coco.declared_size(image)
    if verify_size or _stem(image) in TRANSPOSED:
        frame = frame_size(Path(path), size)
        size = frame.size
        if frame.kind:
            builder.fault("warning" if size else "error", frame.kind, path, image.id, frame.message)
    if size is None:
        builder.exclude_image(image.id)
    else:
        builder.add_image(path, image.id, size)


def _absent(builder: IndexBuilder, layout: Layout, images: Sequence[CocoImage]) -> set[int]:
    """Ids of images that are not on the disk, found with one listing of each folder instead of a look-up of each image.

    A folder that lacks many is one fault: its archive was not unpacked, or not to its end.
    """
    of_folder: dict[str, array[int]] = defaultdict(lambda: array("q"))
    for number, image in enumerate(images):
        if _stem(image) not in MISSING:
            of_folder[layout.relative(image.file_name).rpartition("/")[0]].append(number)
    absent: set[int] = set()
    for folder, own in sorted(of_folder.items()):
        place = layout.folder / folder
        here = {entry.name for entry in os.scandir(place)} if os.path.isdir(place) else set()
        listed = (images[number] for number in own)
        lacking = [image for image in listed if image.file_name.rpartition("/")[2] not in here]
        absent.update(image.id for image in lacking)
        if len(lacking) > _FEW:
            message = (
                f"{len(lacking)} of the {len(own)} images that the json lists here are not there (first: "
                f"{lacking[0].file_name}); they are left out; unpack the archive again, or set skip_broken: true "
                "to use what there is"
            )
            builder.fault("error", "missing_images", place, f"{len(lacking)} images", message)
            continue
        for image in lacking:
            builder.fault(
                "error",
                "missing_image",
                layout.folder / layout.relative(image.file_name),
                image.id,
                "there is no such file; the image and its objects are left out; unpack its archive again",
            )
    return absent


FORMAT = Reader(
    name="objects365",
    look=laid_out(lambda root: annotation_files(root).values()),
    read=read,
    title="Objects365 v2",
    places="train/zhiyuan_objv2_train.json, train/patch0/*.jpg, val/...",
    streamed=True,
)
