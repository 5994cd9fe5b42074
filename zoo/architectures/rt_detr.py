"""RT-DETR (Zhao et al., arXiv 2304.08069): hybrid encoder, query selection, denoising, box refinement.

Semantics of the official PyTorch port, lyuwenyu/RT-DETR@068dfde rtdetr_pytorch; module names below the
network are its state-dict keys, so only the backbone needs a table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.contract.batch import Batch, Outputs, OutputSet, Predictions, Step
from zoo.contract.boxes import inverse_sigmoid
from zoo.contract.input_limits import InputLimits
from zoo.contract.seeds import derived_generator
from zoo.layers.backbone import BackboneConfig, build_backbone, from_presnet
from zoo.layers.deformable_attention import DeformableAttention
from zoo.layers.denoising import DenoisingQueries, contrastive_denoising
from zoo.layers.hybrid_encoder import ConvNorm, EncoderConfig, HybridEncoder
from zoo.layers.memory_format import to_tokens
from zoo.layers.mlp import MLP
from zoo.layers.published_keys import from_hugging_face
from zoo.prediction.postprocess import TopKSigmoid
from zoo.training.criterion import GiouTerm, L1Term, LabelTerm, LossWeights, SetCriterion
from zoo.training.ema import EmaConfig
from zoo.training.losses import Varifocal
from zoo.training.matcher import HungarianMatcher, MatchCosts, focal_cost
from zoo.training.module import DetectionModule
from zoo.training.schedule import Schedule

NUM_LEVELS = 3
PRIOR = 0.01  # initial probability of every class, RetinaNet's focal prior


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of the decoder and its denoising part.

    Attributes:
        dim, num_heads, ffn_dim, num_points: of every layer; points per level and head.
        num_queries: objects at most.
        num_layers: layers that are trained.
        eval_layers: layers that run in evaluation, counted from the first.
        num_denoising: positive denoising queries aimed at (twice as many with the negatives); 0 for none.
        label_noise: half of this share of the denoising labels is replaced.
        box_noise: corners of positives move by up to this many half sizes.
        learned_queries: content is a learned embedding instead of the selected encoder tokens.
    """

    dim: int
    num_queries: int
    num_layers: int
    eval_layers: int
    num_heads: int
    num_points: int
    ffn_dim: int
    num_denoising: int
    label_noise: float
    box_noise: float
    learned_queries: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.eval_layers <= self.num_layers:
            raise ValueError(f"eval_layers ({self.eval_layers}) must be in 1..num_layers ({self.num_layers})")


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward; post-norm, ReLU, no dropout."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        dim = config.dim
        self.self_attn = nn.MultiheadAttention(dim, config.num_heads, batch_first=True)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn = DeformableAttention(dim, config.num_heads, NUM_LEVELS, config.num_points)
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
        return self.norm3(content + self.linear2(F.relu(self.linear1(content))))


class DecoderStack(nn.Module):
    """The layers; exists for its published key, `decoder.layers`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))


@dataclass(frozen=True)
class Selection:
    """Queries selected from the encoder, and the encoder's own predictions for them."""

    content: Tensor  # [B, Q, dim], detached
    reference: Tensor  # [B, Q, 4] logits, detached
    encoder: Predictions  # [B, Q, .], with gradient


class Decoder(nn.Module):
    """Selects queries from the encoder's tokens and refines their boxes layer by layer."""

    def __init__(self, channels: Sequence[int], num_classes: int, config: DecoderConfig) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.num_classes = num_classes
        self.eval_layers = config.eval_layers
        self.input_proj = nn.ModuleList(ConvNorm(c, dim, 1) for c in channels)
        self.decoder = DecoderStack(config)
        self.denoising_class_embed = nn.Embedding(num_classes + 1, dim, padding_idx=num_classes)
        if config.learned_queries:
            self.tgt_embed = nn.Embedding(config.num_queries, dim)
        self.query_pos_head = MLP(4, 2 * dim, dim, num_layers=2)
        self.enc_output = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim))
        self.enc_score_head = nn.Linear(dim, num_classes)
        self.enc_bbox_head = MLP(dim, dim, 4, num_layers=3)
        self.dec_score_head = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(config.num_layers))
        self.dec_bbox_head = nn.ModuleList(MLP(dim, dim, 4, num_layers=3) for _ in range(config.num_layers))
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
        for linear in (self.enc_output[0], *self.query_pos_head.layers):
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
        return self.supervised(layers, selection.encoder, denoising)

    def select(self, memory: Tensor, sizes: Sequence[tuple[int, int]]) -> Selection:
        """The tokens with the highest class logit become queries; their boxes start at anchors."""
        anchors, valid = anchor_logits(sizes, memory.device)
        tokens = self.enc_output(memory * valid.to(memory.dtype)[:, None])
        logits = self.enc_score_head(tokens)
        best = logits.max(-1).values.topk(self.config.num_queries, dim=1).indices
        chosen = best[..., None]
        # the box head runs on the selected tokens only: the others' boxes are never used
        selected = tokens.gather(1, chosen.expand(-1, -1, tokens.shape[-1]))
        offsets = self.enc_bbox_head(selected)
        boxes = offsets + anchors.to(offsets.dtype)[best]
        encoder = Predictions(logits.gather(1, chosen.expand(-1, -1, self.num_classes)), boxes.sigmoid())
        content = selected.detach()
        if self.config.learned_queries:
            content = self.tgt_embed.weight.expand(len(memory), -1, -1)
        return Selection(content, boxes.detach(), encoder)

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
            content = layer(content, position, detached, memory, sizes, blocked)
            offset = self.dec_bbox_head[index](content)
            boxes = (offset + inverse_sigmoid(detached)).sigmoid()
            if self.training or index == last - 1:
                supervised = boxes
                if previous is not None and self.training:
                    supervised = (offset + inverse_sigmoid(previous)).sigmoid()
                results.append(Predictions(self.dec_score_head[index](content), supervised))
            previous, detached = boxes, boxes.detach()
        return results

    def supervised(
        self, layers: Sequence[Predictions], encoder: Predictions, denoising: DenoisingQueries | None
    ) -> Outputs:
        """Names the sets: decoder layers, the encoder's selection, and the denoising queries."""
        logits = torch.stack([p.logits for p in layers])
        boxes = torch.stack([p.boxes for p in layers])
        noised = 0 if denoising is None else denoising.labels.shape[1]
        matching = Predictions(logits[:, :, noised:], boxes[:, :, noised:])
        sets = [
            OutputSet("decoder", matching),
            OutputSet("encoder", Predictions(encoder.logits[None], encoder.boxes[None])),
        ]
        if denoising is not None:
            part = Predictions(logits[:, :, :noised], boxes[:, :, :noised])
            sets.append(OutputSet("denoising", part, denoising.pairs, divisor=denoising.groups))
        return Outputs(Predictions(matching.logits[-1], matching.boxes[-1]), tuple(sets))


def anchor_logits(
    sizes: Sequence[tuple[int, int]], device: torch.device, scale: float = 0.05, margin: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Anchors of all tokens as logits [S, 4] float32, and which lie well inside the image [S] bool.

    Those outside are +inf, so that a selected one would stay where it is.
    """
    anchors = []
    for level, (height, width) in enumerate(sizes):
        y, x = torch.meshgrid(
            torch.arange(height, dtype=torch.float32, device=device),
            torch.arange(width, dtype=torch.float32, device=device),
            indexing="ij",
        )
        side = torch.full_like(x, scale * 2.0**level)
        anchors.append(torch.stack([(x + 0.5) / width, (y + 0.5) / height, side, side], -1).view(-1, 4))
    together = torch.cat(anchors)
    valid = ((together > margin) & (together < 1 - margin)).all(-1)
    logits = torch.log(together / (1 - together))
    return torch.where(valid[:, None], logits, torch.inf), valid


class RtDetr(nn.Module):
    """Backbone -> hybrid encoder -> decoder. Images are RGB in [0, 1], sides multiples of 32."""

    def __init__(
        self,
        num_classes: int,
        backbone: BackboneConfig,
        encoder: EncoderConfig,
        decoder: DecoderConfig,
        multi_scale: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone)
        self.encoder = HybridEncoder(self.backbone.channels, encoder)
        self.decoder = Decoder([encoder.dim] * NUM_LEVELS, num_classes, decoder)
        self.num_classes = num_classes
        self.multi_scale = tuple(multi_scale)
        self.limits = input_limits(decoder.num_queries, multi_scale)

    def forward(self, batch: Batch) -> Outputs:
        """Normalised float images to outputs.

        Raises:
            ValueError: a side of the images is not a multiple of 32, or they have fewer places than queries.
        """
        images, denoising = self.prepare(batch)
        self.limits.refuse((images.shape[-2], images.shape[-1]), "RT-DETR")
        return self.compute(images, denoising)

    def prepare(self, batch: Batch) -> tuple[Tensor, DenoisingQueries | None]:
        """All draws of a step, made on the host: images at the step's scale and denoising queries."""
        if not self.training:
            return batch.images, None
        if batch.step is None:
            raise ValueError("training needs Batch.step, the facts of the whole optimizer step")
        return self.rescale(batch.images, batch.step), self.denoise(batch)

    def compute(self, images: Tensor, denoising: DenoisingQueries | None) -> Outputs:
        """The network itself: tensors in, tensors out, one graph for `torch.compile`."""
        outputs = self.decoder(self.encoder(self.backbone(images)), denoising)
        if self.training and denoising is None:
            outputs = self.keep_in_graph(outputs)
        return outputs

    def rescale(self, images: Tensor, step: Step) -> Tensor:
        """The published multi-scale training: the whole step at one square size, drawn from (seed, step)."""
        if not self.multi_scale:
            return images
        draw = torch.randint(
            len(self.multi_scale), (), generator=derived_generator(step.seed, step.index, -1)
        )
        side = self.multi_scale[int(draw)]
        # nearest is the default that the official code leaves interpolate at
        return images if images.shape[-2:] == (side, side) else F.interpolate(images, (side, side))

    def denoise(self, batch: Batch) -> DenoisingQueries | None:
        """Noised objects of the batch, or None."""
        config = self.decoder.config
        return contrastive_denoising(
            batch,
            num_classes=self.num_classes,
            num_queries=config.num_queries,
            num_denoising=config.num_denoising,
            label_noise=config.label_noise,
            box_noise=config.box_noise,
        )

    def keep_in_graph(self, outputs: Outputs) -> Outputs:
        """Without objects there is no denoising; its embedding must still take part for DDP."""
        nothing = 0.0 * self.decoder.denoising_class_embed.weight.sum()
        first = outputs.supervised[0]
        logits = first.predictions.logits + nothing.to(first.predictions.logits.dtype)
        kept = replace(first, predictions=first.predictions._replace(logits=logits))
        return replace(outputs, supervised=(kept, *outputs.supervised[1:]))


def input_limits(num_queries: int, multi_scale: Sequence[int]) -> InputLimits:
    """What sizes of input RT-DETR takes: its queries are the best places of three maps."""
    return InputLimits(
        multiple_of=32,
        queries=num_queries,
        strides=(8, 16, 32),
        training_sizes=tuple((side, side) for side in multi_scale),
    )


class RtDetrModule(DetectionModule):
    """Trains RT-DETR. The signature is the recipe's schema; published values are in recipes/rt_detr/.

    Args:
        num_classes: width of the head; must equal the data's label map.
        backbone, encoder, decoder: sizes of the parts.
        costs: weights of the matching cost.
        losses: weights of varifocal, L1 and GIoU loss.
        schedule: optimizer groups and learning rate.
        ema: average of the weights, used for evaluation and release; null for none.
        multi_scale: square training sizes, one drawn per step with equal probability; empty for none.
    """

    class_tensors = r"^decoder\.(enc_score_head|dec_score_head\.\d+|denoising_class_embed)\."
    queries_key = "decoder.num_queries"
    class_prior = PRIOR

    @classmethod
    def limits_of(cls, init_args: Mapping[str, Any]) -> InputLimits:
        """See `DetectionModule.limits_of`."""
        return input_limits(init_args["decoder"]["num_queries"], init_args["multi_scale"])

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: BackboneConfig,
        encoder: EncoderConfig,
        decoder: DecoderConfig,
        costs: MatchCosts,
        losses: LossWeights,
        schedule: Schedule,
        ema: EmaConfig | None,
        multi_scale: list[int],
    ) -> None:
        super().__init__(num_classes=num_classes, schedule=schedule, init_args=locals())
        self.network = RtDetr(num_classes, backbone, encoder, decoder, multi_scale)
        self.criterion = SetCriterion(
            HungarianMatcher(costs, focal_cost),
            [LabelTerm(losses.label, Varifocal()), L1Term(losses.l1), GiouTerm(losses.giou)],
        )
        self.postprocess = TopKSigmoid(decoder.num_queries)
        self.average(ema)

    @property
    def decoder_layers(self) -> int:
        """See `DetectionModule.decoder_layers`."""
        return len(self._decoder.decoder.layers)

    def set_decoder_layers(self, count: int) -> int:
        """See `DetectionModule.set_decoder_layers`."""
        before, self._decoder.eval_layers = self._decoder.eval_layers, count
        return before

    @property
    def _decoder(self) -> Decoder:
        return cast(RtDetr, self.evaluation_network).decoder


# -- published checkpoints ------------------------------------------------------------------------

# RTDetrForObjectDetection's names, of transformers 4 (the files on the hub) and 5, to the official ones
_HUGGING_FACE = (
    (r"^model\.backbone\.model\.embedder\.embedder\.0\.", "backbone.conv1.conv1_1."),
    (r"^model\.backbone\.model\.embedder\.embedder\.1\.", "backbone.conv1.conv1_2."),
    (r"^model\.backbone\.model\.embedder\.embedder\.2\.", "backbone.conv1.conv1_3."),
    (
        r"^model\.backbone\.model\.encoder\.stages\.(\d)\.layers\.(\d+)\.",
        r"backbone.res_layers.\1.blocks.\2.",
    ),
    (r"^(backbone\..*)\.layer\.0\.", r"\1.branch2a."),
    (r"^(backbone\..*)\.layer\.1\.", r"\1.branch2b."),
    (r"^(backbone\..*)\.layer\.2\.", r"\1.branch2c."),
    (r"^(backbone\..*)\.shortcut\.1\.", r"\1.short.conv."),
    (r"^(backbone\..*)\.shortcut\.", r"\1.short."),
    (r"^(backbone\..*)\.convolution\.", r"\1.conv."),
    (r"^(backbone\..*)\.normalization\.", r"\1.norm."),
    (r"^model\.encoder_input_proj\.", "encoder.input_proj."),
    (r"^model\.decoder_input_proj\.(\d)\.0\.", r"decoder.input_proj.\1.conv."),
    (r"^model\.decoder_input_proj\.(\d)\.1\.", r"decoder.input_proj.\1.norm."),
    (r"^model\.encoder\.aifi\.", "encoder.encoder."),
    (r"^model\.encoder\.", "encoder."),
    (r"^model\.decoder\.layers\.", "decoder.decoder.layers."),
    (r"^model\.decoder\.query_pos_head\.", "decoder.query_pos_head."),
    (r"^(model\.decoder\.)?class_embed\.", "decoder.dec_score_head."),
    (r"^(model\.decoder\.)?bbox_embed\.", "decoder.dec_bbox_head."),
    (r"^model\.weight_embedding\.", "decoder.tgt_embed."),
    (r"^model\.(denoising_class_embed|enc_output|enc_score_head|enc_bbox_head)\.", r"decoder.\1."),
    (r"(layers\.\d)\.(?:mlp\.)?fc([12])\.", r"\1.linear\2."),
    (r"(layers\.\d)\.encoder_attn\.", r"\1.cross_attn."),
    (r"(layers\.\d)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"(layers\.\d)\.encoder_attn_layer_norm\.", r"\1.norm2."),
    (r"^(encoder\..*layers\.\d)\.final_layer_norm\.", r"\1.norm2."),
    (r"^(decoder\..*layers\.\d)\.final_layer_norm\.", r"\1.norm3."),
    (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
)


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official state dict (`ema.module` or `model` already taken out), or Hugging Face's, to ours.

    Raises:
        KeyError: a key that the official network does not have.
    """
    if any(key.startswith("model.") for key in state):
        state = from_hugging_face(state, _HUGGING_FACE)
    converted = {}
    backbone = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part == "backbone":
            backbone[rest] = value
        elif part in ("encoder", "decoder"):
            converted[key] = value
        else:
            raise KeyError(f"{key!r} is not a key of an official RT-DETR checkpoint")
    return {f"backbone.{key}": value for key, value in from_presnet(backbone).items()} | converted
