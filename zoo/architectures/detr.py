"""DETR (Carion et al., arXiv 2005.12872): a set of learned queries over the tokens of one feature map, and masks.

Semantics of the official code, facebookresearch/detr@29901c5; module names are its state-dict keys, except for
the backbone (`backbone.0.body.` there) and the learned position (`backbone.1.` there).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.contract.batch import Batch, Outputs, OutputSet, Predictions
from zoo.layers.backbone import HUGGING_FACE_RESNET, BackboneConfig, build_backbone
from zoo.layers.mask_head import AttentionMap, MaskHead, QueryMasks
from zoo.layers.memory_format import to_tokens
from zoo.layers.mlp import MLP, multiply_adds
from zoo.layers.position import sine_2d
from zoo.layers.precision import autocast_dtype
from zoo.layers.published_keys import from_hugging_face, renamed
from zoo.layers.transformer import Transformer, TransformerConfig
from zoo.prediction.masks import InstanceMasks, PanopticRule
from zoo.prediction.postprocess import BestClassSoftmax
from zoo.training.criterion import (
    DiceTerm,
    GiouTerm,
    L1Term,
    LossTerm,
    LossWeights,
    MaskFocalTerm,
    MaskLossWeights,
    Matches,
    SetCriterion,
)
from zoo.training.ema import EmaConfig
from zoo.training.ignored import logits_to_learn
from zoo.training.losses import SoftmaxCrossEntropy
from zoo.training.matcher import HungarianMatcher, MatchCosts, softmax_cost
from zoo.training.module import DetectionModule
from zoo.training.schedule import Schedule

LARGEST_LEARNED = 50  # rows and columns of the learned position encoding

Normalizer = Literal["exact", "official"]


class SinePosition(nn.Module):
    """Fixed encoding that follows the unpadded part of each image."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, padding: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, H, W] bool to [B, H*W, dim]; computed in float32 as in the official code."""
        return sine_2d(padding, self.dim, shift=0.0).flatten(2).transpose(1, 2).to(dtype)


class LearnedPosition(nn.Module):
    """An embedding for each column (first half of the channels) and each row."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(LARGEST_LEARNED, dim // 2)
        self.col_embed = nn.Embedding(LARGEST_LEARNED, dim // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, padding: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, H, W] bool to [H*W, dim].

        Raises:
            ValueError: the map is larger than the table.
        """
        height, width = padding.shape[-2:]
        if max(height, width) > LARGEST_LEARNED:
            raise ValueError(
                f"the feature map is {height}x{width}; position: learned has {LARGEST_LEARNED} rows and columns. "
                "Use position: sine or smaller images"
            )
        columns = self.col_embed.weight[:width].expand(height, -1, -1)
        rows = self.row_embed.weight[:height, None].expand(-1, width, -1)
        return torch.cat([columns, rows], dim=-1).flatten(0, 1).to(dtype)


class Detr(nn.Module):
    """Backbone -> 1x1 projection -> transformer -> heads shared by all decoder layers.

    Images are normalised RGB of any size; the last logit is "no object".

    Args:
        num_classes: without "no object".
        backbone, transformer: sizes of the parts.
        masks: adds the mask branch, which runs when `Predictions.masks` is called.
    """

    bbox_attention: AttentionMap | None
    mask_head: MaskHead | None

    def __init__(
        self, num_classes: int, backbone: BackboneConfig, transformer: TransformerConfig, masks: bool
    ) -> None:
        super().__init__()
        dim = transformer.dim
        self.backbone = build_backbone(backbone)
        self.position = SinePosition(dim) if transformer.position == "sine" else LearnedPosition(dim)
        self.input_proj = nn.Conv2d(self.backbone.channels[-1], dim, kernel_size=1)
        self.query_embed = nn.Embedding(transformer.num_queries, dim)
        self.transformer = Transformer(transformer)
        self.class_embed = nn.Linear(dim, num_classes + 1)
        self.bbox_embed = MLP(dim, dim, 4, num_layers=3)
        self.bbox_attention, self.mask_head = None, None
        if masks:
            heads, stages = transformer.num_heads, self.backbone.channels[-2::-1]
            self.bbox_attention = AttentionMap(dim, heads)
            self.mask_head = MaskHead(dim, heads, stages)

    def forward(self, batch: Batch) -> Outputs:
        """Normalised float images to outputs; all decoder layers are supervised in training."""
        *finer, features = self.backbone(batch.images)
        padding = self.padding_of(batch.padding, (features.shape[-2], features.shape[-1]))
        projected = self.input_proj(features)
        tokens = to_tokens(projected)
        position = self.position(padding, tokens.dtype)
        decoded, memory = self.transformer(tokens, padding.flatten(1), self.query_embed.weight, position)
        masks = None
        if self.mask_head is not None and self.bbox_attention is not None:
            stages = tuple(reversed(finer))
            masks = QueryMasks(
                self.bbox_attention, self.mask_head, decoded[-1], memory, padding, projected, stages,
                autocast_dtype(projected.device),
            )  # fmt: skip
        predictions = Predictions(self.class_embed(decoded), self.bbox_embed(decoded).sigmoid(), masks=masks)
        final = predictions._replace(logits=predictions.logits[-1], boxes=predictions.boxes[-1])
        return Outputs(final, (OutputSet("decoder", predictions),) if self.training else ())

    @staticmethod
    def padding_of(padding: Tensor, size: tuple[int, int]) -> Tensor:
        """[B, H, W] bool at the size of the feature map: each cell takes the value of the pixel at its corner."""
        return F.interpolate(padding[:, None].float(), size)[:, 0].bool()  # nearest is the default


class SoftmaxLabelTerm:
    """Weighted cross entropy of every query, divided by the sum of the weights.

    A matched query weighs 1, another `no_object`. `exact` divides by the sum over the whole optimizer
    step, which follows from its numbers of objects: an image with n objects matches n queries, at most all.
    `official` divides by the sum over the micro-batch and averages over micro-batches and ranks, so the
    gradient depends on the split (facebookresearch/detr@29901c5 models/detr.py, loss_labels).
    """

    name = "label"

    def __init__(self, weight: float, no_object: float, normalizer: Normalizer) -> None:
        self.weight, self.normalizer = weight, normalizer
        # the official weights are a float32 buffer, also where the rest is float64
        self.no_object = float(np.float32(no_object))
        self.loss = SoftmaxCrossEntropy(self.no_object)

    def __call__(self, matches: Matches) -> dict[str, Tensor]:
        """{set: [L]}."""
        losses = {}
        for matched in matches.sets:
            logits = logits_to_learn(matched, matches.targets, softmax=True)
            index = matched.matched_logits(matches.targets)
            total = self.loss(logits.flatten(1, 2), index, torch.empty(0))
            losses[matched.outputs.name] = total / self.divisor(matches, queries=logits.shape[2])
        return losses

    def divisor(self, matches: Matches, queries: int) -> float:
        """What the sum over a micro-batch is divided by."""
        if self.normalizer == "exact":
            return self.weight_sum(matches.step.counts, queries)
        local = torch.tensor(matches.targets.counts, dtype=torch.int64)
        micro_batches = len(matches.step.counts) / max(1, len(local))
        return self.weight_sum(local, queries) * micro_batches

    def weight_sum(self, counts: Tensor, queries: int) -> float:
        """Class weights of all queries of images with so many objects each; both on the CPU."""
        matched = int(counts.clamp(max=queries).sum())
        return matched + self.no_object * (len(counts) * queries - matched)


class DetrModule(DetectionModule):
    """Trains DETR. The signature is the recipe's schema; published values are in recipes/detr/.

    Args:
        num_classes: classes of the data's label map; the head has one logit more, for "no object".
        backbone, transformer: sizes of the parts.
        costs: weights of the matching cost.
        losses: weights of cross entropy, L1 and GIoU loss.
        no_object_weight: class weight of "no object" in the cross entropy.
        normalizer: of the cross entropy, see `SoftmaxLabelTerm`.
        schedule: optimizer groups and learning rate.
        ema: average of the weights, used for evaluation and release; null for none.
    """

    class_tensors = r"^class_embed\."
    queries_key = "transformer.num_queries"

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: BackboneConfig,
        transformer: TransformerConfig,
        costs: MatchCosts,
        losses: LossWeights,
        no_object_weight: float,
        normalizer: Normalizer,
        schedule: Schedule,
        ema: EmaConfig | None,
    ) -> None:
        super().__init__(num_classes=num_classes, schedule=schedule, init_args=locals())
        self.network = Detr(num_classes, backbone, transformer, masks=False)
        self.criterion = detr_criterion(costs, losses, no_object_weight, normalizer)
        self.postprocess = BestClassSoftmax()
        self.average(ema)

    def macs_left_out(self, height: int, width: int) -> int:
        """The heads on all decoder layers but the last."""
        sizes = self.init_args["transformer"]
        heads = (self.network.get_submodule(name) for name in ("class_embed", "bbox_embed"))
        return int((sizes["decoder_layers"] - 1) * sizes["num_queries"] * multiply_adds(*heads))


class DetrSegmentationModule(DetectionModule):
    """Trains DETR with masks: instances, or panoptic segments where the classes are things and stuff.

    The published models were trained in two stages: `DetrModule` on the boxes of all segments, then this with
    `init_from` the result, which has no mask branch, and a rule of the schedule that freezes all but
    `bbox_attention` and `mask_head`. Without the rule everything trains together.

    Args:
        mask_losses: weights of the mask losses.
        mask_threshold: probability above which a pixel belongs to an instance.
        panoptic: how masks become one segment a pixel; null for instances only.
        num_classes, backbone, transformer, costs, losses, no_object_weight, normalizer, schedule, ema: see
            `DetrModule`.
    """

    class_tensors = r"^class_embed\."
    queries_key = "transformer.num_queries"
    learns_masks = True
    added_tensors = r"^(bbox_attention|mask_head)\."

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: BackboneConfig,
        transformer: TransformerConfig,
        costs: MatchCosts,
        losses: LossWeights,
        mask_losses: MaskLossWeights,
        no_object_weight: float,
        normalizer: Normalizer,
        mask_threshold: float,
        panoptic: PanopticRule | None,
        schedule: Schedule,
        ema: EmaConfig | None,
    ) -> None:
        super().__init__(num_classes=num_classes, schedule=schedule, init_args=locals())
        self.network = Detr(num_classes, backbone, transformer, masks=True)
        self.criterion = detr_criterion(costs, losses, no_object_weight, normalizer, mask_losses)
        self.postprocess = BestClassSoftmax()
        self.instances = InstanceMasks(mask_threshold)
        self.panoptic = panoptic
        self.average(ema)


def detr_criterion(
    costs: MatchCosts,
    losses: LossWeights,
    no_object_weight: float,
    normalizer: Normalizer,
    mask_losses: MaskLossWeights | None = None,
) -> SetCriterion:
    """Softmax matching, weighted cross entropy, L1 and GIoU; focal and dice where there are masks."""
    terms: list[LossTerm] = [
        SoftmaxLabelTerm(losses.label, no_object_weight, normalizer),
        L1Term(losses.l1),
        GiouTerm(losses.giou),
    ]
    if mask_losses is not None:
        terms += [MaskFocalTerm(mask_losses.focal), DiceTerm(mask_losses.dice)]
    return SetCriterion(HungarianMatcher(costs, softmax_cost), terms)


# -- published checkpoints ------------------------------------------------------------------------

_OFFICIAL_PREFIXES = {"backbone.0.body.": "backbone.", "backbone.1.": "position."}
_OFFICIAL_PARTS = ("transformer.", "input_proj.", "query_embed.", "class_embed.", "bbox_embed.")
_WITH_MASKS = "detr."  # prefix of the detector in a checkpoint with masks, which has these parts beside it:
_MASK_PARTS = ("bbox_attention.", "mask_head.")


# DetrForObjectDetection to the official names; the files on the hub were saved by
# transformers 4 and have its names, a running model of transformers 5 has the others
_HUGGING_FACE = (
    (r"^model\.backbone\.(conv_encoder\.)?model\.", "backbone.0.body."),
    *HUGGING_FACE_RESNET,
    (r"^model\.query_position_embeddings\.", "query_embed."),
    (r"^model\.input_projection\.", "input_proj."),
    (r"^model\.(encoder|decoder)\.layernorm\.", r"transformer.\1.norm."),
    (r"^class_labels_classifier\.", "class_embed."),
    (r"^bbox_predictor\.", "bbox_embed."),
    (
        r"^model\.((?:encoder|decoder)\.layers\.\d+)\.(?=self_attn|encoder_attn|mlp\.fc|fc|final_layer_norm)",
        r"transformer.\1.",
    ),
    (r"\.(mlp\.)?fc([12])\.", r".linear\2."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"(encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"(decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm3."),
    (r"\.encoder_attn\.", ".multihead_attn."),
    (r"_attn\.o_proj\.", "_attn.out_proj."),
)


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published state dict to ours: the official or the Hugging Face layout, with or without masks.

    Raises:
        KeyError: a key that no published DETR has.
    """
    masks = {_from_mask_key(key): value for key, value in state.items() if key.startswith(_MASK_PARTS)}
    detector = {
        key.removeprefix(_WITH_MASKS): value
        for key, value in state.items()
        if not key.startswith(_MASK_PARTS)
    }
    if any(key.startswith(("model.", "class_labels_classifier.")) for key in detector):
        detector = {
            key: value
            for key, value in from_hugging_face(detector, _HUGGING_FACE).items()
            if not key.endswith("num_batches_tracked")  # frozen norms have none
        }
    return {_from_official_key(key): value for key, value in detector.items()} | masks


# DetrForSegmentation of transformers 5; transformers 4, and so the files on the hub, kept the official names
_HUGGING_FACE_MASKS = (
    (r"^bbox_attention\.([qk])_proj\.", r"bbox_attention.\1_linear."),
    (r"^mask_head\.conv([12])\.conv\.", r"mask_head.lay\1."),
    (r"^mask_head\.conv([12])\.norm\.", r"mask_head.gn\1."),
    (r"^mask_head\.output_conv\.", "mask_head.out_lay."),
    *((rf"^mask_head\.fpn_stages\.{n}\.fpn_adapter\.", f"mask_head.adapter{n + 1}.") for n in range(3)),
    *((rf"^mask_head\.fpn_stages\.{n}\.refine\.conv\.", f"mask_head.lay{n + 3}.") for n in range(3)),
    *((rf"^mask_head\.fpn_stages\.{n}\.refine\.norm\.", f"mask_head.gn{n + 3}.") for n in range(3)),
)
_OFFICIAL_MASKS = (
    r"(bbox_attention\.[qk]_linear|mask_head\.((lay|gn)[1-5]|out_lay|adapter[1-3]))\.(weight|bias)"
)


def _from_mask_key(key: str) -> str:
    name = renamed(key, _HUGGING_FACE_MASKS)
    if not re.fullmatch(_OFFICIAL_MASKS, name):
        raise KeyError(f"{key!r} is not a key of a published DETR with masks")
    return name


def _from_official_key(key: str) -> str:
    for theirs, ours in _OFFICIAL_PREFIXES.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    if key.startswith(_OFFICIAL_PARTS):
        return key
    raise KeyError(f"{key!r} is not a key of an official DETR checkpoint")
