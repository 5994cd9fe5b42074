"""RT-DETR's hybrid encoder (arXiv 2304.08069, §4.2): attention on the coarsest map, then fusion.

Source: lyuwenyu/RT-DETR@068dfde rtdetr_pytorch/src/zoo/rtdetr/hybrid_encoder.py. Module names are the
published state-dict keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.memory_format import to_map, to_tokens
from zoo.layers.onednn import use_onednn
from zoo.layers.position import sincos_2d
from zoo.layers.recompute import recomputed


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Sizes of the hybrid encoder.

    Attributes:
        dim: channels of every map.
        num_heads, ffn_dim: of the one attention layer on the coarsest map.
        expansion: hidden channels of the fusion blocks over `dim`.
        num_blocks: RepVGG blocks in each fusion block (3 in all published models).
    """

    dim: int
    num_heads: int
    ffn_dim: int
    expansion: float
    num_blocks: int


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation, optionally SiLU."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, activate: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels_in, channels_out, kernel, stride, padding=(kernel - 1) // 2, bias=False
        )
        self.norm = nn.BatchNorm2d(channels_out)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H/stride, W/stride]."""
        x = self.norm(self.conv(x))
        return F.silu(x) if self.activate else x


class RepVggBlock(nn.Module):
    """3x3 and 1x1 ConvNorm in parallel, summed, SiLU; no identity branch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        return F.silu(self.conv1(x) + self.conv2(x))


class FusionBlock(nn.Module):
    """CSP block of RepVGG blocks that fuses two concatenated maps."""

    def __init__(self, channels_in: int, channels_out: int, num_blocks: int, expansion: float) -> None:
        super().__init__()
        hidden = int(channels_out * expansion)
        self.conv1 = ConvNorm(channels_in, hidden, 1, activate=True)
        self.conv2 = ConvNorm(channels_in, hidden, 1, activate=True)
        self.bottlenecks = nn.Sequential(*[RepVggBlock(hidden) for _ in range(num_blocks)])
        self.conv3 = (
            nn.Identity() if hidden == channels_out else ConvNorm(hidden, channels_out, 1, activate=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H, W]."""
        return self.conv3(self.bottlenecks(self.conv1(x)) + self.conv2(x))


class EncoderLayer(nn.Module):
    """Post-norm transformer layer with GELU; position is added to queries and keys."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """[B, S, dim] to the same shape; position [S, dim]."""
        located = tokens + position
        tokens = self.norm1(tokens + self.self_attn(located, located, tokens, need_weights=False)[0])
        return self.norm2(tokens + self.linear2(F.gelu(self.linear1(tokens))))


class TokenEncoder(nn.Module):
    """A stack of encoder layers; exists for its published key, `encoder.0.layers.0`."""

    def __init__(self, layer: EncoderLayer) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer])

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """[B, S, dim] to the same shape."""
        for layer in self.layers:
            tokens = recomputed(layer, tokens, position)
        return tokens


class HybridEncoder(nn.Module):
    """Backbone maps to as many fused maps of `dim` channels.

    A later family replaces the parts that it makes otherwise: `lateral`, `downsample`, `fusion` and `join`.
    """

    def __init__(self, channels: Sequence[int], config: EncoderConfig) -> None:
        super().__init__()
        dim, levels = config.dim, len(channels)
        self.dim = dim
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, dim, 1, bias=False), nn.BatchNorm2d(dim)) for c in channels
        )
        self.encoder = nn.ModuleList([TokenEncoder(EncoderLayer(dim, config.num_heads, config.ffn_dim))])
        self.lateral_convs = nn.ModuleList(self.lateral(config) for _ in range(levels - 1))
        self.fpn_blocks = nn.ModuleList(self.fusion(config) for _ in range(levels - 1))
        self.downsample_convs = nn.ModuleList(self.downsample(config) for _ in range(levels - 1))
        self.pan_blocks = nn.ModuleList(self.fusion(config) for _ in range(levels - 1))
        use_onednn(self)

    def lateral(self, config: EncoderConfig) -> nn.Module:
        """Before a map is enlarged; its output is also what the way back up meets."""
        return ConvNorm(config.dim, config.dim, 1, activate=True)

    def downsample(self, config: EncoderConfig) -> nn.Module:
        """Halves a map."""
        return ConvNorm(config.dim, config.dim, 3, stride=2, activate=True)

    def fusion(self, config: EncoderConfig) -> nn.Module:
        """Of a map with its joined neighbour to `dim` channels, see `join`."""
        return FusionBlock(2 * config.dim, config.dim, config.num_blocks, config.expansion)

    def join(self, moved: Tensor, other: Tensor) -> Tensor:
        """An enlarged or halved map with the one of its new size."""
        return torch.cat([moved, other], dim=1)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps fine to coarse [B, C_i, H_i, W_i] to [B, dim, H_i, W_i]."""
        maps = [project(f) for project, f in zip(self.input_proj, features, strict=True)]
        maps[-1] = self.attend(maps[-1])
        return self.bottom_up(self.top_down(maps))

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention over all positions of the coarsest map."""
        height, width = x.shape[-2:]
        position = sincos_2d(height, width, self.dim).to(x)
        return to_map(self.encoder[0](to_tokens(x), position), height, width)

    def top_down(self, maps: list[Tensor]) -> list[Tensor]:
        """Feature pyramid, coarse to fine; the activated laterals are what the way back up meets."""
        inner = [maps[-1]]
        steps = zip(reversed(maps[:-1]), self.lateral_convs, self.fpn_blocks, strict=True)
        for low, lateral, fuse in steps:
            inner[0] = lateral(inner[0])
            upsampled = F.interpolate(inner[0], scale_factor=2.0, mode="nearest")
            inner.insert(0, recomputed(fuse, self.join(upsampled, low)))
        return inner

    def bottom_up(self, inner: list[Tensor]) -> list[Tensor]:
        """Path aggregation, fine to coarse."""
        outer = [inner[0]]
        steps = zip(inner[1:], self.downsample_convs, self.pan_blocks, strict=True)
        for high, downsample, fuse in steps:
            outer.append(recomputed(fuse, self.join(downsample(outer[-1]), high)))
        return outer
