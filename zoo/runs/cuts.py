"""How an optimizer step is cut over devices and micro-batches, and what a cut changes; no torch, no data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zoo.runs.console import counted


@dataclass(frozen=True)
class Published:
    """What a recipe says of a step, and what the machine can keep of it.

    Attributes:
        global_batch: images of an optimizer step.
        micro_batch: most images that a device processes at a time.
        statistics: images that batch statistics are taken over; None for a network without them.
        padded: whether images of a micro-batch are padded to its largest.
    """

    global_batch: int
    micro_batch: int
    statistics: int | None
    padded: bool


@dataclass(frozen=True)
class Cut:
    """A step of `devices` x `batch_size` x `accumulation` images.

    Attributes:
        devices: all of them, over all nodes.
        batch_size: images that a device processes at a time.
        accumulation: times it does so for a step.
        synchronised: whether batch statistics are those of all devices.
    """

    devices: int
    batch_size: int
    accumulation: int
    synchronised: bool

    @property
    def images(self) -> int:
        """Of the step."""
        return self.devices * self.batch_size * self.accumulation

    @property
    def statistics(self) -> int:
        """Images that batch statistics are taken over."""
        return self.batch_size * (self.devices if self.synchronised else 1)

    def differences(self, published: Published) -> list[str]:
        """Why its gradient is not the published one; none where it is, but for rounding and the draws of dropout."""
        found = []
        if self.images != published.global_batch:
            found.append(f"steps of {self.images} images, published {published.global_batch}")
        if published.statistics not in (None, self.statistics):
            found.append(f"batch statistics of {self.statistics} images, published {published.statistics}")
        if published.padded and self.batch_size != published.micro_batch:
            found.append(
                f"padded to the largest of {counted(self.batch_size, 'image')}, published {published.micro_batch}"
            )
        return found


def cuts(
    global_batch: int,
    published: Published,
    devices: int,
    nodes: int,
    most: Callable[[int], int],
    synchronise: bool,
) -> list[Cut]:
    """For each number of devices that divides the step its best cut, the best of all first.

    The best has the fewest differences, then the most devices, then the fewest micro-batches.

    Args:
        global_batch: images of a step.
        published: what is to be kept.
        devices: most of a node.
        nodes: all are used.
        most: images that one of so many devices can process at a time; 0 where not even one.
        synchronise: whether batch statistics can be those of all devices.

    Raises:
        ValueError: there is none.
    """
    found: list[Cut] = []
    divides = [n for n in range(1, devices + 1) if global_batch % (n * nodes) == 0]
    if not divides:
        raise ValueError(
            f"a step of {global_batch} images cannot be divided over {nodes} nodes; use a number of nodes that divides "
            "it: --trainer.num_nodes"
        )
    for number in divides:
        share, limit = global_batch // (number * nodes), most(number * nodes)
        sizes = [size for size in range(1, min(limit, share) + 1) if share % size == 0]
        own = [Cut(number * nodes, size, share // size, synchronise) for size in sizes]
        if own:
            found.append(min(own, key=lambda cut: _order(cut, published)))
    return sorted(found, key=lambda cut: _order(cut, published))


def _order(cut: Cut, published: Published) -> tuple[int, int, int]:
    return len(cut.differences(published)), -cut.devices, cut.accumulation


def steps_of(
    images: int, cut: Cut, max_epochs: int | None, max_steps: int, limit: int | float | None
) -> tuple[int, int]:
    """(optimizer steps of an epoch, of the whole training), as the training loop counts them.

    Args:
        images: of the training set; those left over at the end of an epoch are not used in it.
        cut: of a step.
        max_epochs: None or -1 where steps say the end.
        max_steps: -1 where epochs say the end.
        limit: `trainer.limit_train_batches`: micro-batches, or their share as a float.

    Raises:
        ValueError: the set is smaller than a step, or the limit ends an epoch inside one.
    """
    if images < cut.images:
        raise ValueError(
            f"the training set has {images} images, fewer than one step of global_batch_size {cut.images}; add images "
            "or lower --model.schedule.global_batch_size"
        )
    batches = images // cut.images * cut.accumulation
    if isinstance(limit, float):
        batches = int(batches * limit)
    elif limit is not None:
        batches = min(batches, limit)
    if batches % cut.accumulation or not batches:
        raise ValueError(
            f"trainer.limit_train_batches leaves {batches} micro-batches an epoch, and a step has {cut.accumulation}; "
            f"set it to a multiple of {cut.accumulation}"
        )
    epoch = batches // cut.accumulation
    ends = [epoch * max_epochs] if max_epochs not in (None, -1) else []
    return epoch, min([*ends, *([max_steps] if max_steps != -1 else [])])
