"""Loaders: micro-batches that know their whole optimizer step, and evaluation batches.

Neither is a torch DataLoader: Lightning would put its own sampler into one.
"""

from __future__ import annotations

import atexit
import math
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from datamodules.loading.datasets import EvaluationDataset, TrainingDataset
from datamodules.loading.samplers import StepBatchSampler
from datamodules.loading.tiled_evaluation import TiledEvaluationDataset
from datamodules.shards.reader import ShardStore
from zoo.contract.batch import Batch, Sample, Step, collate


def one_thread(worker: int) -> None:
    """Workers share the cores: more threads in each only make them wait for each other."""
    torch.set_num_threads(1)


def collate_in_place(samples: list[Sample]) -> Batch:
    """`collate`; in a worker it writes into the shared memory that the main process reads.

    A batch of images is tens of megabytes, and the copy into shared memory that a worker makes of anything
    else costs as much as the collating itself.
    """
    return collate(samples) if get_worker_info() is None else collate(samples, _shared_zeros)


def _shared_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    # as torch's default_collate does; the memory is fresh from the system, so it is zero
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize, device="cpu")
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)


class WorkerDiedError(OSError):
    """A worker process was killed, mostly by the kernel for want of memory."""


_workers: WeakSet[BaseProcess] = WeakSet()  # every one that was started here


@atexit.register  # before multiprocessing's, which is older
def _end_workers() -> None:
    """Kills the workers that an error has left, at the end of the program.

    multiprocessing sends them SIGTERM and then waits for ever. One that has not come to torch's handler yet, or hangs
    before it, has the handler of the process that it was forked from, and a training's only notes the signal.
    """
    if not _workers:
        return
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would raise for each
    for worker in _workers:
        worker.kill()


def batches_of(loader: DataLoader[Sample]) -> Iterator[Batch]:
    """The loader's batches; its workers start now, not at the first batch.

    Raises:
        WorkerDiedError: a worker was killed. Exceptions that are raised inside a worker are raised as they are.
    """
    batches = iter(loader)
    _workers.update(getattr(batches, "_workers", ()))  # there is no public way
    return _checked(loader, batches)


def _checked(loader: DataLoader[Sample], batches: Iterator[Batch]) -> Iterator[Batch]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            if not str(error).startswith("DataLoader worker (pid"):
                plain = as_raised(error)
                if plain is error:
                    raise
                raise plain from error
            raise WorkerDiedError(
                f"{str(error).rstrip('. ')}. Unless it was stopped, the machine or container ran out of memory "
                f"(`dmesg` says so) or of shared memory (`docker run --shm-size`): lower num_workers "
                f"({loader.num_workers}) or the batch size"
            ) from error
        yield batch


def as_raised(error: Exception) -> Exception:
    """An exception of a worker without the worker's traceback, which torch makes a part of its message."""
    name, text = type(error).__name__, str(error)
    if not text.startswith(f"Caught {name} in DataLoader worker process"):
        return error
    ends = [match.end() for match in re.finditer(rf"^(?:[\w.]+\.)?{name}: ", text, re.MULTILINE)]
    return type(error)(text[ends[-1] :].rstrip()) if ends else error


def gather_over_ranks(facts: Tensor) -> Tensor:
    """[n] int64 of this rank to [world, n], equal on all ranks; on the GPU where NCCL needs it."""
    if not (dist.is_available() and dist.is_initialized()):
        return facts[None]
    if dist.get_backend() == "nccl":
        facts = facts.cuda()
    everywhere = [torch.empty_like(facts) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, facts)
    return torch.stack(everywhere).cpu()


class StepLoader:
    """Training micro-batches with `Batch.step` filled: reads all batches of a step before it yields the first.

    The epoch is read when the first batch is asked for, not before: on a resume Lightning restores it
    after it has made the iterator.
    """

    def __init__(
        self,
        dataset: TrainingDataset,
        sampler: StepBatchSampler,
        *,
        seed: int,
        num_workers: int,
        pad_to_step: bool,
        current_epoch: Callable[[], int],
        take_skip: Callable[[], int],
    ) -> None:
        self._sampler = sampler
        self._images = dataset.index.images
        self._seed = seed
        self._pad_to_step = pad_to_step
        self._current_epoch = current_epoch
        self._take_skip = take_skip
        self._loader: DataLoader[Sample] = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=collate_in_place,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            worker_init_fn=one_thread,
        )

    def __len__(self) -> int:
        return len(self._sampler)

    def state_dict(self) -> dict[str, int]:
        """Empty: the position is in another part of the checkpoint and is restored by `skip_batches`.

        Lightning takes this method as the sign that a resume within an epoch is exact.
        """
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Does nothing, see `state_dict`."""

    def __iter__(self) -> Iterator[Batch]:
        epoch, skip = self._current_epoch(), self._take_skip()
        first_step, skip_inside = divmod(skip, self._sampler.accumulation)
        self._sampler.epoch = epoch
        # an interrupted step is read whole, for its object counts and sizes; the batches already used are left out
        self._sampler.skip = first_step * self._sampler.accumulation
        batches = batches_of(self._loader)  # before the cache's threads: workers are forked
        with self._filled_cache():
            for step in range(first_step, self._sampler.num_steps):
                ahead: list[Batch] = [next(batches) for _ in range(self._sampler.accumulation)]
                facts = self._step(ahead, epoch, step)
                for batch in ahead[skip_inside:]:
                    yield replace(batch.padded_to(facts.size) if self._pad_to_step else batch, step=facts)
                skip_inside = 0

    @contextmanager
    def _filled_cache(self) -> Iterator[None]:
        """Fetches remote shards into the cache in the background while an epoch runs."""
        stop = None
        if isinstance(self._images, ShardStore):
            stop = self._images.fill_cache(self._sampler.rank, self._sampler.world_size)
        try:
            yield
        finally:
            if stop is not None:
                stop.set()

    def _step(self, ahead: list[Batch], epoch: int, step: int) -> Step:
        counts = [count for batch in ahead for count in batch.targets.counts]
        sides = [max(b.images.shape[side] for b in ahead) for side in (-2, -1)]
        facts = torch.tensor([*counts, *sides], dtype=torch.int64)
        # one rank alone may look at batches, within a process group that others have made, e.g. Ray
        everywhere = facts[None] if self._sampler.world_size == 1 else gather_over_ranks(facts)
        world = len(everywhere)
        height, width = everywhere[:, -2:].amax(dim=0).tolist()
        # [world, k, b] to the order of the step, in which ranks take turns
        by_rank = everywhere[:, :-2].reshape(world, len(ahead), -1)
        counts_of_step = by_rank.transpose(0, 1).flatten()
        index = epoch * self._sampler.num_steps + step
        return Step(counts_of_step, (height, width), index, self._seed, epoch)


class EvaluationLoader:
    """Batches of this rank's share of the images, with their annotations."""

    def __init__(
        self,
        dataset: EvaluationDataset | TiledEvaluationDataset,
        batch_size: int,
        num_workers: int,
        world_size: int = 1,
        rank: int = 0,
    ) -> None:
        sampler = dataset.batches(batch_size, world_size, rank)
        # A rank without images would end validation before the others and block them, so it takes the
        # first image; the metric counts an image id once.
        share = sampler if len(sampler) else dataset.batches(batch_size, len(dataset), 0)
        self._loader: DataLoader[Sample] = DataLoader(
            dataset,
            batch_sampler=share,
            num_workers=num_workers,
            collate_fn=collate_in_place,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=one_thread,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        yield from batches_of(self._loader)
