"""What the columns of a table of boxes mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from datamodules.reading.parsing import is_number

_IMAGE = ("filename", "file_name", "image", "image_name", "image_path", "img", "img_path", "path", "file",
          "image_file", "filepath", "file_path", "image_id", "imageid")  # fmt: skip
_CLASS = ("class", "label", "class_name", "classname", "label_name", "labelname", "category", "category_name",
          "name", "object", "tag")  # fmt: skip
_CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"), ("x1", "y1", "x2", "y2"),
    ("x0", "y0", "x1", "y1"), ("left", "top", "right", "bottom"), ("bbox_xmin", "bbox_ymin", "bbox_xmax", "bbox_ymax"),
)  # fmt: skip
_SIDES = (
    ("x", "y", "w", "h"), ("x", "y", "width", "height"), ("bbox_x", "bbox_y", "bbox_w", "bbox_h"),
    ("bbox_x", "bbox_y", "bbox_width", "bbox_height"), ("left", "top", "width", "height"),
)  # fmt: skip
# all numbers of a box, or of all boxes of an image, in one cell: "[x, y, w, h]", "x1 y1 x2 y2;x1 y1 x2 y2"
_CELLS = {  # name -> whether sides and not corners
    **dict.fromkeys(("bbox", "bounding_box", "box", "bbox_xywh", "xywh", "bboxes", "boxes"), True),
    **dict.fromkeys(("bndbox", "bbox_xyxy", "xyxy", "box_xyxy", "boxesstring", "boxes_string"), False),
}
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
ONE_CLASS = "object"
_LONGEST_WORD = 20
_SIZES = (("width", "height"), ("image_width", "image_height"), ("img_width", "img_height"))
_SPLIT = ("split", "subset", "set")
# columns that are known and not needed for boxes and classes
_IDLE = {"depth", "segmented", "difficult", "truncated", "occluded", "pose", "source", "id", "area", "iscrowd",
         "database", "folder", "confidence", "index", "", "annotation_id", "box_id", "domain"}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """Positions of the columns that are read.

    Attributes:
        image: of the image.
        name: of the class, None if all objects are of one.
        box: of x0, y0, x1, y1 or of x, y, width, height; one position if a cell has all of them.
        sides: whether `box` is the latter.
        size: of width and height of the image, None if there are none.
        split: of the split, None if there is none.
        header: whether the first row is a header.
        unknown: names of columns that are not read and not among the known ones.
    """

    image: int
    name: int | None
    box: tuple[int, ...]
    sides: bool = False
    size: tuple[int, int] | None = None
    split: int | None = None
    header: bool = True
    unknown: tuple[str, ...] = ()


def columns_of(first: Sequence[str], second: Sequence[str]) -> Columns | str:
    """The columns of a table by its first two rows; or what it lacks, in words; or "" if it is no table of boxes.

    Without a header a row is `path,x1,y1,x2,y2,class`, the four numbers empty for an image without objects.
    """
    if len(first) == 6 and _numbers_or_nothing(first[1:5]):
        return Columns(0, 5, (1, 2, 3, 4), header=False)
    names = [cell.strip().strip('"').lower().replace(" ", "_") for cell in first]
    at = {name: i for i, name in reversed(list(enumerate(names)))}
    corners = next((k for k in _CORNERS if all(c in at for c in k)), None)
    sides = None if corners else next((k for k in _SIDES if all(c in at for c in k)), None)
    image = next((at[k] for k in _IMAGE if k in at), None)
    cell = next((k for k in at if _cell_name(k) is not None), None) if not (corners or sides) else None
    if cell is not None and not _holds_boxes(second, at[cell]):
        held = second[at[cell]] if at[cell] < len(second) else ""
        return f"its column {cell} has {held[:40]!r}, which is no box; write it as [x, y, width, height]"
    if corners is None and sides is None and cell is None:
        return ""
    chosen = corners or sides or (cell,)
    size = next((s for s in _SIZES if all(c in at for c in s) and not set(s) & set(chosen)), None)
    split = next((k for k in _SPLIT if k in at), None)
    taken = {*chosen, *(size or ()), split, names[image] if image is not None else None}
    name = next((k for k in _CLASS if k in at and k not in taken), None)
    if name is None and "class_id" in at:
        name = "class_id"
    rest = [n for n in names if n not in taken and n != name and n not in _IDLE]
    words = [n for n in rest if _is_word(second, at[n])]
    if name is None and len(words) == 1:
        [name] = words  # the one column of words that is left, such as cell_type
        rest.remove(name)
    unclear = name is None and len(words) > 1  # each of them may be the class
    if image is None or unclear:
        missing = " and ".join(
            f"a column of {what} ({', '.join(accepted[:5])})"
            for what, accepted, lacks in (
                ("image names", _IMAGE, image is None),
                ("classes", _CLASS, unclear),
            )
            if lacks
        )
        return f"its columns are {', '.join(names)}; it lacks {missing}"
    return Columns(
        image=image, name=None if name is None else at[name], box=tuple(at[c] for c in chosen if c is not None),
        sides=bool(_cell_name(cell)) if cell is not None else corners is None,
        size=(at[size[0]], at[size[1]]) if size else None, split=at[split] if split else None,
        unknown=tuple(rest),
    )  # fmt: skip


def _cell_name(name: str) -> bool | None:
    """Whether a column of whole boxes has sides; None if it is no such column. `bbox (x1, y1, x2, y2)` has corners."""
    word, _, given = name.partition("(")
    sides = _CELLS.get(word.strip("_ "))
    if sides is None or not given:
        return sides
    return not any(corner in given for corner in ("x2", "max", "right", "xyxy"))


def boxes_in(cell: str) -> list[tuple[float, ...]] | None:
    """The boxes in a cell, four numbers each: none for a word such as `no_box`; None if the numbers are no boxes."""
    values = [float(number) for number in _NUMBER.findall(cell)]
    return None if len(values) % 4 else [tuple(values[i : i + 4]) for i in range(0, len(values), 4)]


def _holds_boxes(row: Sequence[str], position: int) -> bool:
    """Whether a cell is empty, a short word such as `no_box`, or nothing but boxes of four numbers."""
    cell = row[position].strip() if position < len(row) else ""
    if not _NUMBER.search(cell):
        return len(cell) < _LONGEST_WORD
    return boxes_in(cell) is not None and not any(c.isalpha() for c in _NUMBER.sub("", cell))


def _numbers_or_nothing(cells: Sequence[str]) -> bool:
    if all(not c for c in cells):
        return True
    try:
        return all(float(c) == float(c) for c in cells)
    except ValueError:
        return False


def _is_word(row: Sequence[str], position: int) -> bool:
    return position < len(row) and bool(row[position]) and not is_number(row[position])
