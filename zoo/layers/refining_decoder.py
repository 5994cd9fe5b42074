"""RT-DETR's decoder (arXiv 2304.08069): queries selected from the encoder, boxes refined layer by layer.

Source: lyuwenyu/RT-DETR@068dfde rtdetr_pytorch/src/zoo/rtdetr/rtdetr_decoder.py. Module names are the
published state-dict keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.contract.batch import Outputs, OutputSet, Predictions
from zoo.contract.boxes import inverse_sigmoid
from zoo.layers.denoising import DenoisingConfig, DenoisingQueries
from zoo.layers.hybrid_encoder import ConvNorm
from zoo.layers.memory_format import to_tokens
from zoo.layers.mlp import MLP
from zoo.layers.query_selection import Choice, Selection, by_best_class, select_queries
from zoo.layers.recompute import recomputed

PRIOR = 0.01  # initial probability of every class, RetinaNet's focal prior


@dataclass(frozen=True, kw_only=True)
class RefiningConfig(DenoisingConfig):
    """Sizes of the decoder but for its cross-attention; those of its denoising part see `DenoisingConfig`.

    Attributes:
        dim, num_heads, ffn_dim: of every layer.
        num_layers: layers that are trained.
        eval_layers: layers that run in evaluation, counted from the first.
        learned_queries: content is a learned embedding instead of the selected encoder tokens.
    """

    dim: int
    num_layers: int
    eval_layers: int
    num_heads: int
    ffn_dim: int
    learned_queries: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.eval_layers <= self.num_layers:
            raise ValueError(f"eval_layers ({self.eval_layers}) must be in 1..num_layers ({self.num_layers})")


class DecoderLayer(nn.Module):
    """Self-attention, the family's cross-attention, feed-forward; post-norm, no dropout."""

    def __init__(
        self,
        config: RefiningConfig,
        make_cross_attention: Callable[[], nn.Module],
        activation: Callable[[Tensor], Tensor] = F.relu,
    ) -> None:
        super().__init__()
        self.activation = activation
        dim = config.dim
        self.self_attn = nn.MultiheadAttention(dim, config.num_heads, batch_first=True)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn = make_cross_attention()
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, config.ffn_dim)
        self.linear2 = nn.Linear(config.ffn_dim, dim)
        self.norm3 = nn.LayerNorm(dim)

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
        content = self.norm2(content + self.cross_attn(content + position, reference, memory, sizes))
        return self.norm3(content + self.linear2(self.activation(self.linear1(content))))


class DecoderStack(nn.Module):
    """The layers; exists for its published key, `decoder.layers`."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class RefiningDecoder(nn.Module):
    """Selects queries from the encoder's tokens and refines their boxes layer by layer.

    Args:
        channels: of the encoder's maps.
        num_classes: of the heads.
        config: sizes.
        make_cross_attention: (query [B, Q, dim], reference [B, Q, 4], memory [B, S, dim], sizes) -> [B, Q, dim].
        activation: of the feed-forward parts, the box heads and the position of queries.
        position: width of the hidden layers and number of all layers of the perceptron that makes that position;
            None: (2 x dim, 2).
        choose: which tokens become queries.
        selects_objects: the encoder's head tells objects of any class, instead of the classes.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        config: RefiningConfig,
        make_cross_attention: Callable[[], nn.Module],
        *,
        activation: Callable[[Tensor], Tensor] = F.relu,
        position: tuple[int, int] | None = None,
        choose: Choice = by_best_class,
        selects_objects: bool = False,
    ) -> None:
        super().__init__()
        dim, layers = config.dim, config.num_layers
        self.config = config
        self.num_classes = num_classes
        self.choose, self.selects_objects = choose, selects_objects
        self.eval_layers = config.eval_layers
        self.input_proj = nn.ModuleList(ConvNorm(c, dim, 1) for c in channels)
        self.decoder = DecoderStack(
            [DecoderLayer(config, make_cross_attention, activation) for _ in range(layers)]
        )
        self.denoising_class_embed = nn.Embedding(num_classes + 1, dim, padding_idx=num_classes)
        if config.learned_queries:
            self.tgt_embed = nn.Embedding(config.num_queries, dim)
        position_dim, position_layers = position or (2 * dim, 2)
        self.query_pos_head = MLP(4, position_dim, dim, position_layers, activation)
        self.enc_output = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim))
        self.enc_score_head = nn.Linear(dim, 1 if selects_objects else num_classes)
        self.enc_bbox_head = MLP(dim, dim, 4, 3, activation)
        self.dec_score_head = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(layers))
        self.dec_bbox_head = nn.ModuleList(MLP(dim, dim, 4, 3, activation) for _ in range(layers))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Heads start at the focal prior and at zero box offsets; the rest keeps PyTorch's defaults."""
        for score in (self.enc_score_head, *self.dec_score_head):
            nn.init.constant_(score.bias, -math.log((1 - PRIOR) / PRIOR))
        for box in (self.enc_bbox_head, *self.dec_bbox_head):
            nn.init.zeros_(box.layers[-1].weight)
            nn.init.zeros_(box.layers[-1].bias)
        if self.config.learned_queries:
            nn.init.xavier_uniform_(self.tgt_embed.weight)
        for linear in (self.enc_output[0], *self.query_pos_head.layers[:2]):  # a third keeps the default
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, features: Sequence[Tensor], denoising: DenoisingQueries | None) -> Outputs:
        """Fused maps [B, C, H_i, W_i], fine to coarse, to outputs; supervised sets in training only."""
        maps = [project(f) for project, f in zip(self.input_proj, features, strict=True)]
        sizes = [(m.shape[-2], m.shape[-1]) for m in maps]
        memory = torch.cat([to_tokens(m) for m in maps], dim=1)
        selection = self.select(memory, sizes)
        content, reference, blocked = selection.content, selection.reference, None
        if denoising is not None:
            content = torch.cat([self.denoising_class_embed(denoising.labels), content], dim=1)
            reference = torch.cat([denoising.boxes_unactivated.to(reference.dtype), reference], dim=1)
            blocked = denoising.blocked
        layers = self.refine(content, reference, memory, sizes, blocked)
        if not self.training:
            return Outputs(layers[-1])
        stacked = Predictions(torch.stack([p.logits for p in layers]), torch.stack([p.boxes for p in layers]))
        return supervised_outputs(stacked, selection.encoder, denoising, class_agnostic=self.selects_objects)

    def select(self, memory: Tensor, sizes: Sequence[tuple[int, int]]) -> Selection:
        """The chosen tokens become queries, or their boxes become those of learned queries."""
        selection = select_queries(
            memory,
            sizes,
            self.config.num_queries,
            project=self.enc_output,
            score=self.enc_score_head,
            box=self.enc_bbox_head,
            choose=self.choose,
        )
        if self.config.learned_queries:
            return replace(selection, content=self.tgt_embed.weight.expand(len(memory), -1, -1))
        return selection

    def refine(
        self,
        content: Tensor,
        reference: Tensor,
        memory: Tensor,
        sizes: Sequence[tuple[int, int]],
        blocked: Tensor | None,
    ) -> list[Predictions]:
        """Predictions of each layer in training, of the last evaluated one otherwise.

        Look forward twice: the next layer samples around the detached box, but its own prediction
        starts from the undetached one, so the gradient of a box reaches one layer back.
        """
        results = []
        detached = reference.sigmoid()
        previous: Tensor | None = None
        last = len(self.decoder.layers) if self.training else self.eval_layers
        for index, layer in enumerate(self.decoder.layers[:last]):
            position = self.query_pos_head(detached)
            content = recomputed(layer, content, position, detached, memory, sizes, blocked)
            offset = self.dec_bbox_head[index](content)
            boxes = (offset + inverse_sigmoid(detached)).sigmoid()
            if self.training or index == last - 1:
                supervised = boxes
                if previous is not None and self.training:
                    supervised = (offset + inverse_sigmoid(previous)).sigmoid()
                results.append(Predictions(self.dec_score_head[index](content), supervised))
            previous, detached = boxes, boxes.detach()
        return results


def supervised_outputs(
    layers: Predictions,
    encoder: Predictions,
    denoising: DenoisingQueries | None,
    class_agnostic: bool = False,
) -> Outputs:
    """Names the sets of a training step: decoder layers, the encoder's selection, the denoising queries.

    Args:
        layers: [L, B, K+Q, ...], denoising queries first.
        encoder: [B, Q, ...].
        denoising: the K queries.
        class_agnostic: every object counts as class 0 to the encoder's selection.
    """
    noised, matching = split_queries(layers, 0 if denoising is None else denoising.labels.shape[1])
    sets = [
        OutputSet("decoder", matching),
        OutputSet(
            "encoder",
            Predictions(encoder.logits[None], encoder.boxes[None]),
            class_agnostic=class_agnostic,
        ),
    ]
    if denoising is not None:
        sets.append(OutputSet("denoising", noised, denoising.pairs, divisor=denoising.groups))
    return Outputs(Predictions(matching.logits[-1], matching.boxes[-1]), tuple(sets))


def split_queries(predictions: Predictions, noised: int) -> tuple[Predictions, Predictions]:
    """[L, B, K+Q, ...] to those of the K = `noised` denoising queries and those of the others.

    By split and not by slices: its backward pass joins the gradients, those of slices add them up in zeros.
    """

    def both(values: Tensor) -> Sequence[Tensor]:
        return values.split([noised, values.shape[2] - noised], dim=2)

    extras = {name: both(value) for name, value in predictions.extras.items()}
    parts = zip(both(predictions.logits), both(predictions.boxes), strict=True)
    first, second = (
        Predictions(*part, {name: value[index] for name, value in extras.items()})
        for index, part in enumerate(parts)
    )
    return first, second
