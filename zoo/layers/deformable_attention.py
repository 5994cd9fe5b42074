"""Multi-scale deformable attention (arXiv 2010.04159, equation 3), in plain torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def multi_scale_deformable_attention(values: Sequence[Tensor], locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples over all levels and points; zero outside the map.

    Args:
        values: one [B*M, D, H, W] map a level, M heads of D channels.
        locations: [B, Q, M, levels, points, 2] (x, y) in [0, 1] of each map.
        weights: [B, Q, M, levels, points], softmax already applied.

    Returns:
        [B, Q, M*D]
    """
    batch, queries = locations.shape[:2]
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # [B*M, Q, levels, points, 2]
    weight = weights.transpose(1, 2).flatten(0, 1)  # [B*M, Q, levels, points]
    total: Tensor | None = None
    for level, value in enumerate(values):
        sampled = F.grid_sample(value, grid[:, :, level], mode="bilinear", align_corners=False)
        weighted = (sampled * weight[:, None, :, level]).sum(-1)  # [B*M, D, Q]
        total = weighted if total is None else total + weighted
    assert total is not None
    return total.view(batch, -1, queries).transpose(1, 2)


class DeformableAttention(nn.Module):
    """Attention of queries to a few points around their reference on each level.

    Sources: fundamentalvision/Deformable-DETR@11169a6 models/ops/modules/ms_deform_attn.py,
    lyuwenyu/RT-DETR@068dfde rtdetr_pytorch/src/zoo/rtdetr/rtdetr_decoder.py
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim ({dim}) must be divisible by num_heads ({num_heads})")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets start as a compass of unit directions times 1..points, attention as uniform."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.num_heads, dtype=torch.float32) * (2.0 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().max(-1, keepdim=True).values
        distance = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        compass = direction[:, None, None, :] * distance[None, None, :, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(compass.expand(-1, self.num_levels, -1, -1).reshape(-1))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        references: Tensor,
        memory: Tensor,
        sizes: Sequence[tuple[int, int]],
        padding: Tensor | None = None,
    ) -> Tensor:
        """Attends from `query` [B, Q, dim] to `memory` [B, S, dim].

        Args:
            query: content plus position.
            references: points (x, y) or boxes cxcywh in [0, 1] of each padded map: [B, Q, 2 or 4], the
                same on every level, or [B, Q, levels, 2 or 4].
            memory: maps of all levels, flattened row-major and concatenated.
            sizes: (H, W) of each level; their products sum to S.
            padding: [B, S] bool, True where values are to be zero.
        """
        batch, queries, dim = query.shape
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        offsets = self.sampling_offsets(query).view(batch, queries, heads, levels, points, 2)
        weights = self.attention_weights(query).view(batch, queries, heads, levels * points).softmax(-1)
        if references.dim() == 3:
            references = references[:, :, None]
        locations = sampling_locations(references[:, :, None, :, None], offsets, sizes)
        value = self.value_proj(memory)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        value = value.view(batch, -1, heads, dim // heads)
        maps = [
            part.permute(0, 2, 3, 1).reshape(batch * heads, dim // heads, height, width)
            for part, (height, width) in zip(
                value.split([h * w for h, w in sizes], dim=1), sizes, strict=True
            )
        ]
        weights = weights.view(batch, queries, heads, levels, points)
        return self.output_proj(multi_scale_deformable_attention(maps, locations, weights))


def sampling_locations(references: Tensor, offsets: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Where to sample, [B, Q, M, levels, points, 2].

    Args:
        references: [B, Q, 1, levels or 1, 1, 2 or 4].
        offsets: [B, Q, M, levels, points, 2], in pixels of the level around a point, in half box sizes
            divided by the number of points around a box.
        sizes: (H, W) of each level.
    """
    if references.shape[-1] == 4:
        return references[..., :2] + offsets / offsets.shape[-2] * references[..., 2:] * 0.5
    # (W, H), the order of the offsets; the official code had it reversed until 2020-12-07
    pixels = torch.tensor([(width, height) for height, width in sizes], dtype=offsets.dtype)
    return references + offsets / pixels.to(offsets.device, non_blocking=True)[:, None]
