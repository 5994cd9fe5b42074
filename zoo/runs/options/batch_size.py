"""`--batch-size auto`: the largest micro-batch that a device holds, found before the first step.

Each process tries on its own device, before the processes are connected; then all take the smallest of their numbers.
The step keeps its images: what does not fit at a time is accumulated.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from datamodules.base import DetectionDataModule
from zoo.contract.input_limits import Size
from zoo.runs import step_cost
from zoo.runs.console import Console, counted
from zoo.runs.price import FREE, gigabytes, size_text
from zoo.runs.recipes import Recipe
from zoo.training.module import DetectionModule

STEPS = 2  # of a trial: the optimizer's state is there from the first on


def parse(given: int | str | None) -> int | str | None:
    """`auto`, or a whole number of at least 1.

    Raises:
        ValueError: neither.
    """
    if given is None or given == "auto":
        return given
    if not str(given).isdigit() or int(given) < 1:
        raise ValueError(f"--batch-size is {given!r:.40}; it must be auto, or a whole number of at least 1")
    return int(given)


class BatchSearch(Callback):
    """Finds `data.batch_size`, and writes it into the recipe instead of `computing.search_batch`.

    Args:
        recipe: complete; is changed.
        data: gets the number.
        console: for the user.
        done: called with the changed recipe when all processes have agreed.
    """

    def __init__(
        self, recipe: Recipe, data: DetectionDataModule, console: Console, done: Callable[[], None]
    ) -> None:
        self._recipe, self._data, self._console, self._done = recipe, data, console, done

    def search(self, trainer: Trainer, module: DetectionModule) -> None:
        """Of this process's device.

        Raises:
            ValueError: not one image fits.
        """
        whole = module.schedule.global_batch_size
        if whole % trainer.world_size:
            return  # `plan_steps` says so
        each = whole // trainer.world_size
        sizes = [n for n in range(1, each + 1) if each % n == 0]
        size = step_cost.training_sizes(self._recipe)[1]
        fullest = max(step_cost.OBJECTS, min(self._data.most_objects(), module.num_queries(module.init_args)))
        device, precision = trainer.strategy.root_device, trainer.precision_plugin.forward_context
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            found = largest(sizes, lambda n: fits(module, n, size, fullest, device, precision))
            why = f"the most of {', '.join(map(str, sizes))} that fit into nine tenths of {gigabytes(total)}"
        else:
            found, why = self._estimated(sizes, module, size, fullest, trainer, precision)
        if not found:
            raise ValueError(
                f"--batch-size auto: not one image of {size_text(size)} with {fullest} objects can be trained on: "
                f"{why}; use a smaller --image-size, --checkpointing, or a larger device"
            )
        self._data.batch_size = found
        self._why = f"{why}, tried with images of {size_text(size)} and {fullest} objects each"

    def _estimated(
        self,
        sizes: list[int],
        module: DetectionModule,
        size: Size,
        objects: int,
        trainer: Trainer,
        precision: Any,
    ) -> tuple[int, str]:
        """On a CPU, where too much memory is no error but the end of a process."""
        free = step_cost.free_memory()
        if free is None:
            fitting = [n for n in sizes if n <= self._data.batch_size]
            return max(fitting), "the recipe's, for this system does not tell its free memory"
        one, two = (
            step_cost.measure(trial(module), n, size, precision, repeats=1, objects=objects).bytes
            for n in (1, 2)
        )
        share, more = (1 - FREE) * free / trainer.world_size, max(1, two - one)
        fitting = [n for n in sizes if one + (n - 1) * more <= share]
        why = (
            f"estimated on a CPU: {one / 1e6:,.0f} MB for one image, {more / 1e6:,.0f} MB for each more, of "
            f"{gigabytes(free)} free"
        )
        return max(fitting, default=0), why

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """All processes take the smallest number."""
        if stage != "fit":
            return
        data = self._data
        if trainer.world_size > 1:
            number = torch.tensor(data.batch_size, device=trainer.strategy.root_device)
            dist.all_reduce(number, op=dist.ReduceOp.MIN)
            data.batch_size = int(number)
        arguments = self._recipe["data"]["init_args"]
        before, arguments["batch_size"] = arguments["batch_size"], data.batch_size
        self._recipe["computing"].pop("search_batch", None)
        whole: int = pl_module.schedule.global_batch_size  # type: ignore[assignment, union-attr]
        times = whole // trainer.world_size // data.batch_size
        self._console.say(
            f"batch       {counted(data.batch_size, 'image')} at a time on a device, {counted(times, 'time')} for each "
            f"step: {self._why}"
        )
        norms = [m for m in pl_module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if norms and data.batch_size != before:
            self._console.say(
                f"  batch norms take their statistics over so many images; the recipe has {before} at a time"
            )
        self._done()


def largest(sizes: list[int], fits: Callable[[int], bool]) -> int:
    """The last of the rising `sizes` that fits, 0 if none does; as few are tried as possible."""
    low, high = 0, len(sizes)  # so many are known to fit; the one at `high` is not
    while low < high:
        middle = (low + high + 1) // 2
        if fits(sizes[middle - 1]):
            low = middle
        else:
            high = middle - 1
    return sizes[low - 1] if low else 0


def fits(
    module: DetectionModule, images: int, size: Size, objects: int, device: torch.device, precision: Any
) -> bool:
    """Whether a copy of the module trains a step of so many images without running out of memory."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_per_process_memory_fraction(1 - FREE, device)
    try:
        step_cost.measure(
            trial(module).to(device),
            images,
            size,
            precision,
            repeats=STEPS,
            objects=objects,
            wait_for_power=False,
        )
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    return True


def trial(module: DetectionModule) -> DetectionModule:
    """A copy in training, which takes images at the size that they have."""
    copied = copy.deepcopy(module).train()
    if getattr(copied.network, "multi_scale", None):
        copied.network.multi_scale = []  # type: ignore[assignment]
    return copied
