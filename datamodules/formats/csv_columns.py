"""What the columns of a table of boxes mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
_SIZES = (("width", "height"), ("image_width", "image_height"), ("img_width", "img_height"))
_SPLIT = ("split", "subset", "set")
# columns that say nothing about where an object is or what it is
_IDLE = {"depth", "segmented", "difficult", "truncated", "occluded", "pose", "source", "id", "area", "iscrowd",
         "database", "folder", "confidence", "index", "", "annotation_id", "box_id"}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """Positions of the columns that are read.

    Attributes:
        image, name: of the image and of the class.
        box: of x0, y0, x1, y1 or of x, y, width, height.
        sides: whether `box` is the latter.
        size: of width and height of the image, None if there are none.
        split: of the split, None if there is none.
        header: whether the first row is one.
        unknown: names of columns that are not read, by no list of ours.
    """

    image: int
    name: int
    box: tuple[int, int, int, int]
    sides: bool = False
    size: tuple[int, int] | None = None
    split: int | None = None
    header: bool = True
    unknown: tuple[str, ...] = ()


def columns_of(first: Sequence[str], second: Sequence[str]) -> Columns | str:
    """The columns of a table by its first two rows, or what is missing, empty if it is no table of boxes.

    Without a header a row is `path,x1,y1,x2,y2,class`, the four numbers empty for an image without objects.
    """
    if len(first) == 6 and _numbers_or_nothing(first[1:5]):
        return Columns(0, 5, (1, 2, 3, 4), header=False)
    names = [cell.strip().strip('"').lower().replace(" ", "_") for cell in first]
    at = {name: i for i, name in reversed(list(enumerate(names)))}
    corners = next((k for k in _CORNERS if all(c in at for c in k)), None)
    sides = None if corners else next((k for k in _SIDES if all(c in at for c in k)), None)
    image = next((at[k] for k in _IMAGE if k in at), None)
    if corners is None and sides is None:
        return ""
    chosen = corners or sides or ()
    size = next((s for s in _SIZES if all(c in at for c in s) and not set(s) & set(chosen)), None)
    split = next((k for k in _SPLIT if k in at), None)
    taken = {*chosen, *(size or ()), split, names[image] if image is not None else None}
    name = next((k for k in _CLASS if k in at and k not in taken), None)
    rest = [n for n in names if n not in taken and n != name and n not in _IDLE]
    if name is None and len(words := [n for n in rest if _is_word(second, at[n])]) == 1:
        [name] = words  # the one column of words that is left, such as cell_type
        rest.remove(name)
    if image is None or name is None:
        missing = " and ".join(
            f"a column of {what} ({', '.join(accepted[:5])})"
            for what, accepted, found in (("image names", _IMAGE, image), ("classes", _CLASS, name))
            if found is None
        )
        return f"its columns are {', '.join(names)}; it lacks {missing}"
    return Columns(
        image=image, name=at[name], box=tuple(at[c] for c in chosen), sides=corners is None,  # type: ignore[arg-type]
        size=(at[size[0]], at[size[1]]) if size else None, split=at[split] if split else None,
        unknown=tuple(rest),
    )  # fmt: skip


def _numbers_or_nothing(cells: Sequence[str]) -> bool:
    if all(not c for c in cells):
        return True
    try:
        return all(float(c) == float(c) for c in cells)
    except ValueError:
        return False


def _is_word(row: Sequence[str], position: int) -> bool:
    if position >= len(row) or not row[position]:
        return False
    try:
        float(row[position])
    except ValueError:
        return True
    return False
