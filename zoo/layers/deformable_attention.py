"""Multi-scale deformable attention (arXiv 2010.04159, equation 3), in plain torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from zoo.layers.onednn import PointwiseLinear
from zoo.layers.precision import full

Sampling = Literal["bilinear", "discrete"]


def multi_scale_deformable_attention(
    value: Tensor, sizes: Sequence[tuple[int, int]], locations: Sequence[Tensor], weights: Sequence[Tensor]
) -> Tensor:
    """Weighted sum of bilinear samples over all levels and points; zero outside the map.

    Args:
        value: [B, S, M, D], M heads of D channels; maps of all levels, row-major and concatenated.
        sizes: (H, W) of each level; their products sum to S.
        locations: of each level [B, Q, M, points, 2] (x, y) in [0, 1] of its map; levels may differ in points.
        weights: of each level [B, Q, M, points], softmax already applied.

    Returns:
        [B, Q, M*D], at least float32
    """
    # a place of 16 bits is pixels off; and weighted sums of samples lose what rounding each one loses
    value, locations, weights = full(value), [full(x) for x in locations], [full(x) for x in weights]
    if _eager_on_cpu(value, *locations, *weights):
        return sample_rows(value, sizes, locations, weights)
    return sample_maps(value, sizes, locations, weights)


def sample_maps(
    value: Tensor, sizes: Sequence[tuple[int, int]], locations: Sequence[Tensor], weights: Sequence[Tensor]
) -> Tensor:
    """`multi_scale_deformable_attention` by grid_sample, level by level."""
    batch, _, heads, width = value.shape
    queries = locations[0].shape[1]
    parts = value.split([h * w for h, w in sizes], dim=1)
    total: Tensor | None = None
    for part, size, places, shares in zip(parts, sizes, locations, weights, strict=True):
        grid = (2 * places - 1).transpose(1, 2).flatten(0, 1)  # [B*M, Q, points, 2]
        weight = shares.transpose(1, 2).flatten(0, 1)  # [B*M, Q, points]
        level_map = part.permute(0, 2, 3, 1).reshape(batch * heads, width, *size)
        sampled = F.grid_sample(level_map, grid, mode="bilinear", align_corners=False)
        weighted = (sampled * weight[:, None]).sum(-1)  # [B*M, D, Q]
        total = weighted if total is None else total + weighted
    assert total is not None
    return total.view(batch, -1, queries).transpose(1, 2)


def sample_rows(
    value: Tensor, sizes: Sequence[tuple[int, int]], locations: Sequence[Tensor], weights: Sequence[Tensor]
) -> Tensor:
    """`multi_scale_deformable_attention` as weighted sums of rows, half the cost on a CPU.

    The D channels of a pixel and head are a row in memory, so the four corners of all samples of a query
    are one sum of rows; grid_sample reads each channel on its own, and its samples are written out.
    """
    pixels, shares = corners(sizes, locations, weights)
    return sum_of_rows(value, pixels.long(), shares)


def sample_nearest(
    value: Tensor, sizes: Sequence[tuple[int, int]], locations: Sequence[Tensor], weights: Sequence[Tensor]
) -> Tensor:
    """Weighted sum of the pixels next to each location, [B, Q, M*D]: RT-DETRv2's discrete sampling.

    No gradient reaches the locations. As in the official code x is clamped to the height of the map, which
    is its width too where the published models are used; in a map that is higher than wide, to its width.
    Source: lyuwenyu/RT-DETR@068dfde rtdetrv2_pytorch/src/zoo/rtdetr/utils.py
    """
    value, shares = full(value), full(torch.cat(list(weights), -1))
    pixels, start = [], 0
    for (height, width), places in zip(sizes, locations, strict=True):
        x = (places[..., 0] * width + 0.5).long().clamp(0, min(height, width) - 1)
        y = (places[..., 1] * height + 0.5).long().clamp(0, height - 1)
        pixels.append(y * width + x + start)
        start += height * width
    return sum_of_rows(value, torch.cat(pixels, -1), shares)


def sum_of_rows(value: Tensor, pixels: Tensor, shares: Tensor) -> Tensor:
    """[B, Q, M*D]: `value` [B, S, M, D] at `pixels` [B, Q, M, n] int64, times `shares` [B, Q, M, n], summed."""
    batch, tokens, heads, width = value.shape
    queries = pixels.shape[1]
    image, head = (torch.arange(n, device=value.device) for n in (batch, heads))
    start = image[:, None, None, None] * (tokens * heads) + head[:, None]
    rows = (batch * queries * heads, -1)
    index = pixels.mul(heads).add_(start).view(rows)
    table, shares = value.reshape(-1, width), shares.reshape(rows)
    if _eager_on_cpu(value, shares):
        summed: Tensor = _SumOfRows.apply(table, index, shares)
    else:
        summed = (table[index] * shares[..., None]).sum(1)
    return summed.view(batch, queries, heads * width)


def _eager_on_cpu(*tensors: Tensor) -> bool:
    """Full precision on a CPU, and not captured by what reads a graph."""
    captured = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    exact = {x.dtype for x in tensors} in ({torch.float32}, {torch.float64})
    return tensors[0].device.type == "cpu" and exact and not captured


def corners(
    sizes: Sequence[tuple[int, int]], locations: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Pixels around every sample and their shares, [B, Q, M, 4 x points of all levels] each.

    Pixels are counted over all levels, as whole floats. Those outside their map have a share of 0.
    """
    pixels, shares, start = [], [], 0
    for (height, width), places, weight in zip(sizes, locations, weights, strict=True):
        # rounded as grid_sample rounds: a sample on a pixel must have the same neighbours
        grid = 2 * places - 1
        x = (grid[..., 0] + 1) * (width / 2) - 0.5
        y = (grid[..., 1] + 1) * (height / 2) - 0.5
        left, top = x.detach().floor(), y.detach().floor()
        right_share, bottom_share = x - left, y - top
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

    `num_points` is the number on every level, or one for each; `discrete` sampling takes the nearest pixel, so
    that offsets do not learn and are frozen.

    Sources: fundamentalvision/Deformable-DETR@11169a6 models/ops/modules/ms_deform_attn.py,
    lyuwenyu/RT-DETR@068dfde rtdetr_pytorch/src/zoo/rtdetr/rtdetr_decoder.py
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int | Sequence[int],
        sampling: Sampling = "bilinear",
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim ({dim}) must be divisible by num_heads ({num_heads})")
        self.num_heads = num_heads
        self.sample = sample_nearest if sampling == "discrete" else multi_scale_deformable_attention
        self.points = [num_points] * num_levels if isinstance(num_points, int) else list(num_points)
        if len(self.points) != num_levels:
            raise ValueError(f"num_points ({self.points}) must have a number for each of {num_levels} levels")
        self.sampling_offsets = PointwiseLinear(dim, num_heads * sum(self.points) * 2)
        self.attention_weights = PointwiseLinear(dim, num_heads * sum(self.points))
        self.value_proj: nn.Module = PointwiseLinear(dim, dim)
        self.output_proj: nn.Module = PointwiseLinear(dim, dim)
        if sampling == "discrete":
            self.sampling_offsets.requires_grad_(False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets start as a compass of unit directions times 1..points, attention as uniform."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.num_heads, dtype=torch.float32) * (2.0 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().max(-1, keepdim=True).values
        distance = torch.cat([torch.arange(1, n + 1, dtype=torch.float32) for n in self.points])
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((direction[:, None] * distance[:, None]).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            assert isinstance(projection, nn.Linear)
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
        heads = self.num_heads
        offsets = self.sampling_offsets(query).view(batch, queries, heads, -1, 2)
        weights = self.attention_weights(query).view(batch, queries, heads, -1).softmax(-1)
        locations = self.locations(references, full(offsets).split(self.points, dim=-2), sizes)
        value = self.value_proj(memory)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        value = value.view(batch, -1, heads, dim // heads)
        return self.output_proj(self.sample(value, sizes, locations, weights.split(self.points, dim=-1)))

    def locations(
        self, references: Tensor, offsets: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """See `sampling_locations`."""
        return sampling_locations(references, offsets, sizes)


class UnprojectedAttention(DeformableAttention):
    """D-FINE's: the memory itself is sampled, and what the heads find is not mixed. References are boxes.

    Source: Peterande/D-FINE@4a1f73a src/zoo/dfine/dfine_decoder.py
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int | Sequence[int]) -> None:
        super().__init__(dim, num_heads, num_levels, num_points)
        self.value_proj = nn.Identity()
        self.output_proj = nn.Identity()
        # the official code keeps these as float32 numbers, whatever it computes in
        self.shares = [float(np.float32(1 / n)) for n in self.points]

    def locations(
        self, references: Tensor, offsets: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """See `sampling_locations`."""
        centre, size = references[:, :, None, None].split(2, dim=-1)
        return [
            centre + offset * share * size * 0.5 for offset, share in zip(offsets, self.shares, strict=True)
        ]


def sampling_locations(
    references: Tensor, offsets: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Where to sample on each level, [B, Q, M, points, 2].

    Args:
        references: [B, Q, 2 or 4], the same on every level, or [B, Q, levels, 2 or 4].
        offsets: of each level [B, Q, M, points, 2], in pixels of the level around a point, in half box sizes
            divided by the number of points around a box.
        sizes: (H, W) of each level.
    """
    each = [references] * len(sizes) if references.dim() == 3 else references.unbind(2)
    locations = []
    for reference, offset, (height, width) in zip(each, offsets, sizes, strict=True):
        centre, size = reference[:, :, None, None, :2], reference[:, :, None, None, 2:]
        if reference.shape[-1] == 4:
            locations.append(centre + offset / offset.shape[-2] * size * 0.5)
        else:
            # (W, H), the order of the offsets; the official code had it reversed until 2020-12-07
            pixels = torch.tensor((width, height), dtype=offset.dtype)
            locations.append(centre + offset / pixels.to(offset.device, non_blocking=True))
    return locations
