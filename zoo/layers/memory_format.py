"""A guard against wrong batch-normalisation gradients for a batch of one.

torch 2.15's CPU kernel of `batch_norm` backward returns wrong numbers when the batch is one, the input
is contiguous and the incoming gradient has channels-last strides, which is what the backward pass of
`flatten(2).transpose(1, 2)` produces. tests/zoo/layers/test_memory_format.py shows both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _ContiguousGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous()


def to_tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] to [B, H*W, C], handing a contiguous gradient back to the map."""
    guarded: Tensor = _ContiguousGradient.apply(x)
    return guarded.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """[B, H*W, C] to a contiguous [B, C, H, W]."""
    return tokens.transpose(1, 2).unflatten(2, (height, width)).contiguous()
