"""Position encodings."""

from __future__ import annotations

import torch
from torch import Tensor


def sincos_2d(height: int, width: int, dim: int, temperature: float = 10000.0) -> Tensor:
    """RT-DETR's encoding of an `height` x `width` map: [H*W, dim] float32.

    The grid is flattened x-major although tokens are row-major, as in the official code: published
    weights were trained with it. Channels: sin x, cos x, sin y, cos y, a quarter each.
    Source: lyuwenyu/RT-DETR@068dfde rtdetr_pytorch/src/zoo/rtdetr/hybrid_encoder.py
    """
    if dim % 4:
        raise ValueError(f"dim {dim} must be divisible by 4 (sin and cos of x and y)")
    x, y = torch.meshgrid(
        torch.arange(width, dtype=torch.float32), torch.arange(height, dtype=torch.float32), indexing="ij"
    )
    frequency = 1.0 / temperature ** (torch.arange(dim // 4, dtype=torch.float32) / (dim // 4))
    angle_x = x.flatten()[:, None] * frequency
    angle_y = y.flatten()[:, None] * frequency
    return torch.cat([angle_x.sin(), angle_x.cos(), angle_y.sin(), angle_y.cos()], dim=1)
