"""Learning rates and averages of weights over a run, against official ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.training.ema import EmaConfig, ModelEma
from zoo.training.schedule import Schedule
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
    decays = torch.tensor(
        [config.decay_at(n) for n in range(len(case["ema_decay_at_update"]))], dtype=torch.float64
    )
    weights = case["ema_example/weights"]
    holder = nn.Linear(2, 2, bias=False).double()
    holder.weight.data.copy_(weights[0])
    ema = ModelEma(holder, config)
    averages = []
    for value in weights[1:]:
        holder.weight.data.copy_(value)
        ema.update(holder)
        averages.append(ema.network.state_dict()["weight"].clone())
    return [
        compare("EMA decay", decays, case["ema_decay_at_update"], 1e-12),
        compare("EMA example", torch.stack(averages), case["ema_example/ema_after_update"], 1e-12),
    ]
