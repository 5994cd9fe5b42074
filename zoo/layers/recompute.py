"""Activation checkpointing: a layer keeps its input alone, and is computed again in the backward pass.

(Chen et al., arXiv 1604.06174.) The second time is the same to the bit: dropout draws the same mask, autocast is the
same, and batch norms take the statistics of the batch without moving the running ones once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def set_recompute(network: nn.Module, on: bool) -> None:
    """Whether the layers of a network that are run by `recomputed` keep their inputs alone from now on."""
    for module in network.modules():
        module.recompute = on  # type: ignore[assignment]


def recomputed(layer: nn.Module, *arguments: Any) -> Any:
    """What the layer gives; in training, where `set_recompute` says so, without keeping what is inside."""
    if not (getattr(layer, "recompute", False) and layer.training and torch.is_grad_enabled()):
        return layer(*arguments)
    return checkpoint(layer, *arguments, use_reentrant=False, context_fn=partial(_contexts, layer))


def _contexts(layer: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_kept(layer)


@contextmanager
def _statistics_kept(layer: nn.Module) -> Iterator[None]:
    """Running statistics take nothing of what is computed inside: the tensors that are kept must be as many."""
    norms = [m for m in layer.modules() if isinstance(m, _BatchNorm) and m.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
