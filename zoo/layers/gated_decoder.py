"""DEIMv2's decoder (arXiv 2509.20787): D-FINE's with RMS norms, a gated feed-forward part and positions made once.

Semantics of Intellindust-AI-Lab/DEIMv2@0fff8d4. Module names are the published state-dict keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.distribution_decoder import DistributionConfig, DistributionDecoder, DistributionLayer, Gate
from zoo.layers.mlp import MLP
from zoo.layers.precision import full


@dataclass(frozen=True, kw_only=True)
class GatedConfig(DistributionConfig):
    """Sizes of the decoder.

    Attributes:
        ffn_dim: of the first matrix of the feed-forward part; half of it are gates.
        gateway: content and what the cross-attention found are mixed by gates, else summed.
        shared_box_head: all layers have one head of distributions.
    """

    gateway: bool
    shared_box_head: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ffn_dim % 2:
            raise ValueError(f"ffn_dim ({self.ffn_dim}) must be even: half of it are gates")


class RmsNorm(nn.Module):
    """Divides by the root of the mean square of the channels (arXiv 1910.07467), in float32 or better."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to the same shape."""
        return F.rms_norm(full(x), self.scale.shape, self.scale, eps=1e-6).to(x.dtype)


class SwishFeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202): one half of what a first matrix gives, after SiLU, times the other."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, ffn_dim)
        self.w3 = nn.Linear(ffn_dim // 2, dim)
        for linear in (self.w12, self.w3):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to the same shape."""
        gates, values = self.w12(x).chunk(2, -1)
        added: Tensor = self.w3(F.silu(gates) * values)
        return added


class GatedLayer(DistributionLayer):
    """`DistributionLayer` with DEIMv2's parts."""

    norm = RmsNorm

    def make_merge(self, config: DistributionConfig) -> None:
        """A gate, or a sum and its norm."""
        if cast(GatedConfig, config).gateway:
            self.gateway = Gate(config.dim, RmsNorm)
        else:
            self.norm2 = RmsNorm(config.dim)

    def merge(self, content: Tensor, found: Tensor) -> Tensor:
        """Content with what the cross-attention found."""
        if hasattr(self, "gateway"):
            return super().merge(content, found)
        merged: Tensor = self.norm2(content + found)
        return merged

    def make_feed_forward(self, config: DistributionConfig) -> None:
        """SwiGLU."""
        self.swish_ffn = SwishFeedForward(config.dim, config.ffn_dim)

    def feed_forward(self, content: Tensor) -> Tensor:
        """What is added to the content."""
        added: Tensor = self.swish_ffn(content)
        return added


class GatedDecoder(DistributionDecoder):
    """`DistributionDecoder` whose queries are the encoder's tokens themselves."""

    make_layer = GatedLayer
    config: GatedConfig

    def make_box_heads(self, config: DistributionConfig) -> nn.ModuleList:
        """One a layer, or the same one for all: published weights have it under each layer's key."""
        if not cast(GatedConfig, config).shared_box_head:
            return super().make_box_heads(config)
        head = self.perceptron(config.dim, 4 * config.bins)
        return nn.ModuleList([head] * config.num_layers)

    def make_selection(self, config: DistributionConfig) -> None:
        """Nothing lies between the encoder's tokens and the heads that select."""
        self.enc_output = nn.Identity()
        self.query_pos_head = MLP(4, config.dim, config.dim, 3, self.activation)
        for linear in self.query_pos_head.layers:
            nn.init.xavier_uniform_(cast(nn.Linear, linear).weight)

    def positions(self, reference: Tensor, before: Tensor | None) -> Tensor:
        """Those of the selected boxes, in every layer."""
        return super().positions(reference, before) if before is None else before
