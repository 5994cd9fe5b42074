"""DEIMv2 (Huang et al., arXiv 2509.20787) on HGNetv2: Atto, Femto, Pico and N.

Semantics of Intellindust-AI-Lab/DEIMv2@0fff8d4. S to X stand on DINOv3, whose licence is another one: not yet here.
Module names below the network are the state-dict keys of the official code, but for the encoder's input projections.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zoo.contract.input_limits import InputLimits
from zoo.layers.backbone import BackboneConfig, build_backbone
from zoo.layers.denoising_network import DenoisingNetwork
from zoo.layers.gated_decoder import GatedConfig, GatedDecoder
from zoo.layers.published_keys import numbered, put
from zoo.layers.sum_encoder import SumEncoderConfig, build_encoder
from zoo.prediction.postprocess import TopKSigmoid
from zoo.training.criterion import GiouTerm, L1Term, LabelTerm, LossTerm, LossWeights, SetCriterion
from zoo.training.distribution_losses import DistillationTerm, LocalisationTerm
from zoo.training.ema import EmaConfig
from zoo.training.losses import MatchabilityAware
from zoo.training.matcher import MatchCosts, Unite, focal_cost, union_of_matchings
from zoo.training.overlap_matching import LateOverlapMatcher, OverlapMatching
from zoo.training.refining_module import RefiningModule, selection_limits
from zoo.training.schedule import Schedule

TOP_PAIRS = 300  # (query, class) pairs of an image, however many queries a size has


@dataclass(frozen=True, kw_only=True)
class RefinementWeights:
    """Weights of the losses of distributions: of their place (FGL), and of what layers learn from the last (DDF)."""

    fgl: float
    ddf: float


class DeimV2(DenoisingNetwork):
    """Backbone -> hybrid or lite encoder -> decoder. Images are RGB in [0, 1], sides multiples of 32."""

    title = "DEIMv2"
    uncross = True
    decoder: GatedDecoder

    def __init__(
        self,
        num_classes: int,
        backbone: BackboneConfig,
        encoder: SumEncoderConfig,
        decoder: GatedConfig,
        multi_scale: Sequence[int] = (),
        multi_scale_epochs: int | None = None,
    ) -> None:
        extractor = build_backbone(backbone)
        levels = len(decoder.num_points)
        super().__init__(
            backbone=extractor,
            encoder=build_encoder(extractor.channels, encoder),
            decoder=GatedDecoder([encoder.dim] * levels, num_classes, decoder),
            num_classes=num_classes,
            denoising=decoder,
            multi_scale=multi_scale,
            multi_scale_epochs=multi_scale_epochs,
            limits=selection_limits(decoder.num_queries, levels, multi_scale),
        )


def build_criterion(
    costs: MatchCosts,
    late: OverlapMatching,
    losses: LossWeights,
    refinement: RefinementWeights | None,
    reg_scale: float,
    unite: Unite = union_of_matchings,
) -> SetCriterion:
    """The criterion; where distributions have losses of their own, boxes are compared in the union of all matchings."""
    terms: list[LossTerm] = [
        LabelTerm(losses.label, MatchabilityAware()),
        L1Term(losses.l1),
        GiouTerm(losses.giou),
    ]
    if refinement is not None:
        terms += [LocalisationTerm(refinement.fgl, reg_scale), DistillationTerm(refinement.ddf)]
    matcher = LateOverlapMatcher(costs, focal_cost, late)
    return SetCriterion(matcher, terms, None if refinement is None else unite)


class DeimV2Module(RefiningModule):
    """Trains DEIMv2. The signature is the recipe's schema; published values are in recipes/deimv2/.

    Args:
        num_classes: width of the head; must equal the data's label map.
        backbone, encoder, decoder: sizes of the parts.
        costs: weights of the matching cost, until it becomes another one.
        overlap_matching: from when on queries are matched by probability and overlap.
        losses: weights of label, L1 and GIoU loss.
        refinement: weights of the losses of distributions; null for none, and a set's boxes in its own pairs.
        schedule: optimizer groups and learning rate.
        ema: average of the weights, used for evaluation and release; null for none.
        multi_scale: square training sizes, one drawn per step with equal probability; empty for none.
        multi_scale_epochs: epochs that have them, counted from the first; null for all.
    """

    @classmethod
    def limits_of(cls, init_args: Mapping[str, Any]) -> InputLimits:
        """See `DetectionModule.limits_of`."""
        decoder = init_args["decoder"]
        return selection_limits(decoder["num_queries"], len(decoder["num_points"]), init_args["multi_scale"])

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: BackboneConfig,
        encoder: SumEncoderConfig,
        decoder: GatedConfig,
        costs: MatchCosts,
        overlap_matching: OverlapMatching,
        losses: LossWeights,
        refinement: RefinementWeights | None,
        schedule: Schedule,
        ema: EmaConfig | None,
        multi_scale: list[int],
        multi_scale_epochs: int | None = None,
    ) -> None:
        super().__init__(num_classes=num_classes, schedule=schedule, init_args=locals())
        self.network = DeimV2(num_classes, backbone, encoder, decoder, multi_scale, multi_scale_epochs)
        self.estimates_pairs = refinement is not None
        self.criterion = build_criterion(costs, overlap_matching, losses, refinement, decoder.reg_scale)
        self.postprocess = TopKSigmoid(TOP_PAIRS)
        self.average(ema)


# -- published checkpoints ------------------------------------------------------------------------

# compared by `check_published`
_COMPUTED = re.compile(r"decoder\.(anchors|valid_mask|.*cross_attn\.num_points_scale)")
_CONSTANT = re.compile(
    r"decoder\.decoder\.(up|reg_scale)"
)  # of the decoder, under the name of its layers too
_BOX_HEAD = "decoder.dec_bbox_head."


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official state dict (`ema.module` or `model` already taken out) to ours.

    Left out is what `check_published` compares; loading compares `up` and `reg_scale`.

    Raises:
        KeyError: a key that the official network does not have.
        ValueError: the two copies of a tensor differ.
    """
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        part = key.partition(".")[0]
        if key.startswith("backbone.dinov3."):
            raise KeyError(
                f"{key!r} is of a DEIMv2 on DINOv3, S to X; this package has Atto, Femto, Pico and N"
            )
        if part not in ("backbone", "encoder", "decoder"):
            raise KeyError(f"{key!r} is not a key of an official DEIMv2 checkpoint")
        if not _COMPUTED.fullmatch(key):
            put(converted, _CONSTANT.sub(r"decoder.\1", numbered(key)), value)
    return converted | _shared_heads(converted)


def _shared_heads(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The box head of every layer, where a file has one for all and names it once, as safetensors do."""
    layers = sum(re.fullmatch(r"decoder\.dec_score_head\.\d+\.weight", key) is not None for key in state)
    heads = {key.removeprefix(_BOX_HEAD): value for key, value in state.items() if key.startswith(_BOX_HEAD)}
    if any(not key.startswith("0.") for key in heads):
        return {}
    return {
        f"{_BOX_HEAD}{layer}{key[1:]}": value for layer in range(1, layers) for key, value in heads.items()
    }
