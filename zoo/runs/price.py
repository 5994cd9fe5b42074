"""What a training costs with a cut of its step: memory and time, from few steps on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from datamodules.images.decodable import usable_cores
from zoo.contract.input_limits import Size
from zoo.runs import step_cost, trainer_options
from zoo.runs.console import counted
from zoo.runs.cuts import Cut
from zoo.runs.step_cost import StepCost
from zoo.training.module import DetectionModule

FREE = 0.1  # share of the memory that is left for what is not counted: workspaces, fragments, other processes
NOT_MEASURED = "not measured"


class Price:
    """Measures at most once what is asked for."""

    def __init__(
        self, recipe: Mapping[str, Any], module: DetectionModule, on_gpu: bool, elsewhere: bool, wanted: bool
    ) -> None:
        self._module, self._wanted = module, wanted
        self._precision = recipe["trainer"].get("precision")
        self.elsewhere = elsewhere  # GPUs train, and this machine has none
        self._gpu = on_gpu and not elsewhere
        self._typical, self._largest = step_cost.training_sizes(recipe)
        self._costs: dict[tuple[int, Size], StepCost] = {}

    def memory_here(self) -> int | None:
        """Of a GPU of this machine, or what is free of its main memory."""
        return torch.cuda.get_device_properties(0).total_memory if self._gpu else step_cost.free_memory()

    def memory_model(self) -> tuple[float, float]:
        """(bytes without images, bytes an image), from micro-batches of one and of two.

        Raises:
            ValueError: nothing is to be measured.
        """
        if not self._wanted:
            raise ValueError(
                "what fits into a memory has to be measured: leave --no-measure out, or give --batch-size N"
            )
        one, two = (self._cost(images, self._largest).bytes for images in (1, 2))
        return 2 * one - two, max(1, two - one)

    def too_small(self, budget: int | None) -> str:
        """Why there is no cut."""
        fixed, each = self.memory_model()
        return (
            f"one image of {size_text(self._largest)} needs {gigabytes(fixed + each)} of memory, and of "
            f"{gigabytes(budget or 0)} a tenth is left free; use smaller images or larger devices"
        )

    def of(self, cut: Cut, step_seconds: float | None, budget: int | None) -> dict[str, Any]:
        """The fields of a plan that are measured."""
        found: dict[str, Any] = {}
        if budget is not None:
            fixed, each = self.memory_model()
            found["memory"] = int(fixed + each * cut.batch_size)
            how = (
                "the most that was allocated"
                if self._gpu
                else "an estimate on a CPU: what is kept for the backward pass"
            )
            found["memory_from"] = f"from 1 and 2 images of {size_text(self._largest)}, {how}"
        if step_seconds is not None:
            return found | {"step_seconds": step_seconds, "measured": "as given"}
        if self.elsewhere:
            return found | {"measured": f"{NOT_MEASURED}: no GPU here; give it with --step-seconds"}
        return found | (self._time(cut) if self._wanted else {})

    def _time(self, cut: Cut) -> dict[str, Any]:
        where = torch.cuda.get_device_name(0) if self._gpu else f"CPU, {counted(usable_cores(), 'core')}"
        alone = (
            "" if cut.devices == 1 else ", on one device: what the others add in communication is not in it"
        )
        if self._gpu:
            cost = self._cost(cut.batch_size, self._typical)
            micro, sizes = cost.seconds, f"{counted(cut.batch_size, 'image')}"
        else:  # a large batch may take minutes, and more memory than there is
            one, cost = (self._cost(images, self._typical) for images in (1, 2))
            micro = one.seconds + (cut.batch_size - 1) * max(0.0, cost.seconds - one.seconds)
            sizes = "1 and 2 images"
        return {
            "step_seconds": cut.accumulation * micro + cost.update_seconds,
            "measured": f"{where}, {sizes} of {size_text(self._typical)}{alone}",
            "watts": cost.watts,
        }

    def _cost(self, images: int, size: Size) -> StepCost:
        if (images, size) not in self._costs:
            device = "cuda" if self._gpu else "cpu"
            self._module.to(device)
            precision = partial(trainer_options.autocast, self._precision, device)
            self._costs[images, size] = step_cost.measure(self._module, images, size, precision)
        return self._costs[images, size]


def size_text(size: Size) -> str:
    """`640x480`, height first."""
    return "x".join(map(str, size))


def gigabytes(number: float) -> str:
    """With one decimal."""
    return f"{number / 1e9:.1f} GB"
