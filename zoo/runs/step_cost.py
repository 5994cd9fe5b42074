"""What a training step costs on this machine: time, memory and power, on made-up images."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.transforms.draws import DETR_SIDES
from zoo.contract.batch import Batch, Sample, Step, collate
from zoo.contract.input_limits import Size
from zoo.contract.preprocess import InputContract, shortest_side_size
from zoo.layers.backbone import first_convolution
from zoo.training.module import DetectionModule, build_module
from zoo.training.preflight import Precision

OBJECTS = 8  # of each made-up image, about COCO's mean
TIMED = 3  # steps, after one that is not
_STATES_OF_ADAM = 2
_POWER_SECONDS = 3.0  # a GPU is kept busy for so long, as a card tells its mean over a second


@dataclass(frozen=True)
class StepCost:
    """Of one micro-batch of `images`, and of the update after the last one of a step.

    Attributes:
        images: in the micro-batch.
        size: (h, w) of each.
        seconds: forward, loss, backward.
        update_seconds: optimizer and moving average.
        bytes: on a GPU the most that was allocated; else an estimate, see `kept_bytes`.
        watts: of the card in the meantime, None where it does not tell.
    """

    images: int
    size: Size
    seconds: float
    update_seconds: float
    bytes: int
    watts: float | None


def training_sizes(recipe: Mapping[str, Any]) -> tuple[Size, Size]:
    """(h, w) of a middling and of the largest training image of a recipe, as the network computes it."""
    data, model = recipe["data"]["init_args"], recipe["model"]["init_args"]
    contract = InputContract.from_dict(data["input"])
    if contract.resize == "stretch":
        sides = sorted(model.get("multi_scale") or [])
        if not sides:
            return contract.size, contract.size
        mean = statistics.fmean(side * side for side in sides)
        middle = min(sides, key=lambda side: abs(side * side - mean))
        return (middle, middle), (sides[-1], sides[-1])
    shortest, longest = contract.size
    drawn = statistics.median(DETR_SIDES) if data.get("train_transform") == "detr" else shortest
    return shortest_side_size(480, 640, int(drawn), longest), (shortest, longest)


def trial_module(recipe: Mapping[str, Any]) -> DetectionModule:
    """The recipe's module with random weights, which takes images at the size that they have."""
    arguments = dict(recipe["model"]["init_args"])
    if "multi_scale" in arguments:
        arguments["multi_scale"] = []
    with torch.random.fork_rng(devices=[]):
        module = build_module({**recipe["model"], "init_args": arguments}, backbone_weights="random")
    module.schedule.freeze(module.network.named_parameters())
    return module.train()


def measure(
    module: DetectionModule, images: int, size: Size, precision: Precision, repeats: int = TIMED,
    objects: int = OBJECTS, wait_for_power: bool = True,
) -> StepCost:  # fmt: skip
    """Trains on made-up images; the module is of no use afterwards.

    Args:
        module: on the device that is measured.
        images: of the micro-batch.
        size: (h, w) of each.
        precision: entered around what runs the network.
        repeats: of what is timed; the median counts.
        objects: of each image.
        wait_for_power: whether a GPU is kept busy until it has told its mean power.
    """
    device = next(module.parameters()).device
    optimizer = module.schedule.optimizer(module.network)
    channels = first_convolution(module.network).in_channels
    batch = made_up(images, size, module.num_classes, module.learns_masks, objects, channels).to(device)
    on_gpu = device.type == "cuda"
    kept = KeptTensors(module)
    times: list[float] = []
    updates: list[float] = []
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    with PowerReadings(device) as power:
        until = time.perf_counter() + (_POWER_SECONDS if on_gpu and wait_for_power else 0.0)
        while len(times) <= repeats or time.perf_counter() < until:
            begun = _now(on_gpu)
            with precision(), kept:
                losses = module.losses(batch)
                total = torch.stack([value.sum() for value in losses.values()]).sum()
            total.backward()
            done = _now(on_gpu)
            optimizer.step()
            optimizer.zero_grad()
            if module.ema is not None:
                module.ema.update(module.network)
            times.append(done - begun)
            updates.append(_now(on_gpu) - done)
    used = torch.cuda.max_memory_allocated(device) if on_gpu else kept.bytes + fixed_bytes(module)
    # the first one warms up
    return StepCost(
        images, size, statistics.median(times[1:]), statistics.median(updates[1:]), used, power.watts
    )


def _now(on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter()


def made_up(
    images: int, size: Size, classes: int, masks: bool, objects: int = OBJECTS, channels: int = 3
) -> Batch:
    """A batch of noise with so many objects an image."""
    generator = torch.Generator().manual_seed(0)
    samples = [
        Sample(
            image=torch.rand(channels, *size, generator=generator),
            labels=torch.randint(classes, (objects,), generator=generator),
            boxes=0.2 + 0.4 * torch.rand(objects, 4, generator=generator),
            image_id=number,
            original_size=size,
            masks=torch.rand(objects, *size, generator=generator) < 0.2 if masks else None,
        )
        for number in range(images)
    ]
    return replace(collate(samples), step=Step(torch.full((images,), objects), size, 0))


class KeptTensors:
    """Counts the bytes that autograd keeps for the backward pass; parameters are not among them."""

    def __init__(self, module: nn.Module) -> None:
        self.bytes = 0
        self._own = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self._seen: dict[int, int] = {}

    def __enter__(self) -> None:
        self._seen = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor)
        self._hooks.__enter__()

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)
        self.bytes = max(self.bytes, sum(self._seen.values()))

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._seen[storage.data_ptr()] = storage.nbytes()
        return tensor


def fixed_bytes(module: DetectionModule) -> int:
    """Weights, moving average, gradients and AdamW's states."""
    weights = sum(p.numel() * p.element_size() for p in module.network.parameters())
    trained = sum(p.numel() * p.element_size() for p in module.network.parameters() if p.requires_grad)
    copies = 1 if module.ema is None else 2
    return weights * copies + trained * (1 + _STATES_OF_ADAM)


class PowerReadings:
    """What nvidia-smi says of a card in the meantime; `watts` is None where it says nothing, as on a CPU."""

    watts: float | None = None

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._teller: subprocess.Popen[str] | None = None

    def __enter__(self) -> PowerReadings:
        if self._device.type == "cuda":
            self._teller = _start(f"GPU-{torch.cuda.get_device_properties(self._device).uuid}")
        return self

    def __exit__(self, *error: object) -> None:
        if self._teller is not None:
            self._teller.terminate()
            self.watts = mean_of(self._teller.communicate(timeout=10)[0])


def _start(card: str) -> subprocess.Popen[str] | None:
    command = ["nvidia-smi", f"--id={card}", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    try:
        return subprocess.Popen(
            [*command, "--loop-ms=200"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except OSError:
        return None


def mean_of(lines: str) -> float | None:
    """The mean of readings, a number a line; None without, and where one is `[N/A]`."""
    try:
        return statistics.fmean(float(line) for line in lines.split())
    except ValueError:
        return None


def free_memory() -> int | None:
    """Bytes of main memory that processes can have; None where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            rows = dict(line.split(":") for line in file)
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
