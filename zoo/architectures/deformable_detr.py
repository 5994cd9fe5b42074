"""Deformable DETR (Zhu et al., arXiv 2010.04159): single and multi-scale, box refinement, two-stage.

Semantics of fundamentalvision/Deformable-DETR@11169a6; parameter names are its state-dict keys, except for
the backbone and the heads: a head is stored once, where the official state dict repeats tied ones.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.contract.batch import Batch, Outputs, OutputSet, Predictions
from zoo.contract.boxes import inverse_sigmoid
from zoo.contract.input_limits import InputLimits
from zoo.layers.backbone import HUGGING_FACE_RESNET, BackboneConfig, build_backbone
from zoo.layers.deformable_attention import DeformableAttention
from zoo.layers.memory_format import to_tokens
from zoo.layers.mlp import MLP, multiply_adds
from zoo.layers.position import sine_2d
from zoo.layers.precision import autocast_to, full
from zoo.layers.published_keys import from_hugging_face
from zoo.layers.recompute import recomputed
from zoo.prediction.postprocess import TopKSigmoid
from zoo.training.criterion import GiouTerm, L1Term, LabelTerm, LossWeights, SetCriterion
from zoo.training.losses import SigmoidFocal
from zoo.training.matcher import HungarianMatcher, MatchCosts, focal_cost
from zoo.training.module import DetectionModule
from zoo.training.schedule import Schedule

PRIOR = 0.01  # initial probability of every class, RetinaNet's focal prior


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of encoder and decoder.

    Attributes:
        dim, num_heads, ffn_dim: of every layer.
        encoder_layers, decoder_layers: how many.
        encoder_points, decoder_points: sampled per level and head.
        num_levels: 1 for the last stage of the backbone alone; n > 1 for its last three stages and n - 3
            stride-2 convolutions on top.
        num_queries: objects at most.
        dropout: of every residual branch, feed-forward layer and the decoder's self-attention weights.
        refine_boxes: every decoder layer moves the boxes that the next one looks around; each layer has
            its own heads.
        two_stage: queries start at the encoder's best proposals; needs `refine_boxes`.
    """

    dim: int
    num_heads: int
    ffn_dim: int
    encoder_layers: int
    decoder_layers: int
    encoder_points: int
    decoder_points: int
    num_levels: int
    num_queries: int
    dropout: float
    refine_boxes: bool
    two_stage: bool

    def __post_init__(self) -> None:
        if self.num_levels not in (1, 3, 4, 5):
            raise ValueError(f"num_levels is {self.num_levels}; it must be 1, or 3 to 5")
        if self.two_stage and not self.refine_boxes:
            raise ValueError(
                "two_stage needs refine_boxes: true; proposals need a head of their own, and without "
                "refinement all heads are one"
            )

    @property
    def num_prediction_heads(self) -> int:
        """Class and box heads: one that all layers share, or one a layer and one for the proposals."""
        return self.decoder_layers + self.two_stage if self.refine_boxes else 1


class Memory(NamedTuple):
    """The feature maps of all levels, flattened row-major and concatenated to S tokens."""

    tokens: Tensor  # [B, S, dim]
    padding: Tensor  # [B, S] bool, True on padding
    sizes: tuple[tuple[int, int], ...]  # (H, W) of each level; Python integers
    valid_ratios: Tensor  # [B, levels, 2] float32, unpadded share of (width, height)


class EncoderLayer(nn.Module):
    """Deformable self-attention of all tokens, feed-forward; post-norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.self_attn = DeformableAttention(dim, config.num_heads, config.num_levels, config.encoder_points)
        self.dropout1 = nn.Dropout(config.dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, config.ffn_dim)
        self.dropout2 = nn.Dropout(config.dropout)
        self.linear2 = nn.Linear(config.ffn_dim, dim)
        self.dropout3 = nn.Dropout(config.dropout)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, memory: Memory, position: Tensor, references: Tensor) -> Memory:
        """`memory` with new tokens; `position` [B, S, dim], `references` [B, S, levels, 2]."""
        x = memory.tokens
        attended = self.self_attn(x + position, references, x, memory.sizes, memory.padding)
        x = self.norm1(x + self.dropout1(attended))
        x = self.norm2(x + self.dropout3(self.linear2(self.dropout2(F.relu(self.linear1(x))))))
        return memory._replace(tokens=x)


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward; post-norm.

    Self-attention comes first and is followed by norm2, cross-attention by norm1: these are the official names.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim, dropout = config.dim, config.dropout
        self.cross_attn = DeformableAttention(dim, config.num_heads, config.num_levels, config.decoder_points)
        self.dropout1 = nn.Dropout(dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = nn.MultiheadAttention(dim, config.num_heads, dropout=dropout, batch_first=True)
        self.dropout2 = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, config.ffn_dim)
        self.dropout3 = nn.Dropout(dropout)
        self.linear2 = nn.Linear(config.ffn_dim, dim)
        self.dropout4 = nn.Dropout(dropout)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, content: Tensor, position: Tensor, references: Tensor, memory: Memory) -> Tensor:
        """Refines `content` [B, Q, dim] around `references` [B, Q, levels, 2 or 4]."""
        located = content + position
        attended = self.self_attn(located, located, content, need_weights=False)[0]
        content = self.norm2(content + self.dropout2(attended))
        sampled = self.cross_attn(content + position, references, memory.tokens, memory.sizes, memory.padding)
        content = self.norm1(content + self.dropout1(sampled))
        hidden = self.dropout3(F.relu(self.linear1(content)))
        return self.norm3(content + self.dropout4(self.linear2(hidden)))


class Stack(nn.Module):
    """Layers under their published key, `transformer.<encoder or decoder>.layers`."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class Transformer(nn.Module):
    """Encoder and decoder without heads; parameters under their official names."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.level_embed = nn.Parameter(torch.empty(config.num_levels, dim))
        self.encoder = Stack([EncoderLayer(config) for _ in range(config.encoder_layers)])
        self.decoder = Stack([DecoderLayer(config) for _ in range(config.decoder_layers)])
        if config.two_stage:
            self.enc_output = nn.Linear(dim, dim)
            self.enc_output_norm = nn.LayerNorm(dim)
            self.pos_trans = nn.Linear(2 * dim, 2 * dim)
            self.pos_trans_norm = nn.LayerNorm(2 * dim)
        else:
            self.reference_points = nn.Linear(dim, 2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier for matrices, then the offsets of deformable attention; N(0, 1) for the level embedding."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
        if hasattr(self, "reference_points"):
            nn.init.zeros_(self.reference_points.bias)
        nn.init.normal_(self.level_embed)

    def encode(self, memory: Memory, position: Tensor) -> Memory:
        """Every token attends to places around its own position on each level."""
        references = pixel_centres(memory.sizes, memory.valid_ratios).to(full(memory.tokens).dtype)
        for layer in self.encoder.layers:
            memory = recomputed(layer, memory, position, references)
        return memory


class Queries(NamedTuple):
    """The input of the decoder."""

    content: Tensor  # [B, Q, dim]
    position: Tensor  # [B, Q, dim]
    reference: Tensor  # [B, Q, 2 or 4] in [0, 1] of the unpadded image


class DeformableDetr(nn.Module):
    """Backbone -> projections -> deformable encoder -> deformable decoder -> heads.

    Images are RGB, normalised with mean and std, zero-padded at the bottom and right.
    """

    def __init__(self, num_classes: int, backbone: nn.Module, transformer: TransformerConfig) -> None:
        super().__init__()
        self.config = transformer
        self.backbone = backbone
        channels = cast(Sequence[int], backbone.channels)
        self.input_proj = nn.ModuleList(projections(channels, transformer))
        self.transformer = Transformer(transformer)
        dim, heads = transformer.dim, transformer.num_prediction_heads
        if not transformer.two_stage:
            self.query_embed = nn.Embedding(transformer.num_queries, 2 * dim)
        # copies: all heads start with equal weights
        label_head, box_head = nn.Linear(dim, num_classes), MLP(dim, dim, 4, num_layers=3)
        self.class_embed = nn.ModuleList(copy.deepcopy(label_head) for _ in range(heads))
        self.bbox_embed = nn.ModuleList(copy.deepcopy(box_head) for _ in range(heads))
        self.reset_heads()

    def reset_heads(self) -> None:
        """Focal prior for classes; boxes start without offset, and small unless they start at proposals."""
        for label in self.class_embed:
            nn.init.constant_(cast(nn.Linear, label).bias, -math.log((1 - PRIOR) / PRIOR))
        last = [cast(nn.Linear, cast(MLP, box).layers[-1]) for box in self.bbox_embed]
        for linear in last:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        if not self.config.two_stage:
            # of the first head only: later ones add to its size
            nn.init.constant_(last[0].bias[2:], -2.0)

    def forward(self, batch: Batch) -> Outputs:
        """Normalised float images to outputs; supervised sets in training only.

        Raises:
            ValueError: with two stages, the feature maps have fewer places than there are queries.
        """
        memory, position = self.tokens(batch)
        memory = self.transformer.encode(memory, position)
        queries, proposals = self.propose(memory) if self.config.two_stage else (self.learned(memory), None)
        layers = self.decode(queries, memory)
        if not self.training:
            return Outputs(layers[-1])
        logits = torch.stack([p.logits for p in layers])
        boxes = torch.stack([p.boxes for p in layers])
        sets = [OutputSet("decoder", Predictions(logits, boxes))]
        if proposals is not None:
            every = Predictions(proposals.logits[None], proposals.boxes[None])
            # as in the official code, all labels become 0, but all class channels are trained
            sets.append(OutputSet("encoder", every, class_agnostic=True))
        return Outputs(layers[-1], tuple(sets))

    def tokens(self, batch: Batch) -> tuple[Memory, Tensor]:
        """Projected maps of all levels as tokens, and their position with level embedding [B, S, dim]."""
        features = self.backbone(batch.images)
        if self.config.num_levels == 1:
            maps = [self.input_proj[0](features[-1])]
        else:
            inputs = features[-3:]
            maps = [project(f) for project, f in zip(self.input_proj[:3], inputs, strict=True)]
            coarser = features[-1]
            for project in self.input_proj[3:]:
                maps.append(coarser := project(coarser))
        flat, positions, paddings, ratios = [], [], [], []
        for level, x in enumerate(maps):
            padding = F.interpolate(batch.padding[:, None].float(), x.shape[-2:])[:, 0] > 0
            position = sine_2d(padding, self.config.dim, shift=-0.5).to(x.dtype)
            flat.append(to_tokens(x))
            positions.append(position.flatten(2).transpose(1, 2) + self.transformer.level_embed[level])
            paddings.append(padding.flatten(1))
            ratios.append(valid_ratio(padding))
        sizes = tuple((x.shape[-2], x.shape[-1]) for x in maps)
        memory = Memory(torch.cat(flat, 1), torch.cat(paddings, 1), sizes, torch.stack(ratios, 1))
        return memory, torch.cat(positions, 1)

    def learned(self, memory: Memory) -> Queries:
        """Learned queries, the same for every image."""
        position, content = (
            half.expand(memory.tokens.shape[0], -1, -1) for half in self.query_embed.weight.chunk(2, dim=1)
        )
        with autocast_to(None, position.device):
            reference = self.transformer.reference_points(position).sigmoid()
        return Queries(content, position, reference)

    def propose(self, memory: Memory) -> tuple[Queries, Predictions]:
        """Queries at the best tokens, and the predictions of all tokens with gradient."""
        part = self.transformer
        wanted, places = self.config.num_queries, memory.tokens.shape[1]
        if wanted > places:
            sizes = ", ".join(f"{height}x{width}" for height, width in memory.sizes)
            raise ValueError(
                f"Deformable DETR has {wanted} queries, feature maps of {sizes} have {places} places; give it "
                "larger images"
            )
        start, valid = proposal_logits(memory)
        tokens = memory.tokens.masked_fill(~valid[..., None], 0.0)
        tokens = part.enc_output_norm(part.enc_output(tokens))
        logits = self.class_embed[-1](tokens)
        boxes = self.bbox_embed[-1](tokens)
        boxes = boxes + start.to(boxes.dtype)
        # ranked by class 0, the label of every object in the encoder's loss
        best = logits[..., 0].topk(self.config.num_queries, dim=1).indices
        chosen = boxes.detach().gather(1, best[..., None].expand(-1, -1, 4))
        embedded = part.pos_trans_norm(part.pos_trans(box_features(chosen, self.config.dim)))
        position, content = embedded.chunk(2, dim=-1)
        return Queries(content, position, chosen.sigmoid()), Predictions(logits, boxes.sigmoid())

    def decode(self, queries: Queries, memory: Memory) -> list[Predictions]:
        """Predictions of each layer in training, of the last one otherwise.

        With refinement the reference is detached between layers: each box head is trained by its own
        layer alone. The first reference keeps its gradient.
        """
        content, position, reference = queries
        ratios = memory.valid_ratios.to(reference.dtype)[:, None]
        results = []
        layers = self.transformer.decoder.layers
        for index, layer in enumerate(layers):
            scale = ratios if reference.shape[-1] == 2 else torch.cat([ratios, ratios], -1)
            content = recomputed(layer, content, position, reference[:, :, None] * scale, memory)
            last = index == len(layers) - 1
            if not (self.training or last or self.config.refine_boxes):
                continue
            head = index if self.config.refine_boxes else 0
            offset = self.bbox_embed[head](content)
            start = inverse_sigmoid(reference)
            if start.shape[-1] == 2:  # a point has no size
                start = F.pad(start, (0, 2))
            boxes = (offset + start).sigmoid()
            if self.training or last:
                results.append(Predictions(self.class_embed[head](content), boxes))
            if self.config.refine_boxes:
                reference = boxes.detach()
        return results


def projections(channels: Sequence[int], config: TransformerConfig) -> list[nn.Module]:
    """One convolution with group normalisation a level; those beyond the backbone's have stride 2."""
    dim = config.dim
    if config.num_levels == 1:
        convolutions = [nn.Conv2d(channels[-1], dim, 1)]
    else:
        convolutions = [nn.Conv2d(c, dim, 1) for c in channels[-3:]]
        for _ in range(config.num_levels - 3):
            width = channels[-1] if len(convolutions) == 3 else dim
            convolutions.append(nn.Conv2d(width, dim, 3, stride=2, padding=1))
    for convolution in convolutions:
        nn.init.xavier_uniform_(convolution.weight)
        assert convolution.bias is not None
        nn.init.zeros_(convolution.bias)
    return [nn.Sequential(convolution, nn.GroupNorm(32, dim)) for convolution in convolutions]


def valid_ratio(padding: Tensor) -> Tensor:
    """Unpadded share of (width, height) of [B, H, W] maps: [B, 2] float32."""
    valid = ~padding
    width = valid[:, 0].sum(1).float() / padding.shape[2]
    height = valid[:, :, 0].sum(1).float() / padding.shape[1]
    return torch.stack([width, height], -1)


def grid_centres(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(x, y) of pixel centres in pixels, row-major, [H*W] float32 each."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=device) + 0.5,
        torch.arange(width, dtype=torch.float32, device=device) + 0.5,
        indexing="ij",
    )
    return x.flatten(), y.flatten()


def pixel_centres(sizes: Sequence[tuple[int, int]], valid_ratios: Tensor) -> Tensor:
    """Where each token lies on each level's padded map, [B, S, levels, 2] float32.

    A token's share of its own unpadded map, times the unpadded share of the level that is sampled.
    """
    own = []
    for level, (height, width) in enumerate(sizes):
        x, y = grid_centres(height, width, valid_ratios.device)
        across, down = (valid_ratios[:, level, axis, None] for axis in (0, 1))
        own.append(torch.stack([x / (across * width), y / (down * height)], -1))
    return torch.cat(own, 1)[:, :, None] * valid_ratios[:, None]


def proposal_logits(memory: Memory, margin: float = 0.01) -> tuple[Tensor, Tensor]:
    """A box around each token as logits [B, S, 4] float32, and which are usable, [B, S] bool.

    Boxes have side 0.05 x 2^level of the unpadded image. Those near or beyond its border are +inf.
    """
    proposals = []
    parts = memory.padding.split([height * width for height, width in memory.sizes], dim=1)
    for level, ((height, width), part) in enumerate(zip(memory.sizes, parts, strict=True)):
        valid = ~part.unflatten(1, (height, width))
        x, y = grid_centres(height, width, part.device)
        centre = torch.stack(
            [x / valid[:, 0].sum(1, keepdim=True), y / valid[:, :, 0].sum(1, keepdim=True)], -1
        )
        proposals.append(torch.cat([centre, torch.full_like(centre, 0.05 * 2.0**level)], -1))
    together = torch.cat(proposals, 1)
    inside = ((together > margin) & (together < 1 - margin)).all(-1)
    usable = inside & ~memory.padding
    logits = torch.log(together / (1 - together))
    return torch.where(usable[..., None], logits, torch.inf), usable


def box_features(boxes: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Sine features of box logits: [B, Q, 4] to [B, Q, 2*dim], dim / 2 a coordinate."""
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=boxes.device)
    period = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / half)
    angle = (boxes.sigmoid() * (2 * math.pi))[..., None] / period
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(2)


def input_limits(transformer: Mapping[str, Any], dilate_last: bool) -> InputLimits:
    """The input sizes that Deformable DETR takes; with two stages it chooses queries among the places of all maps."""
    if not transformer["two_stage"]:
        return InputLimits()
    last = 16 if dilate_last else 32
    levels = transformer["num_levels"]
    strides = (last,) if levels == 1 else (8, 16, last, *(last * 2**n for n in range(1, levels - 2)))
    return InputLimits(queries=transformer["num_queries"], strides=strides)


class DeformableDetrModule(DetectionModule):
    """Trains Deformable DETR. The signature is the recipe's schema; published values are in recipes/.

    Args:
        num_classes: width of the head; must equal the data's label map.
        backbone, transformer: sizes of the parts.
        costs: weights of the matching cost.
        losses: weights of focal, L1 and GIoU loss.
        schedule: optimizer groups and learning rate.
        top_k: detections an image, at most.
    """

    class_tensors = r"^class_embed\.\d+\."
    queries_key = "transformer.num_queries"
    class_prior = PRIOR

    @classmethod
    def limits_of(cls, init_args: Mapping[str, Any]) -> InputLimits:
        """See `DetectionModule.limits_of`."""
        return input_limits(init_args["transformer"], init_args["backbone"].get("dilate_last", False))

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: BackboneConfig,
        transformer: TransformerConfig,
        costs: MatchCosts,
        losses: LossWeights,
        schedule: Schedule,
        top_k: int,
    ) -> None:
        super().__init__(num_classes=num_classes, schedule=schedule, init_args=locals())
        self.network = DeformableDetr(num_classes, build_backbone(backbone), transformer)
        self.criterion = SetCriterion(
            HungarianMatcher(costs, focal_cost),
            [LabelTerm(losses.label, SigmoidFocal()), L1Term(losses.l1), GiouTerm(losses.giou)],
        )
        self.postprocess = TopKSigmoid(top_k)

    def macs_left_out(self, height: int, width: int) -> int:
        """The class heads on all decoder layers but the last, and the box heads that do not move boxes."""
        sizes = self.init_args["transformer"]
        layers, refine = sizes["decoder_layers"], sizes["refine_boxes"]
        label, box = (self.network.get_submodule(name) for name in ("class_embed.0", "bbox_embed.0"))
        # where boxes are refined, the authors' network runs the box heads in the decoder and again after it
        of_a_query = (layers - 1) * multiply_adds(label) + (layers if refine else layers - 1) * multiply_adds(
            box
        )
        return int(sizes["num_queries"] * of_a_query)


# -- published checkpoints ------------------------------------------------------------------------

# Hugging Face names, of transformers 4 and 5, to the official ones
_HUGGING_FACE = (
    (r"^model\.backbone\.(conv_encoder\.)?model\.", "backbone.0.body."),
    *HUGGING_FACE_RESNET,
    (r"^model\.input_proj\.", "input_proj."),
    (r"^model\.query_position_embeddings\.", "query_embed."),
    (r"^model\.(decoder\.)?(class_embed|bbox_embed)\.", r"transformer.\1\2."),
    (r"^model\.", "transformer."),
    (r"\.mlp\.(fc[12])\.", r".\1."),
    (r"\.fc([12])\.", r".linear\1."),
    (r"(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"(encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"(decoder\.layers\.\d+)\.encoder_attn\.", r"\1.cross_attn."),
    (r"(decoder\.layers\.\d+)\.encoder_attn_layer_norm\.", r"\1.norm1."),
    (r"(decoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm2."),
    (r"(decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm3."),
    (r"(decoder\.layers\.\d+\.self_attn)\.o(ut)?_proj\.", r"\1.out_proj."),
)
_HEAD = re.compile(r"(?:transformer\.decoder\.)?((?:class|bbox)_embed)\.(\d+)\.(.+)")


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official or Hugging Face state dict (`model` already taken out) to ours.

    Raises:
        KeyError: a key that neither network has.
        ValueError: copies of a tied tensor differ.
    """
    if any(key.startswith("model.") for key in state):
        state = from_hugging_face(state, _HUGGING_FACE)
    # without refinement all layers share one head; the file has it once a layer
    refined = any(key.startswith("transformer.decoder.bbox_embed.") for key in state)
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        name = our_name(key, shared_heads=not refined)
        if name in converted and not torch.equal(converted[name], value):
            raise ValueError(
                f"{key!r} differs from the other copies of {name}; they are one tensor in this network, so "
                "the file is damaged or of another one"
            )
        converted[name] = value
    return _spread_tied_labels(converted)


def our_name(key: str, shared_heads: bool) -> str:
    """Our name of an official key; `shared_heads` is true without refinement."""
    if key.startswith("backbone.0.body."):
        return "backbone." + key.removeprefix("backbone.0.body.")
    head = _HEAD.fullmatch(key)
    if head:
        kind, index, rest = head.groups()
        return f"{kind}.{0 if shared_heads else index}.{rest}"
    if key.startswith(("transformer.", "input_proj.", "query_embed.")):
        return key
    raise KeyError(f"{key!r} is not a key of an official Deformable DETR checkpoint")


def _spread_tied_labels(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Since version 5, transformers ties all class heads of a refining model and saves the first; ours are separate."""
    boxes = {key.split(".")[1] for key in state if key.startswith("bbox_embed.")}
    labels = {key.split(".")[1] for key in state if key.startswith("class_embed.")}
    if labels == {"0"}:
        for index in boxes - labels:
            for part in ("weight", "bias"):
                state[f"class_embed.{index}.{part}"] = state[f"class_embed.0.{part}"].clone()
    return state
