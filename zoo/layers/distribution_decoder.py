"""D-FINE's decoder (arXiv 2410.13842): boxes refined as distributions over the distances of their sides.

The first layer finds a box by coordinates, the reference; every layer adds to the logits of four distributions
around it. A later family replaces the parts that it makes otherwise, by the methods of the two classes.

Source: Peterande/D-FINE@4a1f73a src/zoo/dfine/dfine_decoder.py. Module names are the published state-dict keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.contract.batch import Outputs, OutputSet, Predictions
from zoo.contract.boxes import inverse_sigmoid
from zoo.layers.deformable_attention import UnprojectedAttention
from zoo.layers.denoising import DenoisingConfig, DenoisingQueries
from zoo.layers.distribution import (
    CORNERS,
    REFERENCE,
    UP,
    LocationQuality,
    boxes_around,
    expected_distances,
    weighting_function,
)
from zoo.layers.hybrid_encoder import ConvNorm
from zoo.layers.memory_format import to_tokens
from zoo.layers.mlp import MLP
from zoo.layers.query_selection import Selection, select_queries
from zoo.layers.recompute import recomputed
from zoo.layers.refining_decoder import PRIOR, split_queries, supervised_outputs

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu}
_LARGEST_HALF = 65504.0


@dataclass(frozen=True, kw_only=True)
class DistributionConfig(DenoisingConfig):
    """Sizes of the decoder; those of its denoising part see `DenoisingConfig`.

    Attributes:
        dim, num_heads, ffn_dim: of every layer.
        num_layers: layers that are trained.
        eval_layers: layers that run in evaluation, counted from the first.
        num_points: of the cross-attention per head: a number for each level, fine to coarse.
        reg_scale: distances count in sizes of the reference over this.
        bins: of each side's distribution, odd.
        activation: of the perceptrons, and of the feed-forward part.
    """

    dim: int
    num_layers: int
    eval_layers: int
    num_heads: int
    ffn_dim: int
    num_points: list[int]
    reg_scale: float
    bins: int = 33
    activation: Literal["relu", "silu"] = "relu"

    def __post_init__(self) -> None:
        if not 1 <= self.eval_layers <= self.num_layers:
            raise ValueError(f"eval_layers ({self.eval_layers}) must be in 1..num_layers ({self.num_layers})")
        if self.bins % 2 == 0 or self.bins < 7:
            raise ValueError(
                f"bins ({self.bins}) must be an odd number from 7 on: the middle one is no distance"
            )
        if not self.num_points or min(self.num_points) < 1:
            raise ValueError(f"num_points is {self.num_points}; it must be a number above 0 for each level")


class Gate(nn.Module):
    """Mixes content and what the cross-attention found, by a gate for each; starts at half of both."""

    def __init__(self, dim: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * dim, 2 * dim)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        self.norm = norm(dim)

    def forward(self, content: Tensor, found: Tensor) -> Tensor:
        """Two [B, Q, dim] to one."""
        found = found.to(content.dtype)
        gates = self.gate(torch.cat([content, found], -1)).sigmoid()
        mine, theirs = gates.chunk(2, -1)
        return self.norm(mine * content + theirs * found)


class DistributionLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward part; norms after each, no dropout."""

    norm: Callable[[int], nn.Module] = nn.LayerNorm

    def __init__(self, config: DistributionConfig) -> None:
        super().__init__()
        dim = config.dim
        self.activation = ACTIVATIONS[config.activation]
        self.self_attn = nn.MultiheadAttention(dim, config.num_heads, batch_first=True)
        self.norm1 = self.norm(dim)
        self.cross_attn = UnprojectedAttention(
            dim, config.num_heads, len(config.num_points), config.num_points
        )
        self.make_merge(config)
        self.make_feed_forward(config)
        self.norm3 = self.norm(dim)

    def make_merge(self, config: DistributionConfig) -> None:
        """The parts of `merge`."""
        self.gateway = Gate(config.dim, self.norm)

    def merge(self, content: Tensor, found: Tensor) -> Tensor:
        """Content with what the cross-attention found."""
        merged: Tensor = self.gateway(content, found)
        return merged

    def make_feed_forward(self, config: DistributionConfig) -> None:
        """The parts of `feed_forward`."""
        self.linear1 = nn.Linear(config.dim, config.ffn_dim)
        self.linear2 = nn.Linear(config.ffn_dim, config.dim)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def feed_forward(self, content: Tensor) -> Tensor:
        """What is added to the content."""
        added: Tensor = self.linear2(self.activation(self.linear1(content)))
        return added

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Tensor,
        sizes: Sequence[tuple[int, int]],
        blocked: Tensor | None,
    ) -> Tensor:
        """Refines `content` [B, Q, dim] around `reference` [B, Q, 4]."""
        located = content + position
        attended = self.self_attn(located, located, content, attn_mask=blocked, need_weights=False)[0]
        content = self.norm1(content + attended)
        content = self.merge(content, self.cross_attn(content + position, reference, memory, sizes))
        content = content + self.feed_forward(content)
        refined: Tensor = self.norm3(content.clamp(-_LARGEST_HALF, _LARGEST_HALF))
        return refined


class LayerStack(nn.Module):
    """The layers and their quality estimates; exists for its published keys."""

    def __init__(self, layers: Sequence[nn.Module], qualities: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.lqe_layers = nn.ModuleList(qualities)


class Refinement(NamedTuple):
    """What the layers predict: [B, K+Q, ...] each, denoising queries first."""

    layers: list[Predictions]  # of each layer in training, of the last one otherwise; with `CORNERS`
    first: Predictions  # boxes by coordinates, of the first layer
    reference: Tensor  # [B, K+Q, 4], their boxes without gradient: all distributions are around them


class DistributionDecoder(nn.Module):
    """Selects queries from the encoder's tokens and refines the distributions of their sides.

    Args:
        channels: of the encoder's maps.
        num_classes: of the heads.
        config: sizes.
    """

    make_layer: type[DistributionLayer] = DistributionLayer

    def __init__(self, channels: Sequence[int], num_classes: int, config: DistributionConfig) -> None:
        super().__init__()
        dim, layers, bins = config.dim, config.num_layers, config.bins
        if len(channels) != len(config.num_points):
            raise ValueError(
                f"num_points ({config.num_points}) must have a number for each of {len(channels)} levels"
            )
        self.config = config
        self.num_classes = num_classes
        self.eval_layers = config.eval_layers
        self.activation = ACTIVATIONS[config.activation]
        self.input_proj = nn.ModuleList(nn.Identity() if c == dim else ConvNorm(c, dim, 1) for c in channels)
        self.decoder = LayerStack(
            [self.make_layer(config) for _ in range(layers)],
            [LocationQuality(bins, self.activation) for _ in range(layers)],
        )
        self.denoising_class_embed = nn.Embedding(num_classes + 1, dim, padding_idx=num_classes)
        self.enc_score_head = nn.Linear(dim, num_classes)
        self.enc_bbox_head = self.perceptron(dim, 4)
        self.dec_score_head = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(layers))
        self.pre_bbox_head = self.perceptron(dim, 4)
        self.dec_bbox_head = self.make_box_heads(config)
        self.make_selection(config)
        self.up = nn.Parameter(torch.tensor([UP]), requires_grad=False)
        self.reg_scale = nn.Parameter(torch.tensor([float(config.reg_scale)]), requires_grad=False)
        self.reset_parameters()

    def perceptron(self, dim_in: int, dim_out: int) -> MLP:
        """A head of three layers."""
        return MLP(dim_in, dim_in, dim_out, 3, self.activation)

    def make_box_heads(self, config: DistributionConfig) -> nn.ModuleList:
        """Of the distributions, one a layer."""
        width = 4 * config.bins
        return nn.ModuleList(self.perceptron(config.dim, width) for _ in range(config.num_layers))

    def make_selection(self, config: DistributionConfig) -> None:
        """What makes queries of tokens, and positions of boxes."""
        dim = config.dim
        self.enc_output: nn.Module = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim))
        self.query_pos_head = MLP(4, 2 * dim, dim, 2, self.activation)
        for linear in (self.enc_output[0], *self.query_pos_head.layers):
            nn.init.xavier_uniform_(linear.weight)

    def reset_parameters(self) -> None:
        """Class logits start at the focal prior, boxes where they are; the rest keeps its own beginnings."""
        for score in (self.enc_score_head, *self.dec_score_head):
            nn.init.constant_(score.bias, -math.log((1 - PRIOR) / PRIOR))
        for box in (self.enc_bbox_head, self.pre_bbox_head, *self.dec_bbox_head):
            nn.init.zeros_(box.layers[-1].weight)
            nn.init.zeros_(box.layers[-1].bias)
        for projection in self.input_proj:
            if isinstance(projection, ConvNorm):
                nn.init.xavier_uniform_(projection.conv.weight)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        """Refuses weights that count distances otherwise: their boxes would be others."""
        super()._load_from_state_dict(state_dict, prefix, *args)
        errors = args[-1]
        assert isinstance(errors, list)
        for name, expected in (("up", UP), ("reg_scale", self.config.reg_scale)):
            value = state_dict.get(f"{prefix}{name}")
            if value is not None and float(value) != expected:
                errors.append(f"{prefix}{name} is {float(value):g} in the weights and {expected:g} here")

    def forward(self, features: Sequence[Tensor], denoising: DenoisingQueries | None) -> Outputs:
        """Fused maps [B, C, H_i, W_i], fine to coarse, to outputs; supervised sets in training only."""
        refinement, selection = self.predict(features, denoising)
        if not self.training:
            last = refinement.layers[-1]
            return Outputs(Predictions(last.logits, last.boxes))
        return supervised_distributions(refinement, selection.encoder, denoising)

    def predict(
        self, features: Sequence[Tensor], denoising: DenoisingQueries | None
    ) -> tuple[Refinement, Selection]:
        """What the layers and the encoder's heads predict."""
        maps = [project(f) for project, f in zip(self.input_proj, features, strict=True)]
        sizes = [(m.shape[-2], m.shape[-1]) for m in maps]
        memory = torch.cat([to_tokens(m) for m in maps], dim=1)
        selection = self.select(memory, sizes)
        content, reference, blocked = selection.content, selection.reference, None
        if denoising is not None:
            content = torch.cat([self.denoising_class_embed(denoising.labels), content], dim=1)
            reference = torch.cat([denoising.boxes_unactivated.to(reference.dtype), reference], dim=1)
            blocked = denoising.blocked
        return self.refine(content, reference.sigmoid(), memory, sizes, blocked), selection

    def select(self, memory: Tensor, sizes: Sequence[tuple[int, int]]) -> Selection:
        """The tokens with the highest class logit become queries."""
        return select_queries(
            memory,
            sizes,
            self.config.num_queries,
            project=self.enc_output,
            score=self.enc_score_head,
            box=self.enc_bbox_head,
        )

    def positions(self, reference: Tensor, before: Tensor | None) -> Tensor:
        """[B, Q, 4] to [B, Q, dim]; `before`: those of the layer before, None in the first."""
        return self.query_pos_head(reference).clamp(-10, 10)

    def weighting(self) -> Tensor:
        """The distance of each bin, [bins] float64."""
        return weighting_function(self.config.bins, self.config.reg_scale)

    def refine(
        self,
        content: Tensor,
        reference: Tensor,
        memory: Tensor,
        sizes: Sequence[tuple[int, int]],
        blocked: Tensor | None,
    ) -> Refinement:
        """Runs the layers, all in training and those of the evaluation otherwise.

        Distributions keep their gradient from layer to layer, boxes that a layer looks at do not.
        """
        results: list[Predictions] = []
        first, position = None, None
        corners, before = 0.0, torch.zeros_like(content)
        last = len(self.decoder.layers) if self.training else self.eval_layers
        for index, layer in enumerate(self.decoder.layers[:last]):
            position = self.positions(reference, position)
            content = recomputed(layer, content, position, reference, memory, sizes, blocked)
            score = self.dec_score_head[index]
            if first is None:
                boxes = (self.pre_bbox_head(content) + inverse_sigmoid(reference)).sigmoid()
                first = Predictions(score(content), boxes)
                initial = boxes.detach()
                weighting = self.weighting().to(boxes)
            corners = self.dec_bbox_head[index](content + before) + corners
            distances = expected_distances(corners, weighting)
            boxes = boxes_around(initial, distances, self.config.reg_scale)
            if self.training or index == last - 1:
                logits = self.decoder.lqe_layers[index](score(content), corners)
                results.append(Predictions(logits, boxes, {CORNERS: corners}))
            before, reference = content.detach(), boxes.detach()
        assert first is not None
        return Refinement(results, first, initial)


def supervised_distributions(
    refinement: Refinement, encoder: Predictions, denoising: DenoisingQueries | None
) -> Outputs:
    """Names the sets of a training step: those of `supervised_outputs`, and the first layer's boxes by coordinates."""
    stacked = [torch.stack(parts) for parts in zip(*(p[:2] for p in refinement.layers), strict=True)]
    corners = torch.stack([p.extras[CORNERS] for p in refinement.layers])
    reference = refinement.reference.expand(len(corners), -1, -1, -1)
    layers = Predictions(stacked[0], stacked[1], {CORNERS: corners, REFERENCE: reference})
    outputs = supervised_outputs(layers, encoder, denoising)
    first = Predictions(refinement.first.logits[None], refinement.first.boxes[None])
    noised, matching = split_queries(first, 0 if denoising is None else denoising.labels.shape[1])
    sets = [OutputSet("first", matching)]
    if denoising is not None:
        sets.append(OutputSet("denoising_first", noised, denoising.pairs, divisor=denoising.groups))
    return replace(outputs, supervised=(*outputs.supervised, *sets))
