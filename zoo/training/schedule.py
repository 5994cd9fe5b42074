"""Optimizer groups, learning rate and batch size of a run, as one object."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from zoo.storage.patterns import compiled


@dataclass(frozen=True, kw_only=True)
class ParamRule:
    """Gives parameters whose name matches its own numbers; the first rule that matches wins.

    Attributes:
        match: regular expression, searched in names such as `backbone.layer1.0.bn1.weight`.
        lr, weight_decay: null for the schedule's.
        freeze: the parameters do not train.
    """

    match: str
    lr: float | None = None
    weight_decay: float | None = None
    freeze: bool = False

    def __post_init__(self) -> None:
        compiled(self.match)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """AdamW and its learning rate over time.

    Attributes:
        lr, weight_decay: of parameters that no rule matches.
        rules: see `ParamRule`.
        warmup_steps: lr of step i is (i + 1) / warmup_steps of the base until it reaches it; quadratic with
            `flat_cosine`.
        drop_epochs: at the start of each of these epochs (from 0) the lr falls to a tenth.
        global_batch_size: images of an optimizer step, over all devices and micro-batches.
        decay: `cosine` falls from the base to `final_factor` of it at the last step; `flat_cosine` is DEIM's,
            see the function of that name.
        final_factor: see `decay`.
        betas: of AdamW.
        flat_epochs: with `flat_cosine`, epochs from the start (warm-up included) before the lr begins to fall.
        tail_epochs: with `flat_cosine`, epochs at the end that have `final_factor` of the base.
        first_factor: with `flat_cosine`, factor of step 0; the official code leaves 1/500 there.
        restart_epoch: at the start of this epoch (from 0), and after each later one that brought no gain, weights,
            average and optimizer go back to the best checkpoint of before, see `zoo.training.restart`; null
            for never.
        clip_by_group: `trainer.gradient_clip_val` bounds the norm of each optimizer group on its own, instead of that
            of all gradients together: a backbone with large gradients then does not slow down new heads.
    """

    lr: float
    weight_decay: float
    rules: list[ParamRule]
    warmup_steps: int
    drop_epochs: list[int]
    global_batch_size: int
    decay: Literal["constant", "cosine", "flat_cosine"] = "constant"
    final_factor: float = 1.0
    betas: tuple[float, float] = field(default=(0.9, 0.999))
    flat_epochs: int = 0
    tail_epochs: int = 0
    first_factor: float = 1.0
    restart_epoch: int | None = None
    clip_by_group: bool = False

    def __post_init__(self) -> None:
        own = {"flat_epochs": 0, "tail_epochs": 0, "first_factor": 1.0}
        changed = [name for name, neutral in own.items() if getattr(self, name) != neutral]
        if self.decay != "flat_cosine" and changed:
            raise ValueError(f"schedule.{changed[0]} is for decay: flat_cosine, and decay is {self.decay}")
        if self.decay == "flat_cosine" and self.drop_epochs:
            raise ValueError(
                f"schedule.drop_epochs is {self.drop_epochs} and decay: flat_cosine has none; make it []"
            )
        negative = [name for name in ("flat_epochs", "tail_epochs") if getattr(self, name) < 0]
        if negative:
            raise ValueError(
                f"schedule.{negative[0]} is {getattr(self, negative[0])}; it must not be below 0"
            )
        if self.restart_epoch is not None and self.restart_epoch < 1:
            raise ValueError(
                f"schedule.restart_epoch is {self.restart_epoch}; epochs count from 0 and the first has nothing to "
                "go back to: make it 1 or more, or null"
            )

    def groups(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> list[dict]:
        """Optimizer groups of named parameters, frozen ones switched off and left out.

        Raises:
            ValueError: a rule matches no parameter.
        """
        parameters = list(parameters)
        self.freeze(parameters)
        rules = [*self.rules, ParamRule(match="")]
        members: list[list[tuple[str, nn.Parameter]]] = [[] for _ in rules]
        used = set()
        for name, parameter in parameters:
            matching = [i for i, rule in enumerate(rules) if compiled(rule.match).search(name)]
            used.update(matching)
            if parameter.requires_grad:
                members[matching[0]].append((name, parameter))
        for i, rule in enumerate(self.rules):
            if i not in used:
                raise ValueError(
                    f"schedule.rules[{i}] (match: {rule.match!r}) matches no parameter of the network"
                )
        return [
            {
                "params": [p for _, p in group],
                "param_names": [n for n, _ in group],
                "lr": self.lr if rule.lr is None else rule.lr,
                "weight_decay": self.weight_decay if rule.weight_decay is None else rule.weight_decay,
            }
            for rule, group in zip(rules, members, strict=True)
            if group
        ]

    def freeze(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Stops the parameters that the rules freeze from training.

        To be done before DDP wraps the network: it waits for a gradient of whatever trains at that moment.
        """
        for name, parameter in parameters:
            rule = next((r for r in self.rules if compiled(r.match).search(name)), None)
            if rule is not None and rule.freeze:
                parameter.requires_grad_(False)

    def optimizer(self, network: nn.Module, fused: bool = True) -> AdamW:
        """AdamW over the groups; fused, which is 3x faster than the loop on a CPU.

        Not fused under mixed precision: there the fused one undoes the scale of the gradients itself, too
        late for clipping, and Lightning refuses the two together.
        """
        groups = self.groups(network.named_parameters())
        return AdamW(groups, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=fused)

    def factor(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        """What the base learning rate is multiplied by in optimizer step `step` (from 0)."""
        if self.decay == "flat_cosine":
            if step == 0:
                return self.first_factor
            # the official code sets the rate after a step, for the next one
            return flat_cosine(
                step - 1,
                warmup=self.warmup_steps,
                flat=self.flat_epochs * steps_per_epoch,
                tail=self.tail_epochs * steps_per_epoch,
                total=total_steps,
                low=self.final_factor,
            )
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        drops = sum(step // steps_per_epoch >= epoch for epoch in self.drop_epochs)
        factor = warm * 0.1**drops
        if self.decay == "cosine":
            progress = min(1.0, step / max(1, total_steps - 1))
            low = self.final_factor
            factor *= low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))
        return factor

    def scheduler(self, optimizer: torch.optim.Optimizer, steps_per_epoch: int, total_steps: int) -> LambdaLR:
        """Stepped once per optimizer step."""
        return LambdaLR(optimizer, lambda step: self.factor(step, steps_per_epoch, total_steps))

    def take_over(
        self, optimizer: torch.optim.Optimizer, scheduler: LambdaLR, network: nn.Module
    ) -> list[str]:
        """Gives a resumed optimizer this schedule's numbers instead of the checkpoint's; says what is another one.

        Nothing changes if the recipe, and the number of steps, are those of the checkpoint.
        """
        changes: list[str] = []
        own = self.groups(network.named_parameters())
        for i, (group, new) in enumerate(zip(optimizer.param_groups, own, strict=True)):
            rate = new["lr"] * scheduler.lr_lambdas[i](scheduler.last_epoch)
            for name, value in (("lr", rate), ("weight_decay", new["weight_decay"])):
                if group[name] != value:
                    changes.append(f"{name} {group[name]:.3g} -> {value:.3g}")
                group[name] = value
            group["initial_lr"] = scheduler.base_lrs[i] = new["lr"]
            group["betas"] = self.betas
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
        return list(dict.fromkeys(changes))


def flat_cosine(step: int, *, warmup: int, flat: int, tail: int, total: int, low: float) -> float:
    """Quadratic warm-up, constant, half a cosine, and a constant tail.

    Source: Intellindust-AI-Lab/DEIMv2@0fff8d4 engine/optim/lr_scheduler.py; a `flat` beyond the end keeps the base
    to the end, tail included.

    Args:
        step: from 0.
        warmup: the factor is (step / warmup)^2 up to this step.
        flat: it is 1 up to this step, wherever the warm-up ends.
        tail: it is `low` in so many last steps.
        total: steps of the whole training.
        low: see `tail`.
    """
    if warmup and step <= warmup:
        return (step / warmup) ** 2
    if step <= flat:
        return 1.0
    if step >= total - tail:
        return low
    progress = (step - flat) / (total - tail - flat)
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))
