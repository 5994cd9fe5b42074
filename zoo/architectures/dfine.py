"""D-FINE (Peng et al., arXiv 2410.13842): boxes refined as distributions, later layers teach earlier ones.

Semantics of Peterande/D-FINE@4a1f73a; module names below the network are the state-dict keys of the official code,
but for the encoder's input projections and the selection's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from zoo.contract.input_limits import InputLimits
from zoo.layers.backbone import BackboneConfig, build_backbone
from zoo.layers.denoising_network import DenoisingNetwork
from zoo.layers.distribution_decoder import DistributionConfig, DistributionDecoder
from zoo.layers.gelan_encoder import GelanEncoder
from zoo.layers.hybrid_encoder import EncoderConfig
from zoo.layers.published_keys import HUGGING_FACE_RT_DETR, from_hugging_face, numbered, put
from zoo.prediction.postprocess import TopKSigmoid
from zoo.training.criterion import GiouTerm, L1Term, LabelTerm, SetCriterion
from zoo.training.distribution_losses import DistillationTerm, LocalisationTerm
from zoo.training.ema import EmaConfig
from zoo.training.losses import LABEL_LOSSES
from zoo.training.matcher import HungarianMatcher, MatchCosts, focal_cost, union_of_matchings
from zoo.training.refining_module import RefiningModule, selection_limits
from zoo.training.schedule import Schedule

DETECTIONS = 300  # best pairs of query and class


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the loss terms, the same for every set and layer.

    Attributes:
        label, l1, giou: of classes and boxes.
        fgl: of the place of distributions.
        ddf: of what earlier layers learn from the last.
    """

    label: float
    l1: float
    giou: float
    fgl: float
    ddf: float


class DFine(DenoisingNetwork):
    """Backbone -> hybrid encoder -> decoder. Images are RGB in [0, 1], sides multiples of 32."""

    title = "D-FINE"
    uncross = True
    decoder: DistributionDecoder

    def __init__(
        self,
        num_classes: int,
        backbone: BackboneConfig,
        encoder: EncoderConfig,
        decoder: DistributionConfig,
        multi_scale: Sequence[int] = (),
        multi_scale_epochs: int | None = None,
    ) -> None:
        extractor = build_backbone(backbone)
        channels = [encoder.dim] * len(extractor.channels)
        super().__init__(
            backbone=extractor,
            encoder=GelanEncoder(extractor.channels, encoder),
            decoder=DistributionDecoder(channels, num_classes, decoder),
            num_classes=num_classes,
            denoising=decoder,
            multi_scale=multi_scale,
            multi_scale_epochs=multi_scale_epochs,
            limits=selection_limits(decoder.num_queries, len(decoder.num_points), multi_scale),
        )


class DFineModule(RefiningModule):
    """Trains D-FINE. The signature is the recipe's schema; published values are in recipes/dfine/.

    Args:
        num_classes: width of the head; must equal the data's label map.
        backbone, encoder, decoder: sizes of the parts.
        costs: weights of the matching cost.
        losses: weights of the losses of labels, boxes and distributions.
        schedule: optimizer groups and learning rate.
        ema: average of the weights, used for evaluation and release; null for none.
        multi_scale: square training sizes, one drawn per step with equal probability; empty for none.
        multi_scale_epochs: epochs that have them, counted from the first; null for all.
        label_loss: varifocal, or the matchability-aware one of DEIM.
    """

    estimates_pairs = True

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
        encoder: EncoderConfig,
        decoder: DistributionConfig,
        costs: MatchCosts,
        losses: LossWeights,
        schedule: Schedule,
        ema: EmaConfig | None,
        multi_scale: list[int],
        multi_scale_epochs: int | None = None,
        label_loss: Literal["vfl", "mal"] = "vfl",
    ) -> None:
        super().__init__(num_classes=num_classes, schedule=schedule, init_args=locals())
        self.network = DFine(num_classes, backbone, encoder, decoder, multi_scale, multi_scale_epochs)
        self.criterion = SetCriterion(
            HungarianMatcher(costs, focal_cost),
            [
                LabelTerm(losses.label, LABEL_LOSSES[label_loss]()),
                L1Term(losses.l1),
                GiouTerm(losses.giou),
                LocalisationTerm(losses.fgl, decoder.reg_scale),
                DistillationTerm(losses.ddf),
            ],
            union_of_matchings,
        )
        self.postprocess = TopKSigmoid(DETECTIONS)
        self.average(ema)


# -- published checkpoints ------------------------------------------------------------------------

# compared by `check_published`
_CONSTANT = re.compile(r"decoder\.(anchors|valid_mask|.*cross_attn\.num_points_scale)")
_TWICE = re.compile(r"decoder\.decoder\.(up|reg_scale)")
# DFineForObjectDetection's own names in transformers, 4 (the files on the hub) and 5, to the official ones
HUGGING_FACE = (
    (r"^model\.backbone\.model\.embedder\.", "backbone.stem."),
    (r"^model\.backbone\.model\.encoder\.", "backbone."),
    (r"^(backbone\..*)\.convolution\.", r"\1.conv."),
    (r"^(backbone\..*)\.normalization\.", r"\1.bn."),
    (r"^(model\.encoder\.(?:fpn|pan)_blocks\.\d)\.conv([14])\.", r"\1.cv\2."),
    (r"^(model\.encoder\.(?:fpn|pan)_blocks\.\d)\.conv([23])\.", r"\1.cv\2.1."),
    (r"^(model\.encoder\.(?:fpn|pan)_blocks\.\d)\.csp_rep1\.", r"\1.cv2.0."),
    (r"^(model\.encoder\.(?:fpn|pan)_blocks\.\d)\.csp_rep2\.", r"\1.cv3.0."),
    (r"^(model\.encoder\.downsample_convs\.\d)\.conv([12])\.", r"\1.0.cv\2."),
    (r"(layers\.\d)\.mlp\.layers\.0\.", r"\1.linear1."),
    (r"(layers\.\d)\.mlp\.layers\.1\.", r"\1.linear2."),
    (r"^model\.decoder\.(pre_bbox_head|up|reg_scale)\b", r"decoder.\1"),
    (r"^model\.decoder\.lqe_layers\.", "decoder.decoder.lqe_layers."),
)


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official state dict (`ema.module` or `model` already taken out), or Hugging Face's, to ours.

    Left out is what `check_published` compares; loading compares `up` and `reg_scale`.

    Raises:
        KeyError: a key that the official network does not have.
        ValueError: the two copies of a tensor differ.
    """
    if any(key.startswith("model.") for key in state):
        state = from_hugging_face(state, (*HUGGING_FACE, *HUGGING_FACE_RT_DETR))
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.partition(".")[0] not in ("backbone", "encoder", "decoder"):
            raise KeyError(f"{key!r} is not a key of an official D-FINE checkpoint")
        if not _CONSTANT.fullmatch(key):
            put(converted, _TWICE.sub(r"decoder.\1", numbered(key)), value)
    return converted
