"""The recipe's list `data.augmentations`: read, checked and named. Imports neither torchvision nor albumentations.

An entry is `train_transform`, one of ours by its name, or a class of `allowed.ALLOWED` with its arguments:

    augmentations:
    - torchvision.transforms.v2.GaussianBlur: {kernel_size: 5}
    - train_transform
    - albumentations.RandomRain: {p: 0.2}
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datamodules.augmentations.allowed import ALLOWED, CONTAINERS, REFUSED

TRAIN_TRANSFORM = "train_transform"
OWN = ("distort", "flip", "flip_vertical", "iou_crop", "zoom_out")  # `datamodules.augmentations.own`
_LARGEST = 65_535  # of a number: an image has no longer side
_MOST = 64  # entries, each of which a worker carries out for every image


@dataclass(frozen=True)
class Entry:
    """One operation as the recipe names it.

    Attributes:
        place: in the recipe, e.g. `augmentations[2]`.
        library: `torchvision.transforms.v2`, `albumentations`, or empty for ours.
        name: of the class, or of ours.
        arguments: by name; lists are tuples, operations are entries.
    """

    place: str
    library: str
    name: str
    arguments: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return f"{self.place} {self.library}.{self.name}" if self.library else f"{self.place} {self.name}"


def parse(block: Any) -> tuple[Entry, ...]:
    """The entries of a recipe's list; `train_transform` comes last where it is not named.

    Raises:
        ValueError: an entry of another form, a class that may not be named, or an argument that is no plain value.
    """
    if not isinstance(block, (list, tuple)) or not block or len(block) > _MOST:
        raise ValueError(
            f"augmentations is {block!r:.60}; it is a list of 1 to {_MOST} operations, as in "
            "[albumentations.RandomRain: {p: 0.2}]"
        )
    entries = [_entry(item, f"augmentations[{number}]") for number, item in enumerate(block)]
    named = [entry for entry in entries if _is_preset(entry)]
    if len(named) > 1:
        raise ValueError(f"{named[1]}: it stands there twice; once is enough")
    return tuple(entries) if named else (*entries, Entry("augmentations", "", TRAIN_TRANSFORM))


def _is_preset(entry: Entry) -> bool:
    return not entry.library and entry.name == TRAIN_TRANSFORM


def _entry(item: Any, place: str, inside: str = "") -> Entry:
    """`inside`: the library of the operation that holds this one."""
    if isinstance(item, str):
        path, arguments = item, None
    elif isinstance(item, Mapping) and len(item) == 1:
        path, arguments = next(iter(item.items()))
    else:
        raise ValueError(
            f"{place} is {item!r:.60}; it is the name of a class, or that and its arguments in {{}}"
        )
    arguments = {} if arguments is None else arguments
    library, _, name = str(path).rpartition(".")
    if not library and not inside and name in (TRAIN_TRANSFORM, *OWN):
        if arguments:
            raise ValueError(f"{place} {name} takes no arguments; give the name alone")
        return Entry(place, "", name)
    if name not in ALLOWED.get(library, ()) or (inside and library != inside):
        raise ValueError(f"{place} names {str(path)!r:.80}; {_why_not(library, name, inside)}")
    if not isinstance(arguments, Mapping):
        raise ValueError(
            f"{place} {path}: its arguments are {arguments!r:.60}; give them by name, as in {{p: 0.5}}"
        )
    found = []
    for key, value in arguments.items():
        where = f"{place} {path}: {key}"
        if key == "transforms" and name in CONTAINERS[library]:
            if not isinstance(value, (list, tuple)) or not 0 < len(value) <= _MOST:
                raise ValueError(f"{where} is {value!r:.60}; it is a list of operations")
            inner = (_entry(v, f"{place}.transforms[{i}]", library) for i, v in enumerate(value))
            found.append((str(key), tuple(inner)))
        else:
            found.append((str(key), _plain(value, where)))
    return Entry(place, library, name, tuple(found))


def _why_not(library: str, name: str, inside: str) -> str:
    if inside and library != inside:
        return f"an operation of {inside} holds only such as {inside}.{ALLOWED[inside][-1]}"
    if library in (*ALLOWED, "torchvision.transforms") and name in REFUSED:
        return f"it cannot be used: {REFUSED[name]}"
    full = {f"{place}.{n}": n for place, names in ALLOWED.items() for n in names} | {n: n for n in OWN}
    near = difflib.get_close_matches(f"{library}.{name}".lstrip("."), full, n=1, cutoff=0.6)
    near = near or [path for path, n in full.items() if n == name]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return (
        f"it is none of the operations that a recipe may name: those of {' and '.join(ALLOWED)} that move boxes with "
        f"the pixels, {TRAIN_TRANSFORM}, {', '.join(OWN)}{hint}"
    )


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, (list, tuple)) and len(value) <= _MOST:
        return tuple(_plain(v, where) for v in value)
    if isinstance(value, (str, bool, type(None))) or (
        isinstance(value, (int, float)) and abs(value) <= _LARGEST
    ):
        return value
    raise ValueError(
        f"{where} is {value!r:.60}; it must be a word, a number up to {_LARGEST}, or a list of such"
    )


def spelled(entries: Sequence[Entry]) -> str:
    """The names in their order, for people."""
    return ", ".join(entry.name for entry in entries)
