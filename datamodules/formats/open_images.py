"""Open Images v4 to v7: *-annotations-bbox.csv, class-descriptions*.csv, images by id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datamodules.index import AnnotationIndex, Fault, IndexBuilder, shown_path
from datamodules.index.source import Source, image_overlaps, split_of
from datamodules.reading import kinds as sniff
from datamodules.reading.checked_image import add_checked_image
from datamodules.reading.image_tree import ImageTree
from datamodules.reading.parsing import read_rows
from datamodules.reading.reader import Reader, laid_out

COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")


def annotation_files(root: Path) -> dict[str, Path]:
    """Per split: table of boxes, by its columns; the split by its name, else by its folder."""
    found: dict[str, Path] = {}
    for file in sniff.files(root, ".csv"):
        if set(COLUMNS) <= set(sniff.table_head(file)[0]):
            found.setdefault(split_of(file.stem) or split_of(file.parent.name) or "train", file)
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def image_level_only(root: Path) -> bool:
    """Whether the folder is of Open Images and has no table of boxes: labels of whole images only."""
    heads = [sniff.table_head(f)[0] for f in sniff.files(root, ".csv")]
    of_images = any({"ImageID", "Subset", "OriginalURL"} <= set(h) for h in heads)
    return of_images and not annotation_files(root)


def read(root: Path, *, verify_sizes: bool = True) -> Source:
    """Reads the tables; class ids are positions in class-descriptions.

    Of class-descriptions-boxable all classes are taken, of the longer list of all labels those that have
    a box. `IsGroupOf` makes a crowd. An image without a row in the table of boxes is left out: it was not
    annotated with boxes.

    Raises:
        ValueError: if there is no table of boxes.
    """
    files = annotation_files(root)
    if not files:
        raise ValueError(f"{root} has no csv with the columns {', '.join(COLUMNS)}")
    tree = ImageTree(root)
    used = {row["LabelName"] for file in files.values() for row in _rows(file)}
    classes, id_of, notes = _classes(root, used)
    splits: dict[str, AnnotationIndex] = {}
    first_id = 0
    for split, file in files.items():
        splits[split] = _read_split(root, split, file, tree, classes, id_of, first_id)
        first_id += len({row["ImageID"] for row in _rows(file)})
    listed = {name for index in splits.values() for name in index.files.tolist()}
    rest = sorted(n for n in tree.all() if n not in listed and "masks/" not in n.lower())
    if rest:
        message = (
            f"{len(rest)} images have no row in a table of boxes ({', '.join(rest[:3])}"
            f"{', ...' if len(rest) > 3 else ''}); they are left out, because such images were not annotated with boxes"
        )
        notes.append(Fault("warning", "no_boxes", ".", None, message))
    return Source("open_images", root, classes, splits, (*notes, *image_overlaps(root, splits)))


def _rows(file: Path) -> Iterator[dict[str, str]]:
    """The rows by column, read again at each call: that costs less than keeping 15 million of them."""
    rows = read_rows(file)
    at = {column: i for i, column in enumerate(next(rows, []))}
    for row in rows:
        cells = {c: row[at[c]] if c in at and at[c] < len(row) else "" for c in (*COLUMNS, "IsGroupOf")}
        yield cells


def _classes(root: Path, used: set[str]) -> tuple[dict[int, str], dict[str, int], list[Fault]]:
    """Class names by id, ids by Open Images' own label, faults."""
    named: list[tuple[str, str]] = []
    files = [f for f in sniff.files(root, ".csv") if "class-descriptions" in f.name]
    files.sort(key=lambda f: "boxable" not in f.name)
    for file in files[:1]:
        named = [(row[0], row[1]) for row in read_rows(file) if len(row) >= 2 and row[0] != "LabelName"]
    notes = []
    missing = sorted(used - {label for label, _ in named})
    if missing:
        message = (
            f"{len(missing)} labels have no name in class-descriptions*.csv ({', '.join(missing[:3])}); they "
            "are called by their code; put class-descriptions-boxable.csv beside the boxes"
        )
        notes.append(Fault("warning", "no_class_names", shown_path(root, root), None, message))
        named += [(label, label) for label in missing]
    every = bool(files) and "boxable" in files[0].name
    id_of = {label: i for i, (label, _) in enumerate(named) if every or label in used}
    return {i: named[i][1] for i in id_of.values()}, id_of, notes


def _read_split(
    root: Path, split: str, file: Path, tree: ImageTree, classes: dict[int, str], id_of: dict[str, int],
    first_id: int,
) -> AnnotationIndex:  # fmt: skip
    builder = IndexBuilder(root, classes)
    sizes: dict[str, tuple[int, tuple[int, int] | None]] = {}
    for number, row in enumerate(_rows(file), start=1):
        name = row["ImageID"]
        if name not in sizes:
            # an image may lie in the folders of several splits by mistake
            own = next((n for n in (f"{split}/{name}", _LONG.get(split, "") + name) if _one(tree, n)), name)
            image_id = first_id + len(sizes)
            sizes[name] = image_id, add_checked_image(builder, tree, own, image_id, None, True)
        image_id, size = sizes[name]
        builder.add_object(
            image_id, _box(row, size), id_of[row["LabelName"]], number, crowd=row.get("IsGroupOf") == "1",
            file=file,
        )  # fmt: skip
    return builder.build()


_LONG = {"val": "validation/"}


def _one(tree: ImageTree, name: str) -> bool:
    return len(tree.candidates(name)) == 1


def _box(row: dict[str, str], size: tuple[int, int] | None) -> object:
    if size is None:
        return None  # the image is left out already
    try:
        x0, x1, y0, y1 = (float(row[k]) for k in ("XMin", "XMax", "YMin", "YMax"))
    except (TypeError, ValueError):
        return None
    height, width = size
    return x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height


FORMAT = Reader(
    name="open_images",
    look=laid_out(lambda root: annotation_files(root).values()),
    read=read,
    title="Open Images",
    places="train-annotations-bbox.csv, class-descriptions-boxable.csv, train/*.jpg",
)
