"""The gradient of one optimizer step of 8 images, cut over ranks and micro-batches, by the real training loop.

One image is empty, one has 30 objects; where the recipe pads, sizes differ.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections import UserList
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from numpy.typing import NDArray
from tiny_families import small_arguments
from torch import Tensor, nn

from zoo.contract.batch import Batch, Sample, Step, collate
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.runs import recipes
from zoo.training.module import DetectionModule, build_module

CLASSES, QUERIES = 3, 36
COUNTS = (3, 0, 30, 1, 2, 5, 1, 4)  # objects of the images of the step
SIDES = ((64, 64), (64, 32), (32, 64), (48, 64), (56, 64), (56, 40), (48, 48), (40, 40))  # where it pads
MULTI_SCALE = [64, 96]


@dataclass(frozen=True)
class Partition:
    """How the step is cut: ranks take turns in it, as `datamodules.loading.samplers` says."""

    name: str
    ranks: int
    parts: tuple[int, ...]  # images of each micro-batch of a rank

    @property
    def images_of_a_pass(self) -> int:
        """Images that are processed at the same time, over all ranks; the fewest if they differ."""
        return self.ranks * min(self.parts)

    def bounds(self, rank: int) -> list[tuple[int, int]]:
        """(first, last + 1) of each micro-batch of a rank."""
        found, start = [], 0
        for size in self.parts:
            found.append((start + rank * size, start + (rank + 1) * size))
            start += self.ranks * size
        return found

    def bounds_of_a_pass(self, micro: int) -> tuple[int, int]:
        """(first, last + 1) of the images of all ranks in one micro-batch."""
        return self.bounds(0)[micro][0], self.bounds(self.ranks - 1)[micro][1]


WHOLE = Partition("1 x 8", 1, (8,))
PARTITIONS = (
    Partition("1 x 4, 2 times", 1, (4, 4)),
    Partition("1 x 1, 8 times", 1, (1,) * 8),
    Partition("1 x 3, 3 and 2", 1, (3, 3, 2)),
    Partition("2 ranks x 4", 2, (4,)),
    Partition("2 ranks x 2, 2 times", 2, (2, 2)),
    Partition("4 ranks x 2", 4, (2,)),
)


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        key: of the recipe.
        dtype: of network and images.
        statistics: `fixed`: BatchNorm does not look at the batch; `synchronised`: it does, at that of all ranks.
        plain: losses divided by the objects of the micro-batch (over all ranks, as the official codes do) and
            averaged over micro-batches, images padded and denoising sized by the micro-batch: what
            `accumulate_grad_batches` makes of an official training step.
        padding: `step` or `batch`, to whose largest image a micro-batch is padded.
    """

    key: str
    dtype: torch.dtype = torch.float64
    statistics: str = "fixed"
    plain: bool = False
    padding: str = "step"


class Result(NamedTuple):
    """Of one optimizer step, by the network's names."""

    gradients: dict[str, NDArray[Any]]
    statistics: dict[str, NDArray[Any]]  # running ones of BatchNorm after it


class Difference(NamedTuple):
    """Of two gradients: norm of the difference over the norm of the gradient."""

    whole: float  # all parameters together
    worst: float  # the largest of one parameter by itself, of those that matter
    worst_name: str


# Some gradients are zero but for rounding: the bias of a layer whose mean a norm takes out. Of a parameter with less
# than this share of the whole norm the ratio says nothing.
MATTERS = 1e-6


def difference(found: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> Difference:
    """How far `found` is from `expected`."""
    assert found.keys() == expected.keys()
    norms = {n: float(np.linalg.norm(g.astype(np.float64))) for n, g in expected.items()}
    apart = {n: float(np.linalg.norm(found[n].astype(np.float64) - g)) for n, g in expected.items()}
    total = float(np.linalg.norm(list(norms.values())))
    single = {n: apart[n] / norms[n] for n in norms if norms[n] >= MATTERS * total}
    worst = max(single, key=lambda name: single[name])
    return Difference(float(np.linalg.norm(list(apart.values()))) / total, single[worst], worst)


def pads(key: str) -> bool:
    """Whether images of one micro-batch of the recipe differ in size."""
    return str(recipes.load(recipes.resolve(key))["data"]["init_args"]["input"]["resize"]) != "stretch"


def has_batch_norm(key: str) -> bool:
    """Whether some norm of the network looks at the batch."""
    return any(isinstance(m, nn.BatchNorm2d) for m in small_module(Case(key)).network.modules())


def small_module(case: Case) -> DetectionModule:
    """The recipe's module, small, with more queries than an image has objects, and moved a little.

    A new network samples features at the centres of pixels, where bilinear interpolation has a kink: rounding decides
    which of two slopes is taken.
    """
    torch.manual_seed(0)
    model = recipes.load(recipes.resolve(case.key))["model"]
    arguments = small_arguments(case.key) | {"num_classes": CLASSES}
    if model["init_args"].get("multi_scale"):
        arguments["multi_scale"] = MULTI_SCALE
    if "ema" in arguments:
        arguments["ema"] = None
    # one step keeps no checkpoint that a second stage could go back to
    arguments["schedule"] = arguments["schedule"] | {"global_batch_size": len(COUNTS), "restart_epoch": None}
    kind = type(build_module(model | {"init_args": arguments}))
    *parents, last = kind.queries_key.split(".")
    node = arguments
    for parent in parents:
        node[parent] = dict(node[parent])
        node = node[parent]
    node[last] = QUERIES
    torch.manual_seed(0)
    module = build_module(model | {"init_args": arguments})
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return module.to(case.dtype)


def step_of_images(case: Case) -> Batch:
    """The undivided batch."""
    samples = []
    sides = SIDES if pads(case.key) else (SIDES[0],) * len(COUNTS)
    for number, (count, (height, width)) in enumerate(zip(COUNTS, sides, strict=True)):
        generator = torch.Generator().manual_seed(number)
        boxes = torch.rand(count, 4, generator=generator, dtype=torch.float64)
        samples.append(
            Sample(
                image=torch.rand(3, height, width, generator=generator, dtype=torch.float64).to(case.dtype),
                labels=torch.randint(CLASSES, (count,), generator=generator),
                boxes=(0.25 + 0.3 * boxes).to(case.dtype),
                image_id=number,
                original_size=(height, width),
                masks=torch.rand(count, height, width, generator=generator) < 0.3,
            )
        )
    whole = collate(samples)
    size = (int(whole.images.shape[-2]), int(whole.images.shape[-1]))
    return replace(whole, step=Step(torch.tensor(COUNTS), size, 1, seed=5))


def micro_batches(case: Case, partition: Partition, rank: int) -> list[Batch]:
    """What a rank trains on."""
    whole, batches = step_of_images(case), []
    assert whole.step is not None
    for micro, (first, last) in enumerate(partition.bounds(rank)):
        batch = whole.part(first, last)
        if case.plain or case.padding == "batch":
            batch = trimmed(batch)
        if case.plain:
            low, high = partition.bounds_of_a_pass(micro)
            batch = replace(batch, step=replace(whole.step, counts=whole.step.counts[low:high]))
        batches.append(batch)
    return batches


def trimmed(batch: Batch) -> Batch:
    """Padded to its own largest image."""
    height, width = (max(size[side] for size in batch.original_sizes) for side in (0, 1))
    masks = batch.targets.masks
    assert masks is not None
    return replace(
        batch,
        images=batch.images[..., :height, :width],
        padding=batch.padding[..., :height, :width],
        targets=batch.targets._replace(masks=masks[..., :height, :width]),
    )


class StepData(L.LightningDataModule):
    """One step, and what the training loop asks of data."""

    label_map = LabelMap.contiguous(["a", "b", "c"], [1, 2, 3])
    input = InputContract(resize="stretch", size=(64, 64))

    def __init__(self, batches: list[Batch]) -> None:
        super().__init__()
        self._batches = batches

    def plan_steps(self, global_batch_size: int, world_size: int, rank: int) -> int:
        """As they were cut."""
        return len(self._batches)

    def digest(self) -> str:
        """None."""
        return ""

    def train_dataloader(self) -> MicroBatches:
        """The rank's micro-batches."""
        return MicroBatches(self._batches)


class MicroBatches(UserList[Batch]):
    """A loader; Lightning takes a plain list for several of them."""


class SumOverRanks(torch.autograd.Function):
    """The sum over ranks; its gradient is that of all ranks' losses together."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        torch.distributed.all_reduce(total)
        return total


class AllReduceBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm by the images of all ranks, as torch's SyncBatchNorm, which refuses CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        facts = torch.cat([x.sum((0, 2, 3)), x.new_tensor([x.numel() / x.shape[1]])])
        facts = SumOverRanks.apply(facts)
        count = facts[-1].detach()
        mean = facts[:-1] / count
        centred = x - mean[:, None, None]
        variance = SumOverRanks.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.momentum is not None
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(variance.detach() * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight / (variance + self.eps).sqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


def prepare_norms(network: nn.Module, statistics: str) -> None:
    """Takes the statistics of the batch out, or makes them those of all ranks."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and statistics == "fixed":
            module.eval()
            module.train = lambda mode=True, module=module: module  # Lightning sets the mode of every part
        elif isinstance(module, nn.BatchNorm2d) and torch.distributed.is_initialized():
            module.__class__ = AllReduceBatchNorm2d


class KeepGradients(L.Callback):
    """As the optimizer would see them: gathered over micro-batches and ranks, not clipped."""

    gradients: dict[str, NDArray[Any]]

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any
    ) -> None:
        """Copies them."""
        named = pl_module.network.named_parameters()
        self.gradients = {n: p.grad.numpy().copy() for n, p in named if p.requires_grad}


def result(case: Case, partition: Partition, rank: int = 0) -> Result:
    """Trains one step; on several ranks within their process group."""
    module = small_module(case)
    module.train()
    prepare_norms(module.network, case.statistics)
    kept = KeepGradients()
    with environment_of(rank, partition.ranks), tempfile.TemporaryDirectory() as folder:
        several: dict[str, Any] = {
            "devices": partition.ranks, "plugins": [LightningEnvironment()],
            "strategy": DDPStrategy(process_group_backend="gloo"),
        }  # fmt: skip
        trainer = L.Trainer(
            accelerator="cpu", max_steps=1, callbacks=[kept], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
            limit_val_batches=0, default_root_dir=folder, **(several if partition.ranks > 1 else {"devices": 1}),
        )  # fmt: skip
        trainer.fit(module, datamodule=StepData(micro_batches(case, partition, rank)))
        assert (trainer.global_step, trainer.world_size) == (1, partition.ranks)
    if case.plain:  # the loop makes up for the division by micro-batches; a plain loss does not
        kept.gradients = {n: g / len(partition.parts) for n, g in kept.gradients.items()}
    running = {n: b.numpy().copy() for n, b in module.network.named_buffers() if "running_" in n}
    return Result(kept.gradients, running)


@contextlib.contextmanager
def environment_of(rank: int, ranks: int) -> Iterator[None]:
    """What a launcher tells a process; the process group is there already."""
    names = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1"}
    before = dict(os.environ)
    if ranks > 1:
        os.environ.update({name: str(value) for name, value in names.items()})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def results(works: list[tuple[Case, Partition]], rank: int = 0) -> list[Result | None]:
    """Those of rank 0; the others compute the same gradients and send nothing."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Lightning says of a trainer without validation
        found = [result(case, partition, rank) for case, partition in works]
    return list(found) if rank == 0 else [None] * len(found)
