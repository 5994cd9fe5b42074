"""DETR's mask branch (arXiv 2005.12872, §4.4): attention maps of each query, and a small FPN that refines them.

Source: facebookresearch/detr@29901c5 models/segmentation.py. Parameter names are its state-dict keys. A
query's mask depends on no other query (group normalisation is per query too), so the branch runs on
whichever queries are asked for, and gives them what it would give them among all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.precision import autocast_to

GROUPS = 8  # of every normalisation
FINEST = 16  # the last convolution has dim / 16 channels
STAGES = 3  # backbone maps that are mixed in, besides the projected one


class AttentionMap(nn.Module):
    """Where each query looks: the weights of a multi-head attention, one softmax over all heads and places."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(dim, dim)
        self.k_linear = nn.Linear(dim, dim)
        for linear in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        """[B, Q, heads, S] weights that sum to one for each query; zero on padding.

        Args:
            queries: [B, Q, dim] decoder outputs.
            memory: [B, S, dim] encoder outputs.
            padding: [B, S] bool, True on padding.
        """
        q = self.q_linear(queries).unflatten(-1, (self.num_heads, -1))
        k = self.k_linear(memory).unflatten(-1, (self.num_heads, -1))
        scores = torch.einsum("bqnc,bsnc->bqns", q * q.shape[-1] ** -0.5, k)
        scores = scores.masked_fill(padding[:, None, None], float("-inf"))
        return scores.flatten(2).softmax(-1).view_as(scores)


class MaskHead(nn.Module):
    """Attention maps and features to one logit map a query, at the stride of the finest stage.

    Args:
        dim: channels of the projected features.
        num_heads: of the attention maps.
        stages: channels of the backbone maps that are mixed in, coarsest first.

    Raises:
        ValueError: the channels do not split into groups, or there are not three stages.
    """

    def __init__(self, dim: int, num_heads: int, stages: Sequence[int]) -> None:
        super().__init__()
        if dim % (GROUPS * FINEST) or (dim + num_heads) % GROUPS:
            raise ValueError(
                f"transformer.dim is {dim} with {num_heads} heads; the mask head normalises in {GROUPS} groups, so "
                f"dim must be divisible by {GROUPS * FINEST} and dim + num_heads by {GROUPS}"
            )
        if len(stages) != STAGES:
            raise ValueError(
                f"the mask head mixes in {STAGES} backbone stages besides the last, this backbone has "
                f"{len(stages)}; use a plain ResNet (backbone.name: resnet50)"
            )
        widths = [dim + num_heads, dim + num_heads, *(dim // n for n in (2, 4, 8, FINEST))]
        for layer, (before, after) in enumerate(pairwise(widths), start=1):
            setattr(self, f"lay{layer}", nn.Conv2d(before, after, 3, padding=1))
            setattr(self, f"gn{layer}", nn.GroupNorm(GROUPS, after))
        self.out_lay = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for stage, (channels, width) in enumerate(zip(stages, widths[2:5], strict=True), start=1):
            setattr(self, f"adapter{stage}", nn.Conv2d(channels, width, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, projected: Tensor, maps: Tensor, image: Tensor, stages: Sequence[Tensor]) -> Tensor:
        """[P, h, w] logits of P queries.

        Args:
            projected: [B, dim, H, W] backbone features as the transformer gets them, not encoded.
            maps: [P, heads, H, W] attention maps.
            image: [P] image of each query.
            stages: [B, C, h, w] backbone maps, coarsest first; the last has the size of the result.
        """
        x = self.normalized(1, self.first(projected, maps, image))
        x = self.refined(2, x)
        for stage, features in enumerate(stages, start=1):
            adapted = self.get_submodule(f"adapter{stage}")(features)
            x = F.interpolate(x, adapted.shape[-2:]).add_(adapted[image])  # nearest is the default
            x = self.refined(stage + 2, x)
        logits: Tensor = self.out_lay(x)[:, 0]
        return logits

    def first(self, projected: Tensor, maps: Tensor, image: Tensor) -> Tensor:
        """The first convolution over projected features and attention maps, concatenated.

        Its features are the same for all queries of an image. A convolution is linear, so their part is
        computed once an image and not once a query: a fifth of the whole model's multiply-adds less.
        """
        convolution = self.lay1
        assert isinstance(convolution, nn.Conv2d)
        dim = projected.shape[1]
        features = F.conv2d(projected, convolution.weight[:, :dim], convolution.bias, padding=1)
        return F.conv2d(maps, convolution.weight[:, dim:], padding=1).add_(features[image])

    def refined(self, layer: int, x: Tensor) -> Tensor:
        """Convolution, group normalisation, ReLU."""
        return self.normalized(layer, self.get_submodule(f"lay{layer}")(x))

    def normalized(self, layer: int, x: Tensor) -> Tensor:
        """Group normalisation and ReLU behind a convolution."""
        normalized: Tensor = self.get_submodule(f"gn{layer}")(x)
        return normalized.relu_()


@dataclass(frozen=True)
class QueryMasks:
    """The masks of a batch, not yet computed: (image [P], query [P]) -> [P, h, w] logits, see `MaskFunction`."""

    attention: AttentionMap
    head: MaskHead
    queries: Tensor  # [B, Q, dim] outputs of the last decoder layer
    memory: Tensor  # [B, S, dim] encoder outputs
    padding: Tensor  # [B, H, W] bool at the size of the projected features
    projected: Tensor  # [B, dim, H, W]
    stages: tuple[Tensor, ...]  # coarsest first
    autocast: torch.dtype | None = None  # precision of the network that made the features

    def __call__(self, image: Tensor, query: Tensor) -> Tensor:
        """Runs in the precision of the network that made the features, wherever it is called."""
        with autocast_to(self.autocast, self.projected.device):
            return self.computed(image, query)

    def computed(self, image: Tensor, query: Tensor) -> Tensor:
        """`__call__` in the precision that is set."""
        # all queries' maps are small beside one gathered copy of the keys a pair
        maps = self.attention(self.queries, self.memory, self.padding.flatten(1))[image, query]
        return self.head(self.projected, maps.unflatten(-1, self.padding.shape[1:]), image, self.stages)
