"""Which images make a step, a micro-batch, a rank's share of the evaluation: pure functions of seed and position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils.data import Sampler

from datamodules.balance import Balance
from zoo.contract.seeds import derived_generator

_T = TypeVar("_T")
# (epoch, image row): what a training dataset is indexed with; of the copies that `balance` makes of an image,
# number c has row + c * len(dataset)
Key = tuple[int, int]


class Member(NamedTuple):
    """An image of a group whose images are mixed with each other.

    Attributes:
        epoch: of the group.
        number: of the group in its epoch.
        rows: of the images of the group.
        place: of this one among them.
    """

    epoch: int
    number: int
    rows: tuple[int, ...]
    place: int


FinalSize = Callable[[Key], tuple[int, int]]  # (h, w) of an image after its transform, before it is decoded

_STRIPS = 8  # of a window; good for windows of 16 to 256 steps


def epoch_order(num_images: int, seed: int, epoch: int) -> list[int]:
    """The order of the images in an epoch."""
    generator = derived_generator(seed, epoch)
    order: list[int] = torch.randperm(num_images, generator=generator).tolist()
    return order


@dataclass(frozen=True)
class Bucketing:
    """Images of like final size in one step: less padding, and batches that correlate in shape and scale.

    Attributes:
        window: number of steps that are reordered together. Within them the images are sorted by size, cut into
            steps, and the steps shuffled; so an image moves by less than a window.
        final_size: sizes after the transform.
    """

    window: int
    final_size: FinalSize

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"bucketing is {self.window} steps; it must be at least 1, or null for none")

    def reordered(self, rows: Sequence[int], step_size: int, seed: int, epoch: int, window: int) -> list[int]:
        """The images of one window in their new order; depends on the arguments and the final sizes alone."""
        by_size = sorted_by_size({row: self.final_size((epoch, row)) for row in rows})
        generator = derived_generator(seed, epoch, window)
        steps = torch.randperm(len(rows) // step_size, generator=generator).tolist()
        return [row for s in steps for row in by_size[s * step_size : (s + 1) * step_size]]


def sorted_by_size(sizes: Mapping[int, tuple[int, int]]) -> list[int]:
    """The keys of `sizes` (h, w) in an order in which neighbours are alike in both sides; ties keep theirs.

    Sorted by height into strips, each of them by width, every second one downwards. One sort by (h, w) leaves
    half as much padding again, one by area or by aspect four times as much: `benchmarks/data_padding.py`.
    """
    by_height = sorted(sizes, key=lambda row: sizes[row][0])
    strip = -(-len(by_height) // _STRIPS)
    order: list[int] = []
    for number, start in enumerate(range(0, len(by_height), strip)):
        own = by_height[start : start + strip]
        order += sorted(own, key=lambda row: sizes[row][1], reverse=number % 2 == 1)
    return order


class EpochOrder:
    """The images of an epoch, step by step; images left over at its end are not used in it.

    The windows of a bucketed order are made when they are reached, so a training waits for the first one only.
    """

    def __init__(
        self,
        num_images: int,
        seed: int,
        step_size: int,
        bucketing: Bucketing | None = None,
        balance: Balance | None = None,
    ) -> None:
        self.step_size = step_size
        self._balance = balance
        self.num_steps = (num_images if balance is None else balance.num_images) // step_size
        self._num_images = num_images
        self._seed = seed
        self._bucketing = bucketing

    def steps(self, epoch: int, first: int = 0) -> Iterator[list[int]]:
        """The image rows of each step from step `first` on."""
        order = (
            epoch_order(self._num_images, self._seed, epoch)
            if self._balance is None
            else self._balance.order(self._seed, epoch)
        )
        window = self._bucketing.window if self._bucketing else 1
        for begin in range(first - first % window, self.num_steps, window):
            end = min(begin + window, self.num_steps)
            rows = order[begin * self.step_size : end * self.step_size]
            if self._bucketing:
                rows = self._bucketing.reordered(rows, self.step_size, self._seed, epoch, begin // window)
            for step in range(max(begin, first), end):
                start = (step - begin) * self.step_size
                yield rows[start : start + self.step_size]


class StepBatchSampler(Sampler[list[Key] | list[Member]]):
    """Micro-batches of one rank. A step of an epoch holds the same images however it is split.

    Micro-batch m of rank r is the slice [(m * world + r) * b:][:b] of the step.

    Args:
        group: images that are mixed with each other, consecutive ones of the step; None for none.
        balance: repeats images of rare classes; None for each image once.

    Attributes:
        rank, world_size: of the processes that share each step.
        epoch: the epoch that the next iteration yields.
        skip: micro-batches to leave out at its start; set back to 0 by the iteration.
    """

    def __init__(
        self,
        num_images: int,
        seed: int,
        *,
        batch_size: int,
        accumulation: int,
        world_size: int = 1,
        rank: int = 0,
        bucketing: Bucketing | None = None,
        group: int | None = None,
        balance: Balance | None = None,
    ) -> None:
        self._batch_size = batch_size
        self._group = group
        self.world_size = world_size
        self.rank = rank
        self.accumulation = accumulation
        self.order = EpochOrder(num_images, seed, batch_size * accumulation * world_size, bucketing, balance)
        self.epoch = 0
        self.skip = 0

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return self.order.num_steps

    def __len__(self) -> int:
        return self.num_steps * self.accumulation

    def __iter__(self) -> Iterator[list[Key] | list[Member]]:
        epoch, skip, self.skip = self.epoch, self.skip, 0
        first_step, first_micro = divmod(skip, self.accumulation)
        for step, rows in enumerate(self.order.steps(epoch, first_step), first_step):
            keys: list[Any] = (
                [(epoch, row) for row in rows]
                if self._group is None
                else self.members(epoch, step, rows, self._group)
            )
            for micro in range(first_micro, self.accumulation):
                yield self.micro_batch(keys, micro, self.rank)
            first_micro = 0

    def micro_batch(self, rows: list[_T], micro: int, rank: int) -> list[_T]:
        """The images of one micro-batch of one rank out of those of its step."""
        start = (micro * self.world_size + rank) * self._batch_size
        return rows[start : start + self._batch_size]

    def members(self, epoch: int, step: int, rows: list[int], group: int) -> list[Member]:
        """The images of a step with their groups."""
        groups = [tuple(rows[i : i + group]) for i in range(0, len(rows), group)]
        return [
            Member(epoch, step * len(groups) + number, own, place)
            for number, own in enumerate(groups)
            for place in range(len(own))
        ]

    def all_micro_batches(self, rows: list[int]) -> list[list[int]]:
        """The micro-batches of all ranks out of the images of their step."""
        return [rows[i : i + self._batch_size] for i in range(0, len(rows), self._batch_size)]


class EvaluationBatchSampler(Sampler[list[int]]):
    """Every image once over all ranks, without padding duplicates; ranks differ by one image at most.

    Images are in the order of the data set: sorting by shape would save padding, but padding changes DETR's
    logits, so scores would no longer be the published ones.
    """

    def __init__(self, num_images: int, batch_size: int, world_size: int = 1, rank: int = 0) -> None:
        self._rows = range(rank, num_images, world_size)
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self._rows), self._batch_size):
            yield list(self._rows[start : start + self._batch_size])


@dataclass(frozen=True)
class PaddingShare:
    """What padding costs: pixels of the padded batches over pixels of the images in them.

    Attributes:
        padded: pixels of the batches.
        useful: pixels of the images.
    """

    padded: int
    useful: int

    @property
    def ratio(self) -> float:
        """At least 1; 2 means that half of what the network computes is padding."""
        return self.padded / self.useful


def padding_share(sampler: StepBatchSampler, final_size: FinalSize, epoch: int, steps: int) -> PaddingShare:
    """Of the first `steps` steps of an epoch, over all ranks; nothing is decoded."""
    padded = useful = 0
    for number, rows in enumerate(sampler.order.steps(epoch)):
        if number == steps:
            break
        for batch in sampler.all_micro_batches(rows):
            sizes = [final_size((epoch, row)) for row in batch]
            padded += len(sizes) * max(h for h, _ in sizes) * max(w for _, w in sizes)
            useful += sum(h * w for h, w in sizes)
    return PaddingShare(padded, useful)
