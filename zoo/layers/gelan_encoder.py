"""D-FINE's hybrid encoder (arXiv 2410.13842, §3): RT-DETR's with GELAN fusion and halving in two steps.

Source: Peterande/D-FINE@4a1f73a src/zoo/dfine/hybrid_encoder.py. Module names are the published state-dict keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.layers.hybrid_encoder import ConvNorm, EncoderConfig, FusionBlock, HybridEncoder, RepVggBlock


class DepthwiseConvNorm(ConvNorm):
    """A 3x3 convolution of stride 2, channel by channel, and batch normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)
        self.conv = nn.Conv2d(channels, channels, 3, 2, padding=1, groups=channels, bias=False)


class SplitDown(nn.Module):
    """Halves a map: 1x1 convolution, then a depth-wise one, no activation (SCDown of arXiv 2405.14458)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.cv1 = ConvNorm(channels_in, channels_out, 1)
        self.cv2 = DepthwiseConvNorm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H/2, W/2], rounded up."""
        return self.cv2(self.cv1(x))


class SplitBlock(nn.Module):
    """A CSP block whose two parts come of one convolution, as DEIMv2 has it; see `FusionBlock`."""

    def __init__(self, channels_in: int, channels_out: int, num_blocks: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels_in, 2 * channels_out, 1, activate=True)
        self.bottlenecks = nn.Sequential(*[RepVggBlock(channels_out) for _ in range(num_blocks)])

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H, W]."""
        kept, refined = self.conv1(x).chunk(2, 1)
        return kept + self.bottlenecks(refined)


class GelanBlock(nn.Module):
    """Generalised efficient layer aggregation (arXiv 2402.13616): what each part makes of the last is kept.

    Args:
        channels_in: of the map.
        channels_out: of the result; twice as many are split into two parts.
        inner: of the two parts that are computed.
        num_blocks: RepVGG blocks in each of them.
        split: with `SplitBlock`, else with `FusionBlock`.
        convolve: a 3x3 convolution ends both of them.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        inner: int,
        num_blocks: int,
        split: bool = False,
        convolve: bool = True,
    ) -> None:
        super().__init__()
        self.cv1 = ConvNorm(channels_in, 2 * channels_out, 1, activate=True)
        self.cv2 = nn.Sequential(*_part(channels_out, inner, num_blocks, split, convolve))
        self.cv3 = nn.Sequential(*_part(inner, inner, num_blocks, split, convolve))
        self.cv4 = ConvNorm(2 * (channels_out + inner), channels_out, 1, activate=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H, W]."""
        whole = self.cv1(x)
        second = self.cv2(whole.chunk(2, 1)[1])
        return self.cv4(torch.cat([whole, second, self.cv3(second)], 1))


def _part(
    channels_in: int, channels_out: int, num_blocks: int, split: bool, convolve: bool
) -> list[nn.Module]:
    if split:
        block: nn.Module = SplitBlock(channels_in, channels_out, num_blocks)
    else:
        block = FusionBlock(channels_in, channels_out, num_blocks, expansion=1.0)
    return [block, ConvNorm(channels_out, channels_out, 3, activate=True)] if convolve else [block]


class GelanEncoder(HybridEncoder):
    """`HybridEncoder` with D-FINE's parts. `expansion` is that of the fusion's inner channels over half of `dim`."""

    def lateral(self, config: EncoderConfig) -> nn.Module:
        """1x1, without activation."""
        return ConvNorm(config.dim, config.dim, 1)

    def downsample(self, config: EncoderConfig) -> nn.Module:
        """In two steps."""
        return nn.Sequential(SplitDown(config.dim, config.dim))

    def fusion(self, config: EncoderConfig) -> nn.Module:
        """Of concatenated neighbours."""
        return GelanBlock(2 * config.dim, config.dim, inner_channels(config), config.num_blocks)


def inner_channels(config: EncoderConfig) -> int:
    """Of a fusion block."""
    return round(config.expansion * config.dim // 2)
