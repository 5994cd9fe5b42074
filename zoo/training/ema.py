"""Exponential moving average of a network, RT-DETR's ramp included."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Decay and length of its ramp: d(n) = decay * (1 - exp(-n / warmup_steps)); 0 warm-up steps for no ramp."""

    decay: float
    warmup_steps: int

    def decay_at(self, update: int) -> float:
        """Decay of the update with number `update`, counted from 1."""
        if not self.warmup_steps:
            return self.decay
        return self.decay * (1 - math.exp(-update / self.warmup_steps))


class ModelEma(nn.Module):
    """A second copy of the network that follows the first.

    It is a copy rather than swapped weights so that an interruption during validation can never
    save one for the other. Floating-point buffers (BatchNorm statistics) are averaged too, integer
    ones copied. Source: lyuwenyu/RT-DETR@068dfde rtdetr_pytorch/src/optim/ema.py
    """

    updates: Tensor

    def __init__(self, network: nn.Module, config: EmaConfig) -> None:
        super().__init__()
        self.config = config
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.count = 0  # host copy of `updates`, so that an update costs no sync

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Moves the average towards `network`; call once after each optimizer step."""
        self.count += 1
        self.updates.fill_(self.count)
        decay = self.config.decay_at(self.count)
        # a tensor that several names share is averaged under each of them, as in the source, but once in a call
        rounds: list[tuple[list[Tensor], list[Tensor]]] = []
        times: Counter[int] = Counter()
        for average, value in zip(
            self.network.state_dict().values(), network.state_dict().values(), strict=True
        ):
            if not average.is_floating_point():
                average.copy_(value)
                continue
            turn = times[average.data_ptr()]
            times[average.data_ptr()] += 1
            if turn == len(rounds):
                rounds.append(([], []))
            rounds[turn][0].append(average)
            rounds[turn][1].append(value)
        for averages, values in rounds:
            torch._foreach_lerp_(averages, values, 1 - decay)

    @torch.no_grad()
    def restart(self, network: nn.Module) -> None:
        """Starts again from `network`, e.g. after weights were loaded into it."""
        self.network.load_state_dict(network.state_dict())
        self.count = 0
        self.updates.zero_()

    def train(self, mode: bool = True) -> ModelEma:
        """The average is only ever evaluated."""
        return super().train(False)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.count = int(self.updates)
