"""Full-size networks against the official names, shapes, counts, frozen parameters and optimizer groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from zoo.training.schedule import Schedule
from zoo.verification.cases import Comparison, compare_exact

Group = tuple[float, float, str]  # learning rate, weight decay, parameter


def compare_structure(
    facts: Mapping[str, Any],
    network: nn.Module,
    rules: Schedule,
    our_name: Callable[[str], str],
    official_groups: Iterable[Group],
) -> list[Comparison]:
    """Compares a network without weights.

    Args:
        facts: a json of `structure/`.
        network: ours, built from the recipe; the rules freeze what they freeze.
        rules: the recipe's schedule.
        our_name: of an official state-dict key.
        official_groups: rates of every trained parameter, under our names.
    """
    groups = rules.groups(network.named_parameters())
    parameters = dict(network.named_parameters())
    named = dict(network.named_parameters(remove_duplicate=False))  # a shared tensor has several names
    kind = {n: "parameter" if n in named else "buffer" for n in network.state_dict()}
    tensors = {n: (list(v.shape), kind[n]) for n, v in network.state_dict().items()}
    trained = {n: p for n, p in parameters.items() if p.requires_grad}
    return [
        compare_exact("tensors", tensors, {our_name(n): (s, what) for n, s, _, what in facts["state_dict"]}),
        compare_exact("parameters", _count(parameters.values()), facts["params_total"]),
        compare_exact("trainable parameters", _count(trained.values()), facts["params_requires_grad"]),
        compare_exact(
            "frozen",
            parameters.keys() - trained.keys(),
            {our_name(n) for n in facts["param_names_requires_grad_false"]},
        ),
        compare_exact(
            "optimizer groups",
            {(g["lr"], g["weight_decay"], n) for g in groups for n in g["param_names"]},
            set(official_groups),
        ),
    ]


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)
