"""DEIMv2's encoders (arXiv 2509.20787): the hybrid one of sums, and the light one, which has no attention.

Semantics of Intellindust-AI-Lab/DEIMv2@0fff8d4. Module names are the
published state-dict keys, but for the input projections, which are numbered as in RT-DETR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.gelan_encoder import GelanBlock, GelanEncoder, inner_channels
from zoo.layers.hybrid_encoder import ConvNorm, EncoderConfig
from zoo.layers.onednn import use_onednn
from zoo.layers.recompute import recomputed


@dataclass(frozen=True, kw_only=True)
class SumEncoderConfig(EncoderConfig):
    """Sizes of the encoder.

    Attributes:
        kind: `hybrid` attends on the coarsest of the backbone's maps; `lite` has one map and makes another one of it.
        num_heads, ffn_dim: of the hybrid one's attention; 0 in the lite one, which has none.
        convolve: a 3x3 convolution ends both computed parts of a fusion block.
    """

    kind: Literal["hybrid", "lite"]
    convolve: bool = True
    num_heads: int = 0
    ffn_dim: int = 0

    def __post_init__(self) -> None:
        attends = self.kind == "hybrid"
        for name, value in (("num_heads", self.num_heads), ("ffn_dim", self.ffn_dim)):
            if (value > 0) is not attends:
                raise ValueError(
                    f"encoder.{name} is {value}; a {self.kind} encoder has "
                    f"{'attention: make it 1 or more' if attends else 'no attention: make it 0'}"
                )


class SumEncoder(GelanEncoder):
    """D-FINE's hybrid encoder with sums of neighbours instead of concatenations."""

    def fusion(self, config: EncoderConfig) -> nn.Module:
        """Of summed neighbours."""
        return _fusion(cast(SumEncoderConfig, config))

    def join(self, moved: Tensor, other: Tensor) -> Tensor:
        """Their sum."""
        return moved + other


class PooledMean(nn.Module):
    """Adds the mean over all places to each, then a 1x1 convolution; exists for its published key, `cv`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cv = ConvNorm(dim, dim, 1, activate=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        fused: Tensor = self.cv(x + x.mean((-2, -1), keepdim=True))
        return fused


class LiteEncoder(nn.Module):
    """One map of stride 16 to two fused ones, of strides 16 and 32."""

    def __init__(self, channels: Sequence[int], config: SumEncoderConfig) -> None:
        super().__init__()
        if len(channels) != 1:
            raise ValueError(f"a lite encoder takes one map of the backbone, not {len(channels)}")
        dim = config.dim
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, dim, 1, bias=False), nn.BatchNorm2d(dim)) for c in channels
        )
        self.down_sample1 = _halving(dim)
        self.down_sample2 = _halving(dim)
        self.bi_fusion = PooledMean(dim)
        self.fpn_block = _fusion(config)
        self.pan_block = _fusion(config)
        use_onednn(self)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """[one map [B, C, H, W]] to maps [B, dim, H, W] and [B, dim, H/2, W/2]."""
        fine = self.input_proj[0](features[0])
        coarse = self.bi_fusion(self.down_sample1(fine))
        fine = recomputed(self.fpn_block, fine + F.interpolate(coarse, scale_factor=2.0, mode="nearest"))
        return [fine, recomputed(self.pan_block, coarse + self.down_sample2(fine))]


def _halving(dim: int) -> nn.Sequential:
    """Averages 3x3 places, those outside the map as zeros, and mixes channels."""
    return nn.Sequential(
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.Conv2d(dim, dim, 1, bias=False),
        nn.BatchNorm2d(dim),
        nn.SiLU(),
    )


def _fusion(config: SumEncoderConfig) -> nn.Module:
    inner, blocks = inner_channels(config), config.num_blocks
    return GelanBlock(config.dim, config.dim, inner, blocks, split=True, convolve=config.convolve)


def build_encoder(channels: Sequence[int], config: SumEncoderConfig) -> nn.Module:
    """The encoder of `config.kind`."""
    return (SumEncoder if config.kind == "hybrid" else LiteEncoder)(channels, config)
