"""One label map from annotation file to head index to exported prediction.

A class has three identities: its id in the source (COCO's 1..90 with holes, YOLO's line number,
VOC's name order), its name, and the index of its logit in the head. Mixing two of them up shifts
every label and shows only as an AP of 0. So one object holds all three, is made by the datamodule,
and travels in checkpoint, manifest, export and prediction file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from zoo.contract.class_names import corrected

_T = TypeVar("_T")
_WIDEST = 1_000_000  # classes of a head


@dataclass(frozen=True)
class LabelMap:
    """Classes in head order.

    Attributes:
        names: name of each class.
        source_ids: id of each class in the annotation source; unique.
        head_indices: index of each class's logit; unique, below `num_classes`. Contiguous heads
            have 0..n-1; heads on raw COCO ids have holes.
        num_classes: width of the head without a no-object logit.
        is_thing: for panoptic data, whether each class is countable; None where there are only things.
        colors: (red, green, blue) of each class in pictures; None where the source gives none.
    """

    names: tuple[str, ...]
    source_ids: tuple[int, ...]
    head_indices: tuple[int, ...]
    num_classes: int
    is_thing: tuple[bool, ...] | None = None
    colors: tuple[tuple[int, int, int], ...] | None = None

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.source_ids) == len(self.head_indices):
            raise ValueError(
                f"label map with {len(self.names)} names, {len(self.source_ids)} source ids and "
                f"{len(self.head_indices)} head indices; each class needs one of each"
            )
        for what, facts in (("is_thing", self.is_thing), ("colors", self.colors)):
            if facts is not None and len(facts) != len(self.names):
                raise ValueError(
                    f"label map with {len(self.names)} names and {len(facts)} {what}; give each one"
                )
        for what, values in (("source id", self.source_ids), ("head index", self.head_indices)):
            if len(set(values)) < len(values):
                twice = sorted({v for v in values if values.count(v) > 1})
                raise ValueError(f"{what} {twice} given to more than one class")
        if not 0 <= self.num_classes <= _WIDEST:
            raise ValueError(f"label map of {self.num_classes} classes; heads have 0 to {_WIDEST}")
        if self.head_indices and not 0 <= min(self.head_indices) <= max(self.head_indices) < self.num_classes:
            raise ValueError(
                f"head indices {min(self.head_indices)}..{max(self.head_indices)} do not fit a head of "
                f"{self.num_classes} classes"
            )

    @classmethod
    def contiguous(cls, names: Sequence[str], source_ids: Sequence[int]) -> LabelMap:
        """Head index = position in the given order."""
        return cls(tuple(names), tuple(source_ids), tuple(range(len(names))), len(names))

    @classmethod
    def category_id(
        cls, names: Sequence[str], source_ids: Sequence[int], num_classes: int | None = None
    ) -> LabelMap:
        """Head index = source id, holes included: DETR's 91 COCO classes.

        Args:
            names: name of each class.
            source_ids: its id.
            num_classes: width of the head; None for the highest id + 1. Published panoptic heads are wider.
        """
        width = max(source_ids) + 1 if num_classes is None else num_classes
        return cls(tuple(names), tuple(source_ids), tuple(source_ids), width)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> LabelMap:
        """Inverse of `to_dict`.

        Raises:
            ValueError: it is not a label map; the checkpoint or manifest is damaged, or of another program.
        """
        try:
            classes = state["classes"]
            return cls(
                names=tuple(str(c["name"]) for c in classes),
                source_ids=tuple(_whole(c["source_id"]) for c in classes),
                head_indices=tuple(_whole(c["head_index"]) for c in classes),
                num_classes=_whole(state["num_classes"]),
                is_thing=_of_all(classes, "is_thing", bool),
                colors=_of_all(classes, "color", _color),
            )
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(
                f"the label map is damaged ({error!r:.80}); take the weights from their source again"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, for checkpoints, manifests and prediction files."""
        rows = zip(self.names, self.source_ids, self.head_indices, strict=True)
        classes: list[dict[str, Any]] = [{"name": n, "source_id": s, "head_index": h} for n, s, h in rows]
        # written only if known, so that the file of a map without them does not change
        for row, thing in zip(classes, self.is_thing or (), strict=False):
            row["is_thing"] = thing
        for row, color in zip(classes, self.colors or (), strict=False):
            row["color"] = list(color)
        return {"num_classes": self.num_classes, "classes": classes}

    @cached_property
    def head_of_source(self) -> dict[int, int]:
        """Source id -> head index."""
        return dict(zip(self.source_ids, self.head_indices, strict=True))

    @cached_property
    def source_of_head(self) -> dict[int, int]:
        """Head index -> source id; indices of holes are absent."""
        return dict(zip(self.head_indices, self.source_ids, strict=True))

    @cached_property
    def name_of_head(self) -> dict[int, str]:
        """Head index -> name; indices of holes are absent."""
        return dict(zip(self.head_indices, self.names, strict=True))

    @cached_property
    def things(self) -> frozenset[int]:
        """Head indices of countable classes; all classes if the map has no such information."""
        if self.is_thing is None:
            return frozenset(self.head_indices)
        return frozenset(h for h, thing in zip(self.head_indices, self.is_thing, strict=True) if thing)

    @cached_property
    def color_of_head(self) -> dict[int, tuple[int, int, int]]:
        """Head index -> (red, green, blue); empty where the source gives no colours."""
        return dict(zip(self.head_indices, self.colors, strict=True)) if self.colors else {}

    def difference(self, other: LabelMap) -> str | None:
        """The first difference between two maps, in one line; None if they mean the same.

        Known misspellings of published class lists are no difference.
        """
        if self.num_classes != other.num_classes:
            return f"{self.num_classes} classes against {other.num_classes}"
        for head in sorted({*self.head_indices, *other.head_indices}):
            mine, theirs = self.name_of_head.get(head), other.name_of_head.get(head)
            if mine is None or theirs is None:
                same = mine is theirs
            else:
                same = corrected(mine) == corrected(theirs)
            if not same:
                return f"head index {head} is {mine!r} in one and {theirs!r} in the other"
        if self.is_thing is not None and other.is_thing is not None and self.things != other.things:
            head = min(self.things ^ other.things)
            return f"head index {head} ({self.name_of_head[head]!r}) is a thing in one and stuff in the other"
        return None


def _of_all(
    classes: Sequence[Mapping[str, Any]], key: str, read: Callable[[Any], _T]
) -> tuple[_T, ...] | None:
    """A fact of every class; None if no class has it."""
    if any(c.get(key) is None for c in classes) or not classes:
        return None
    return tuple(read(c[key]) for c in classes)


def _whole(value: Any) -> int:
    """A whole number of 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int) or not -(1 << 63) <= value < 1 << 63:
        raise TypeError(f"{value!r:.40} is no whole number")
    return value


def _color(value: Sequence[int]) -> tuple[int, int, int]:
    red, green, blue = (_whole(v) for v in value)
    return red, green, blue
