"""Multi-scale deformable attention (arXiv 2010.04159, equation 3), in plain torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from zoo.layers.onednn import PointwiseLinear
from zoo.layers.precision import full


def multi_scale_deformable_attention(
    value: Tensor, sizes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples over all levels and points; zero outside the map.

    Args:
        value: [B, S, M, D], M heads of D channels; maps of all levels, row-major and concatenated.
        sizes: (H, W) of each level; their products sum to S.
        locations: [B, Q, M, levels, points, 2] (x, y) in [0, 1] of each map.
        weights: [B, Q, M, levels, points], softmax already applied.

    Returns:
        [B, Q, M*D], at least float32
    """
    # a place of 16 bits is pixels off; and weighted sums of samples lose what rounding each one loses
    value, locations, weights = full(value), full(locations), full(weights)
    captured = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    exact = value.dtype == locations.dtype == weights.dtype and value.dtype in (torch.float32, torch.float64)
    if value.device.type == "cpu" and exact and not captured:
        return sample_rows(value, sizes, locations, weights)
    return sample_maps(value, sizes, locations, weights)


def sample_maps(
    value: Tensor, sizes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """`multi_scale_deformable_attention` by grid_sample, level by level."""
    batch, _, heads, width = value.shape
    queries = locations.shape[1]
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # [B*M, Q, levels, points, 2]
    weight = weights.transpose(1, 2).flatten(0, 1)  # [B*M, Q, levels, points]
    parts = value.split([h * w for h, w in sizes], dim=1)
    total: Tensor | None = None
    for level, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        level_map = part.permute(0, 2, 3, 1).reshape(batch * heads, width, *size)
        sampled = F.grid_sample(level_map, grid[:, :, level], mode="bilinear", align_corners=False)
        weighted = (sampled * weight[:, None, :, level]).sum(-1)  # [B*M, D, Q]
        total = weighted if total is None else total + weighted
    assert total is not None
    return total.view(batch, -1, queries).transpose(1, 2)


def sample_rows(
    value: Tensor, sizes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """`multi_scale_deformable_attention` as weighted sums of rows, half the cost on a CPU.

    The D channels of a pixel and head are a row in memory, so the four corners of all samples of a query
    are one sum of rows; grid_sample reads each channel on its own, and its samples are written out.
    """
    batch, tokens, heads, width = value.shape
    queries = locations.shape[1]
    pixels, shares = corners(sizes, locations, weights)
    start = torch.arange(batch)[:, None, None, None] * (tokens * heads) + torch.arange(heads)[:, None]
    index = pixels.long().mul_(heads).add_(start)
    rows = (batch * queries * heads, -1)
    summed: Tensor = _SumOfRows.apply(value.reshape(-1, width), index.view(rows), shares.view(rows))
    return summed.view(batch, queries, heads * width)


def corners(sizes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels around every sample and their shares, [B, Q, M, 4 * levels * points] each.

    Pixels are counted over all levels, as whole floats. Those outside their map have a share of 0.
    """
    grid = 2 * locations - 1
    pixels, shares, start = [], [], 0
    for level, (height, width) in enumerate(sizes):
        # rounded as grid_sample rounds: a sample on a pixel must have the same neighbours
        x = (grid[:, :, :, level, :, 0] + 1) * (width / 2) - 0.5
        y = (grid[:, :, :, level, :, 1] + 1) * (height / 2) - 0.5
        left, top = x.detach().floor(), y.detach().floor()
        right_share, bottom_share = x - left, y - top
        weight = weights[:, :, :, level]
        columns = [(left, 1 - right_share), (left + 1, right_share)]
        rows = [(top, (1 - bottom_share) * weight), (top + 1, bottom_share * weight)]
        columns = [(c.clamp(0, width - 1), s * ((c >= 0) & (c < width))) for c, s in columns]
        rows = [(r.clamp(0, height - 1), s * ((r >= 0) & (r < height))) for r, s in rows]
        for row, row_share in rows:
            for column, column_share in columns:
                pixels.append(row * width + column + start)
                shares.append(row_share * column_share)
        start += height * width
    # where a location is nan its shares are nan too; the index only has to exist
    return torch.cat(pixels, -1).nan_to_num_(0.0), torch.cat(shares, -1)


class _SumOfRows(torch.autograd.Function):
    """table [R, D], index [N, K] int64, weight [N, K] -> [N, D]."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(table, index, weight)
        return F.embedding_bag(index, table, per_sample_weights=weight, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        table, index, weight = ctx.saved_tensors
        sums, terms = index.shape
        grad, index = grad.contiguous(), index.flatten()
        target = torch.arange(sums).repeat_interleave(terms)
        # the transposed sum as a sparse product: embedding_bag's own gradient sorts the index first
        transposed = torch.sparse_coo_tensor(
            torch.stack([index, target]), weight.flatten(), (len(table), sums), check_invariants=False
        )
        first = torch.arange(0, sums * terms, terms)
        weight_grad = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad, table, index, first, target, 0
        )
        return torch.sparse.mm(transposed, grad), None, weight_grad.view(sums, terms)


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
        self.sampling_offsets = PointwiseLinear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = PointwiseLinear(dim, num_heads * num_levels * num_points)
        self.value_proj = PointwiseLinear(dim, dim)
        self.output_proj = PointwiseLinear(dim, dim)
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
        locations = sampling_locations(references[:, :, None, :, None], full(offsets), sizes)
        value = self.value_proj(memory)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        value = value.view(batch, -1, heads, dim // heads)
        weights = weights.view(batch, queries, heads, levels, points)
        return self.output_proj(multi_scale_deformable_attention(value, sizes, locations, weights))


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
