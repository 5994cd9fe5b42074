"""`zoo plan`: how a recipe's step is cut for these devices, whether that is the published training, and its price."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datamodules.images.decodable import usable_cores
from zoo.runs import recipes, schema, step_cost, trainer_options
from zoo.runs.building import Recipe
from zoo.runs.console import Console, Silent, counted
from zoo.runs.cuts import Cut, Published, cuts, steps_of
from zoo.runs.options.batch_size import parse as parse_batch_size
from zoo.runs.price import FREE, NOT_MEASURED, Price, gigabytes
from zoo.runs.train import refuse_missing_data
from zoo.training.module import DetectionModule

UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class Plan:
    """A cut of the recipe's step for some devices, and what the training costs with it.

    Attributes:
        recipe: as it was named; several that are merged; none if its values were given.
        published: what the recipe says of a step.
        cut: the best there is.
        others: for other numbers of devices, worse ones.
        workers: processes that load data, for each device.
        differences: why the gradients are not the published ones; empty where they are.
        notes: what else is to be known.
        steps_per_epoch, steps: of the optimizer.
        overrides: of the recipe, for `zoo fit`.
        step_seconds: of an optimizer step, None where it was not measured.
        measured: how the time was got, in words.
        memory: bytes of a device, None where it was not asked for.
        memory_from: how it was got, in words.
        watts: of one card, None where it does not tell.
    """

    recipe: tuple[str, ...]
    published: Published
    cut: Cut
    others: tuple[Cut, ...]
    workers: int
    differences: tuple[str, ...]
    notes: tuple[str, ...]
    steps_per_epoch: int
    steps: int
    overrides: dict[str, Any]
    step_seconds: float | None = None
    measured: str = NOT_MEASURED
    memory: int | None = None
    memory_from: str = NOT_MEASURED
    watts: float | None = None

    @property
    def hours(self) -> float | None:
        """Of all steps; validations are not among them."""
        return None if self.step_seconds is None else self.steps * self.step_seconds / 3600

    @property
    def kilowatt_hours(self) -> float | None:
        """Of the cards alone."""
        if self.hours is None or self.watts is None:
            return None
        return self.hours * self.watts * self.cut.devices / 1000

    def command(self) -> str:
        """The line that trains it."""
        told = (
            (key, value if isinstance(value, str) else json.dumps(value))
            for key, value in self.overrides.items()
        )
        options = [f"--{key} {shlex.quote(value)}" for key, value in told]
        return " ".join(["zoo fit", *(f"--config {shlex.quote(name)}" for name in self.recipe), *options])

    def document(self) -> dict[str, Any]:
        """Plain values."""
        values = asdict(self) | {"equivalent": not self.differences}
        return values | {
            "hours": self.hours,
            "kilowatt_hours": self.kilowatt_hours,
            "command": self.command(),
        }


def plan(
    recipe: recipes.Given,
    *,
    devices: int | None = None,
    memory: str | int | None = None,
    batch_size: int | str | None = None,
    images: int | None = None,
    step_seconds: float | None = None,
    measure: bool = True,
    overrides: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Plan:
    """Cuts a recipe's step for some devices so that it stays the published one as far as they allow.

    >>> from zoo.runs.plan import plan
    >>> found = plan("rt_detr/r18_coco_72e", devices=2, batch_size=8, images=118287, measure=False)
    >>> found.cut.devices * found.cut.batch_size * found.cut.accumulation, found.steps
    (16, 532224)

    Args:
        recipe: of `zoo.recipe`, or what that takes.
        devices: most of a node; None for the recipe's.
        memory: of one GPU, such as `24GB`, in bytes if a number; means that GPUs train. None for those of this
            machine, if a batch size is to be found.
        batch_size: most images that a device processes at a time; `auto` for what its memory holds, None for the
            recipe's.
        images: of the training set, where the data are not at hand.
        step_seconds: of an optimizer step, measured elsewhere.
        measure: whether some steps are trained to measure memory and time.
        overrides: dotted keys and their values.
        console: where the plan is told; None tells nothing.

    Raises:
        ValueError, OSError: the recipe or the data are at fault, or no cut keeps the step on these devices.
    """
    console = console or Silent()
    for option, given in (("devices", devices), ("images", images), ("step-seconds", step_seconds)):
        if given is not None and not given > 0:
            raise ValueError(f"--{option} is {given}; it must be above 0")
    written, values = recipes.read(recipe), recipes.read(recipe, overrides)
    schema.check(values)
    trainer, arguments = values["trainer"], values["data"]["init_args"]
    on_gpu = memory is not None or trainer_options.on_gpu(trainer.get("accelerator"))
    if devices is None:
        devices = devices_of(trainer, on_gpu)
    count = images if images is not None else images_of(values)
    module = step_cost.trial_module(values)
    price = Price(values, module, on_gpu, on_gpu and not torch.cuda.is_available(), measure)
    budget = bytes_of(memory) if memory is not None else None
    if budget is None and batch_size == "auto":
        budget = price.memory_here()
    most = cap(arguments["batch_size"] if batch_size is None else batch_size, budget, price, on_gpu)
    published = published_step(written, module)
    global_batch = module.schedule.global_batch_size
    synchronise = bool(trainer.get("sync_batchnorm")) and on_gpu
    found = cuts(global_batch, published, devices, int(trainer.get("num_nodes", 1)), most, synchronise)
    if not found:
        raise ValueError(price.too_small(budget))
    best, *others = found
    epoch, steps = steps_of(
        count,
        best,
        trainer.get("max_epochs"),
        trainer.get("max_steps", -1),
        trainer.get("limit_train_batches"),
    )
    workers = int(arguments["num_workers"])
    if not price.elsewhere:
        workers = min(workers, max(1, usable_cores() // best.devices))
    chosen = Plan(
        recipe=_names(recipe), published=published, cut=best, others=tuple(others), workers=workers,
        differences=tuple(best.differences(published)),
        notes=tuple(notes_of(values, module, best, devices, global_batch, count)),
        steps_per_epoch=epoch, steps=steps,
        overrides={**(overrides or {}), "data.batch_size": best.batch_size,
                   "trainer.devices": best.devices // int(trainer.get("num_nodes", 1)), "data.num_workers": workers},
        **price.of(best, step_seconds, budget),
    )  # fmt: skip
    tell(chosen, console)
    return chosen


def _names(recipe: recipes.Given) -> tuple[str, ...]:
    if isinstance(recipe, Mapping):
        return ()
    return (str(recipe),) if isinstance(recipe, (str, Path)) else tuple(map(str, recipe))


def devices_of(trainer: Mapping[str, Any], on_gpu: bool) -> int:
    """Devices of a node that a recipe's trainer would use here."""
    told = trainer.get("devices", "auto")
    if isinstance(told, list):
        return len(told)
    if str(told).isdigit():
        return int(told)
    return max(1, torch.cuda.device_count()) if on_gpu else 1


def images_of(recipe: recipes.Recipe) -> int:
    """Images of the training set.

    Raises:
        FileNotFoundError: it is not here.
    """
    try:
        refuse_missing_data(recipe)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}, or the number of its training images with --images N") from None
    data = Recipe(recipe).datamodule()
    data.setup("fit")
    return data.images_of_epoch


def bytes_of(memory: str | int) -> int:
    """`24GB`, `24 GiB` or a number of bytes.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(memory, int) and memory > 0:
        return memory
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d+)?)\s*([KMGT]i?B)\s*", str(memory), re.IGNORECASE)
    if match is None:
        raise ValueError(f"--memory {memory!r:.40} is no size of a memory; write it as 24GB or 24GiB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def published_step(written: Mapping[str, Any], module: DetectionModule) -> Published:
    """What the recipe says as it was written."""
    arguments = written["data"]["init_args"]
    whole = int(written["model"]["init_args"]["schedule"]["global_batch_size"])
    micro = min(int(arguments["batch_size"]), whole)
    statistics = whole if written["trainer"].get("sync_batchnorm") else micro
    contract = arguments["input"]
    return Published(
        global_batch=whole,
        micro_batch=micro,
        statistics=statistics if has_batch_statistics(module) else None,
        padded=contract["resize"] != "stretch" and contract.get("padding", "batch") == "batch",
    )


def has_batch_statistics(module: DetectionModule) -> bool:
    """Whether a norm of the network looks at the batch."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.network.modules())


def notes_of(
    recipe: Mapping[str, Any], module: DetectionModule, cut: Cut, devices: int, global_batch: int, images: int
) -> list[str]:
    """What else is to be known of a cut."""
    notes = []
    whole = devices * int(recipe["trainer"].get("num_nodes", 1))
    if whole > cut.devices:
        divided = global_batch % whole == 0
        why = f"{whole} " + (
            "give another gradient" if divided else f"do not divide a step of {global_batch}"
        )
        notes.append(f"{cut.devices} of {counted(whole, 'device')} used: {why}")
    if images % global_batch:
        notes.append(f"{counted(images % global_batch, 'image')} left over in each epoch, others each time")
    if any(isinstance(part, nn.Dropout) and part.p for part in module.network.modules()):
        notes.append("dropout draws other masks in another cut, of the same distribution")
    return notes


def cap(most: int | str, budget: int | None, price: Price, on_gpu: bool) -> Callable[[int], int]:
    """{devices: images that one of them can process at a time}.

    Args:
        most: a number, or `auto` for as many as the memory holds.
        budget: bytes of a GPU, or of the main memory; None where it is not looked at.
        price: measures.
        on_gpu: each device has a memory of its own.
    """
    parse_batch_size(most)
    if budget is None:
        if most == "auto":
            raise ValueError("--batch-size auto needs the memory of a device: give it with --memory 24GB")
        return lambda devices: int(most)

    def fits(devices: int) -> int:
        share = (1 - FREE) * budget / (1 if on_gpu else devices)
        fixed, each = price.memory_model()
        held = int((share - fixed) // each) if share > fixed else 0
        return held if most == "auto" else min(int(most), held)

    return fits


def tell(plan: Plan, console: Console) -> None:
    """The plan on the terminal."""
    published, cut = plan.published, plan.cut
    statistics = "" if published.statistics is None else f", batch statistics of {published.statistics}"
    named = " + ".join(plan.recipe) or "as given"
    console.say(f"recipe      {named}: steps of {counted(published.global_batch, 'image')}{statistics}")
    rows = [
        (
            "*" if one is cut else "", one.devices, one.batch_size, one.accumulation, one.images,
            "as published" if not one.differences(published) else
            "not equivalent: " + "; ".join(one.differences(published)),
        )
        for one in (cut, *plan.others)
    ]  # fmt: skip
    console.table(("", "devices", "images each", "times", "a step", "gradient"), rows)
    console.say(f"steps       {plan.steps_per_epoch} an epoch, {plan.steps} in all")
    time = plan.measured
    if plan.step_seconds is not None:
        time = f"{plan.step_seconds:.3g} s a step ({time})"
    console.say(f"time        {time}")
    hours, energy = plan.hours, plan.kilowatt_hours
    console.say(
        f"training    {NOT_MEASURED if hours is None else f'{hours:.3g} hours, validations not counted'}"
    )
    console.say(
        f"energy      {NOT_MEASURED if energy is None else f'{energy:.3g} kWh, {plan.watts:.0f} W a card'}"
    )
    if plan.memory is not None:
        console.say(f"memory      {gigabytes(plan.memory)} a device ({plan.memory_from})")
    for note in plan.notes:
        console.say(f"note        {note}")
    if plan.recipe:
        console.say(f"next: {plan.command()}")
