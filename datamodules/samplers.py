"""Which images make a step, a micro-batch, an evaluation share: pure functions, no state of any process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

Key = tuple[int, int]  # (epoch, image row): what a training dataset is indexed with


def derived_seed(*facts: int) -> int:
    """A seed in [0, 2**63) that differs between different facts; the same on every machine."""
    text = "/".join(str(f) for f in facts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def epoch_order(num_images: int, seed: int, epoch: int) -> list[int]:
    """The order of the images in an epoch."""
    generator = torch.Generator().manual_seed(derived_seed(seed, epoch))
    order: list[int] = torch.randperm(num_images, generator=generator).tolist()
    return order


class StepBatchSampler(Sampler[list[Key]]):
    """Micro-batches of one rank. Step s of an epoch holds order[s * G:(s + 1) * G] however it is split.

    Micro-batch m of rank r is the slice [(m * world + r) * b:][:b] of the step. Images left over at
    the end of an epoch are not used in it.

    Attributes:
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
    ) -> None:
        self._num_images = num_images
        self._seed = seed
        self._batch_size = batch_size
        self._world_size = world_size
        self._rank = rank
        self.accumulation = accumulation
        self.step_size = batch_size * accumulation * world_size
        self.num_steps = num_images // self.step_size
        self.epoch = 0
        self.skip = 0

    def __len__(self) -> int:
        return self.num_steps * self.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, skip, self.skip = self.epoch, self.skip, 0
        order = epoch_order(self._num_images, self._seed, epoch)
        b = self._batch_size
        for batch in range(skip, len(self)):
            step, micro = divmod(batch, self.accumulation)
            start = step * self.step_size + (micro * self._world_size + self._rank) * b
            yield [(epoch, row) for row in order[start : start + b]]


class EvaluationBatchSampler(Sampler[list[int]]):
    """Every image once over all ranks, without padding duplicates; ranks differ by one image at most."""

    def __init__(self, num_images: int, batch_size: int, world_size: int = 1, rank: int = 0) -> None:
        self._rows = range(rank, num_images, world_size)
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self._rows), self._batch_size):
            yield list(self._rows[start : start + self._batch_size])
