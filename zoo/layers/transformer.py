"""The encoder and decoder of DETR (Carion et al., arXiv 2005.12872, §3.2 and appendix A.3).

Source: facebookresearch/detr@29901c5 models/transformer.py. Parameter names are its state-dict keys.
Position encodings are added to queries and keys in every layer, never to values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.recompute import recomputed


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of encoder and decoder.

    Attributes:
        dim: channels of every token.
        num_heads, ffn_dim: of every layer.
        encoder_layers, decoder_layers: how many.
        num_queries: objects at most.
        dropout: on attention weights, on each residual branch, and inside the feed-forward part.
        pre_norm: LayerNorm in front of each part instead of behind it, and one behind the encoder.
        position: `sine`, or `learned` rows and columns of an at most 50 x 50 map.
    """

    dim: int
    num_heads: int
    ffn_dim: int
    encoder_layers: int
    decoder_layers: int
    num_queries: int
    dropout: float
    pre_norm: bool
    position: Literal["sine", "learned"]

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ValueError(f"dim ({self.dim}) must be divisible by num_heads ({self.num_heads})")
        if min(self.encoder_layers, self.decoder_layers, self.num_queries) < 1:
            raise ValueError("encoder_layers, decoder_layers and num_queries must each be at least 1")


class Attention(nn.Module):
    """Multi-head attention with the parameters of `nn.MultiheadAttention`, batch first.

    Queries and keys that are the same tensor are projected together.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
        """[B, N, dim] queries over [B, S, dim] keys and values.

        `visible` [B, 1, 1, S] bool is True at keys that may be attended to; None: all.
        """
        weight, bias, dim = self.in_proj_weight, self.in_proj_bias, query.shape[-1]
        if query is key:
            q, k = F.linear(query, weight[: 2 * dim], bias[: 2 * dim]).chunk(2, dim=-1)
        else:
            q = F.linear(query, weight[:dim], bias[:dim])
            k = F.linear(key, weight[dim : 2 * dim], bias[dim : 2 * dim])
        v = F.linear(value, weight[2 * dim :], bias[2 * dim :])
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward over image tokens."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.pre_norm = config.pre_norm
        self.self_attn = Attention(dim, config.num_heads, config.dropout)
        self.linear1 = nn.Linear(dim, config.ffn_dim)
        self.linear2 = nn.Linear(config.ffn_dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, position: Tensor, visible: Tensor) -> Tensor:
        """[B, S, dim] to the same shape."""
        if self.pre_norm:
            tokens = tokens + self.attend(self.norm1(tokens), position, visible)
            return tokens + self.feed_forward(self.norm2(tokens))
        tokens = self.norm1(tokens + self.attend(tokens, position, visible))
        return self.norm2(tokens + self.feed_forward(tokens))

    def attend(self, tokens: Tensor, position: Tensor, visible: Tensor) -> Tensor:
        """The residual branch of the attention."""
        located = tokens + position
        return self.dropout(self.self_attn(located, located, tokens, visible))

    def feed_forward(self, tokens: Tensor) -> Tensor:
        """The residual branch of the feed-forward part."""
        return self.dropout(self.linear2(self.dropout(F.relu(self.linear1(tokens)))))


class DecoderLayer(nn.Module):
    """Self-attention among queries, attention to the image, feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.pre_norm = config.pre_norm
        self.self_attn = Attention(dim, config.num_heads, config.dropout)
        self.multihead_attn = Attention(dim, config.num_heads, config.dropout)
        self.linear1 = nn.Linear(dim, config.ffn_dim)
        self.linear2 = nn.Linear(config.ffn_dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, content: Tensor, query: Tensor, located_memory: Tensor, memory: Tensor, visible: Tensor
    ) -> Tensor:
        """Refines `content` [B, Q, dim].

        Args:
            content: [B, Q, dim] the queries' content so far.
            query: [Q, dim] learned embedding, the queries' position.
            located_memory: [B, S, dim] image tokens with their position.
            memory: [B, S, dim] image tokens without their position.
            visible: [B, 1, 1, S] bool, tokens that are not padding.
        """
        if self.pre_norm:
            content = content + self.attend_queries(self.norm1(content), query)
            image = self.attend_image(self.norm2(content), query, located_memory, memory, visible)
            content = content + image
            return content + self.feed_forward(self.norm3(content))
        content = self.norm1(content + self.attend_queries(content, query))
        image = self.attend_image(content, query, located_memory, memory, visible)
        content = self.norm2(content + image)
        return self.norm3(content + self.feed_forward(content))

    def attend_queries(self, content: Tensor, query: Tensor) -> Tensor:
        """The residual branch of the self-attention."""
        located = content + query
        return self.dropout(self.self_attn(located, located, content, None))

    def attend_image(
        self, content: Tensor, query: Tensor, located_memory: Tensor, memory: Tensor, visible: Tensor
    ) -> Tensor:
        """The residual branch of the attention to the image."""
        return self.dropout(self.multihead_attn(content + query, located_memory, memory, visible))

    def feed_forward(self, content: Tensor) -> Tensor:
        """The residual branch of the feed-forward part."""
        return self.dropout(self.linear2(self.dropout(F.relu(self.linear1(content)))))


class Encoder(nn.Module):
    """The encoder layers, and with pre-norm a norm behind them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.norm = nn.LayerNorm(config.dim) if config.pre_norm else nn.Identity()

    def forward(self, tokens: Tensor, position: Tensor, visible: Tensor) -> Tensor:
        """[B, S, dim] to the same shape."""
        for layer in self.layers:
            tokens = recomputed(layer, tokens, position, visible)
        return self.norm(tokens)


class Decoder(nn.Module):
    """The decoder layers and the one norm that all their outputs go through."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, query: Tensor, located_memory: Tensor, memory: Tensor, visible: Tensor) -> Tensor:
        """[L, B, Q, dim] of all layers in training, of the last one (L = 1) otherwise.

        The norm is for the outputs only: the next layer gets the content without it.
        """
        content = query.new_zeros(memory.shape[0], *query.shape)
        results = []
        for layer in self.layers:
            content = recomputed(layer, content, query, located_memory, memory, visible)
            results.append(content)
        return self.norm(torch.stack(results if self.training else results[-1:]))


class Transformer(nn.Module):
    """Image tokens to decoder outputs and encoded tokens."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, tokens: Tensor, padding: Tensor, query: Tensor, position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Decoder outputs [L, B, Q, dim] as of `Decoder`, and the encoded tokens [B, S, dim].

        Args:
            tokens: [B, S, dim] projected features.
            padding: [B, S] bool, True on padding.
            query: [Q, dim] query embedding.
            position: [B, S, dim] or [S, dim] encoding of the tokens.
        """
        visible = ~padding[:, None, None]
        memory = self.encoder(tokens, position, visible)
        return self.decoder(query, memory + position, memory, visible), memory
