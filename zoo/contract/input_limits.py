"""What sizes of input a network takes; checked before a training starts, and again for every batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Size = tuple[int, int]  # (height, width) in pixels


@dataclass(frozen=True, kw_only=True)
class InputLimits:
    """Limits of a network on the size of its input.

    Attributes:
        multiple_of: both sides are multiples of it.
        queries: number of queries chosen among the places of the feature maps; None where queries are learned.
        strides: of these maps; a side of n pixels has ceil(n / stride) places.
        training_sizes: sizes that the network itself resizes training images to.
        largest: longest side that is accepted; a longer one is taken for a mistake.
    """

    multiple_of: int = 1
    queries: int | None = None
    strides: tuple[int, ...] = ()
    training_sizes: tuple[Size, ...] = ()
    largest: int = 8192

    def places(self, size: Size) -> int:
        """Number of places of all maps together."""
        height, width = size
        return sum(-(-height // s) * -(-width // s) for s in self.strides)

    def refuse(self, size: Size, model: str = "the model", advice: str = "give it larger images") -> None:
        """Raises ValueError, one line, if the network does not take inputs of this size.

        Args:
            size: of the padded batch.
            model: its name in the message.
            advice: what to do where there are fewer places than queries.
        """
        height, width = size
        if height % self.multiple_of or width % self.multiple_of:
            raise ValueError(
                f"images are {height}x{width}; {model} needs both sides to be multiples of {self.multiple_of}"
            )
        if max(size) > self.largest:
            raise ValueError(
                f"images are {height}x{width}; {model} takes at most {self.largest} a side: cut them into tiles"
            )
        if self.queries is not None and self.queries > self.places(size):
            raise ValueError(
                f"{model} has {self.queries} queries, an input of {height}x{width} has {self.places(size)} places; "
                f"{advice}"
            )

    def fewest(self, sizes: Iterable[Size]) -> Size | None:
        """The size of `sizes`, or of the network's own training sizes, that has the fewest places."""
        return min((*sizes, *self.training_sizes), key=self.places, default=None)

    def refuse_any(self, sizes: Iterable[Size], model: str, advice: str) -> None:
        """`refuse` for all sizes of the data and the training sizes; the error names the one with the fewest places."""
        together = {*sizes, *self.training_sizes}
        for size in sorted(together, key=lambda one: (self.places(one), one)):
            self.refuse(size, model, advice)
