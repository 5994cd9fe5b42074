"""Position encodings."""

from __future__ import annotations

import math

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


def sine_2d(padding: Tensor, dim: int, shift: float, temperature: float = 10000.0) -> Tensor:
    """DETR's encoding of the unpadded part of each map: [B, dim, H, W] float32, y channels first.

    Positions count from 1 along each axis, are moved by `shift`, and are scaled so that the last valid
    one is 2 pi; sin and cos alternate over channels.
    Sources: facebookresearch/detr@29901c5 models/position_encoding.py (shift 0),
    fundamentalvision/Deformable-DETR@11169a6 models/position_encoding.py (shift -0.5)

    Args:
        padding: [B, H, W] bool, True on padding.
        dim: channels, half for each axis.
        shift: added to every position.
        temperature: base of the frequencies.
    """
    valid = ~padding
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=padding.device)
    period = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / half)
    parts = []
    for axis in (1, 2):
        position = valid.cumsum(axis, dtype=torch.float32)
        last = position.narrow(axis, -1, 1)
        angle = ((position + shift) / (last + 1e-6) * (2 * math.pi))[..., None] / period
        parts.append(torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1).flatten(-2))
    return torch.cat(parts, dim=-1).permute(0, 3, 1, 2)
