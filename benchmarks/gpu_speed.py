"""Training and inference on a GPU against transformers, for `gpu.py`."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from pairs import PAIRS, build, difference
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from train_step import FAMILIES, PADDED, our_step, random_batch, reasonable_norms, recipe_module, their_step

from zoo.contract.batch import Batch, unlabelled
from zoo.runs.bench_cases import compiled_network
from zoo.training.module import DetectionModule

Row = dict[str, Any]
BATCHES = (16, 8, 4, 2)  # the first that the card's memory holds
OBJECTS = 8  # of an image
SIZES = {"detr": (800, 1066), "deformable_detr": (800, 1066), "rt_detr": (640, 640), "dfine": (640, 640)}
INFERENCE = ("rt_detr_r18", "detr_r50", "dfine_s", "deformable_detr_r50", "rt_detr_r50", "dfine_l")


@dataclass(frozen=True)
class Setting:
    """Where a part runs, and whether it only shows that it does."""

    device: torch.device
    tiny: bool

    def bf16(self) -> AbstractContextManager[Any]:
        """Autocast."""
        return torch.autocast(self.device.type, torch.bfloat16)

    def matrix_rate(self, dtype: torch.dtype) -> float:
        """Floating-point operations a second of one large product."""
        side = 256 if self.tiny else 8192
        a = torch.randn(side, side, device=self.device, dtype=dtype)
        runs = 1 if self.tiny else 20
        times = timed(lambda: a @ a, runs, self.device)
        return 2 * side**3 / statistics.median(times) * 1000


def attempt(what: Row, measure: Callable[[], Row]) -> Row:
    """The row, with the text of the error if there was one."""
    try:
        return {**what, **measure()}
    except Exception as error:
        return {**what, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
    finally:
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run: Callable[[], object], runs: int, device: torch.device) -> list[float]:
    """Milliseconds of each run; of several, after two that do not count."""
    times = []
    for index in range(-2 if runs > 1 else 0, runs):
        wait(device)
        begun = time.perf_counter()
        run()
        wait(device)
        if index >= 0:
            times.append(1000 * (time.perf_counter() - begun))
    return times


def peak_gb(device: torch.device, run: Callable[[], object]) -> float | None:
    """The most memory that tensors took while it ran; None on a CPU."""
    if device.type != "cuda":
        run()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    run()
    wait(device)
    return torch.cuda.max_memory_allocated(device) / 2**30


# -- training -------------------------------------------------------------------------------------


def training(setting: Setting) -> Iterator[Row]:
    """Whole steps in bf16 at the published size: forward, loss, backward, clipping, AdamW, average.

    The share is of the rate that one large bf16 product reaches on the card; three times the operations of the
    evaluation network's forward count as those of a step.
    """
    rate = setting.matrix_rate(torch.bfloat16)
    for name in ("dfine",) if setting.tiny else FAMILIES:
        yield attempt(
            {"family": name, "recipe": FAMILIES[name].recipe}, lambda n=name: steps(n, rate, setting)
        )


def steps(name: str, rate: float, setting: Setting) -> Row:
    """Ours and theirs, each alone on the card, at the first batch that both hold."""
    family = FAMILIES[name]
    size = (64, 64) if setting.tiny else SIZES[name]
    torch.manual_seed(0)
    module, model = (
        recipe_module(family, setting.tiny),
        family.model(**(family.tiny[1] if setting.tiny else {})),
    )
    for network in (module.network, model):
        reasonable_norms(network)
    if family.from_theirs is not None:
        module.network.load_state_dict(family.from_theirs(model.state_dict()))
        if module.ema is not None:
            module.ema.restart(module.network)
    operations = forward_operations(module, size)
    decay = None if module.ema is None else module.ema.config.decay
    for images in (2,) if setting.tiny else BATCHES:
        batch = random_batch(size, module.num_classes, name in PADDED, (OBJECTS,) * images).to(setting.device)

        def ours(batch: Batch = batch) -> Callable[[], None]:
            return our_step(module.to(setting.device), batch, setting.bf16)[0]

        def theirs(batch: Batch = batch) -> Callable[[], None]:
            schedule = replace(module.schedule, rules=family.rules)
            return their_step(model.to(setting.device), schedule, batch, decay, setting.bf16)[0]

        try:
            row: Row = {"images": images, "size": list(size)}
            for who, make in (("ours", ours), ("transformers", theirs)):
                row[who] = step_row(make(), images, 3 * operations, rate, setting)
                (module if who == "ours" else model).cpu()
                release()
        except torch.OutOfMemoryError:
            module.cpu(), model.cpu()
            release()
            continue
        return {**row, "ratio": row["transformers"]["ms"] / row["ours"]["ms"]}
    raise MemoryError(f"the card holds not even {BATCHES[-1]} images")


def step_row(step: Callable[[], None], images: int, operations: int, rate: float, setting: Setting) -> Row:
    """Time, throughput, share of the matrix rate and memory of one side."""
    memory = peak_gb(setting.device, step)
    milliseconds = statistics.median(timed(step, 1 if setting.tiny else 8, setting.device))
    return {
        "ms": milliseconds,
        "images_per_second": 1000 * images / milliseconds,
        "share_of_matrix_rate": operations * images / (milliseconds / 1000) / rate,
        "peak_memory_gb": memory,
    }


def forward_operations(module: DetectionModule, size: tuple[int, int]) -> int:
    """Two for each multiply-add of the evaluation network on one image."""
    image = unlabelled([torch.zeros(3, *size)], [size])
    learning = [p for p in module.parameters() if p.requires_grad]
    for parameter in learning:  # the counter's hooks fail on a view of one that needs a gradient
        parameter.requires_grad_(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module.predictions(image)
    for parameter in learning:
        parameter.requires_grad_(True)
    return int(counter.get_total_flops())


def release() -> None:
    """Gives memory back that nothing refers to."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


# -- inference ------------------------------------------------------------------------------------


def inference(setting: Setting) -> Iterator[Row]:
    """Normalised images on the device to raw predictions, in bf16, against transformers eager with equal weights.

    What compiles takes longest, so it comes last.
    """
    names = INFERENCE[: 1 if setting.tiny else None]
    for name in names:
        yield from eager(name, setting)
    for name in names:
        yield attempt(
            {"network": name, "way": "ours, compiled, CUDA graphs"}, lambda n=name: graphed(n, setting)
        )


def eager(name: str, setting: Setting) -> Iterator[Row]:
    """How far outputs are apart in float32, and a row for each side and batch size."""
    built: list[Any] = []

    def prepare() -> Row:
        built.extend(one.to(setting.device) for one in build(name, setting.tiny))
        return {"float32_output_difference": difference(*built, random_images(1, name, setting))}

    yield attempt({"network": name}, prepare)
    if len(built) < 2:
        return
    module, model = built
    for count in (1,) if setting.tiny else (1, 8):
        batch = random_images(count, name, setting)
        mask = (~batch.padding).long()

        @torch.no_grad()
        def theirs(batch: Batch = batch, mask: Tensor = mask) -> object:
            return model(pixel_values=batch.images, pixel_mask=mask)

        def ours(batch: Batch = batch) -> object:
            return module.predictions(batch)

        for way, run in (("transformers, eager", theirs), ("ours, eager", ours)):
            what = {"network": name, "way": way, "images": count}
            yield attempt(what, lambda r=run, n=count: run_row(r, n, setting))


def graphed(name: str, setting: Setting) -> Row:
    """Ours as one compiled graph of one image."""
    torch._dynamo.reset()
    module = build(name, setting.tiny)[0].to(setting.device)
    options = {"backend": "eager"} if setting.tiny else {"mode": "reduce-overhead"}
    network, batch = compiled_network(module, **options), random_images(1, name, setting)
    return {"images": 1, **run_row(lambda: network(batch), 1, setting)}


def run_row(run: Callable[[], object], images: int, setting: Setting) -> Row:
    """First run, median, slowest, memory."""

    def once() -> None:
        with setting.bf16():
            run()

    begun = time.perf_counter()
    memory = peak_gb(setting.device, once)
    first = time.perf_counter() - begun
    times = sorted(timed(once, 1 if setting.tiny else 50, setting.device))
    return {
        "first_seconds": first,
        "ms": statistics.median(times),
        "slowest_ms": times[-1],
        "images_per_second": 1000 * images / statistics.median(times),
        "peak_memory_gb": memory,
    }


def random_images(count: int, name: str, setting: Setting) -> Batch:
    """Normalised noise of the network's size on the device."""
    size = (64, 64) if setting.tiny else PAIRS[name].size
    pixels = torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(0))
    return unlabelled(list(pixels), [size] * count).to(setting.device)
