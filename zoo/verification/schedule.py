"""Learning rates and averages of weights over a run, against official ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.training.ema import EmaConfig, ModelEma
from zoo.training.schedule import ParamRule, Schedule, flat_cosine
from zoo.verification.cases import Case, Comparison, compare


def compare_rates(
    what: str, schedule: Schedule, rates: Sequence[float], official: Tensor, steps: int
) -> Comparison:
    """The learning rate of every epoch and group.

    Args:
        what: name of the comparison.
        schedule: ours.
        rates: of each group before any drop.
        official: [epochs, groups].
        steps: optimizer steps of an epoch.
    """
    epochs = len(official)
    factors = [schedule.factor(epoch * steps, steps, epochs * steps) for epoch in range(epochs)]
    ours = torch.tensor([[rate * f for rate in rates] for f in factors], dtype=torch.float64)
    return compare(what, ours, official, 1e-12)


def compare_ema(case: Case, config: EmaConfig) -> list[Comparison]:
    """The decay of 5000 updates, and the average of a small weight."""
    return [
        compare_decay(config, case["ema_decay_at_update"]),
        compare_average(config, case["ema_example/weights"], case["ema_example/ema_after_update"]),
    ]


def compare_decay(config: EmaConfig, official: Tensor) -> Comparison:
    """The decay of every update from 0 on."""
    decays = torch.tensor([config.decay_at(n) for n in range(len(official))], dtype=torch.float64)
    return compare("EMA decay", decays, official, 1e-12)


def compare_average(config: EmaConfig, weights: Tensor, official: Tensor) -> Comparison:
    """The average [n, 2, 2] after every update of a weight that begins as `weights[0]`."""
    holder = nn.Linear(2, 2, bias=False).double()
    holder.weight.data.copy_(weights[0])
    ema = ModelEma(holder, config)
    averages = []
    for value in weights[1:]:
        holder.weight.data.copy_(value)
        ema.update(holder)
        averages.append(ema.network.state_dict()["weight"].clone())
    return compare("EMA example", torch.stack(averages), official, 1e-12)


def compare_schedules(case: Case) -> list[Comparison]:
    """What D-FINE and DEIMv2 do over a training: rates of every size at every stored step, the average, its restart."""
    results = []
    for size, config in case.facts["schedules"].items():
        schedule, rates = schedule_of(config), group_rates(config)
        table = config["lr_table"]
        per_epoch = table.get("iterations_per_epoch", 1000)
        steps = case[f"lr/{size}/iteration"].tolist()
        total = table.get("total_iterations", config["epochs"] * per_epoch)
        factors = [schedule.factor(step, per_epoch, total) for step in steps]
        ours = torch.tensor([[rate * factor for rate in rates] for factor in factors], dtype=torch.float64)
        results.append(compare(f"lr {size}", ours, case[f"lr/{size}/lr"], 1e-12))
        results.append(compare_decay(_average_of(config), case["ema/decay_at_update"]))
    for name in sorted(
        {key.split("/")[1] for key in case.arrays if key.startswith("flat_cosine/")} - {"iteration"}
    ):
        results.append(_compare_flat_cosine(case, name))
    used = case["ema/example/decay_used"]
    example = EmaConfig(decay=0.9999, warmup_steps=4)
    decays = torch.tensor([example.decay_at(n + 1) for n in range(len(used))], dtype=torch.float64)
    return [
        *results,
        compare("decay after the restart", decays, used, 1e-12),
        compare_average(example, case["ema/example/weights"], case["ema/example/ema_after_update"]),
    ]


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    """Ours for an official configuration of D-FINE or DEIMv2, its groups by their official patterns.

    A pattern that matches no parameter has to be left out, see `Schedule.groups`.
    """
    official = config["optimizer"]
    common: dict[str, Any] = {
        "lr": official["lr"],
        "weight_decay": official["weight_decay"],
        "betas": tuple(official["betas"]),
        "rules": [
            ParamRule(
                match=group["params"].removesuffix(".*$"),  # a search has no need of it
                lr=group.get("lr"),
                weight_decay=group.get("weight_decay"),
            )
            for group in official["params"]
        ],
        "global_batch_size": config["total_batch_size"],
        "restart_epoch": config["collate_fn"]["stop_epoch"],
    }
    idle = config["lr_warmup_scheduler"]["warmup_duration"]
    if config["lrsheduler"] is None:
        return Schedule(**common, warmup_steps=idle, drop_epochs=config["lr_scheduler"]["milestones"])
    return Schedule(
        **common,
        warmup_steps=config["warmup_iter"],
        drop_epochs=[],
        decay="flat_cosine",
        flat_epochs=config["flat_epoch"],
        tail_epochs=config["no_aug_epoch"],
        final_factor=config["lr_gamma"],
        first_factor=1 / idle,
    )


def group_rates(config: Mapping[str, Any]) -> list[float]:
    """The base rate of each official group, the parameters that no pattern matches last."""
    official = config["optimizer"]
    return [*(group.get("lr", official["lr"]) for group in official["params"]), official["lr"]]


def _average_of(config: Mapping[str, Any]) -> EmaConfig:
    return EmaConfig(decay=config["ema"]["decay"], warmup_steps=config["ema"]["warmups"])


def _compare_flat_cosine(case: Case, name: str) -> Comparison:
    total, warmup, flat, tail, base, low = case[f"flat_cosine/{name}/args"].tolist()
    ours = [
        base * flat_cosine(
            step, warmup=int(warmup), flat=int(flat), tail=int(tail), total=int(total), low=low / base
        )
        for step in case["flat_cosine/iteration"].tolist()
    ]  # fmt: skip
    official = case[f"flat_cosine/{name}/lr"]
    return compare(f"flat cosine {name}", torch.tensor(ours, dtype=torch.float64), official, 1e-12)
