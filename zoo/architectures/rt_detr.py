"""RT-DETR (Zhao et al., arXiv 2304.08069): hybrid encoder, query selection, denoising, box refinement.

Semantics of the official PyTorch port, lyuwenyu/RT-DETR@068dfde rtdetr_pytorch; module names below the
network are its state-dict keys, so only the backbone needs a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zoo.contract.input_limits import InputLimits
from zoo.layers.backbone import HUGGING_FACE_PRESNET, BackboneConfig, build_backbone, from_presnet
from zoo.layers.deformable_attention import DeformableAttention
from zoo.layers.denoising_network import DenoisingNetwork
from zoo.layers.hybrid_encoder import EncoderConfig, HybridEncoder
from zoo.layers.mlp import multiply_adds
from zoo.layers.published_keys import HUGGING_FACE_RT_DETR, from_hugging_face
from zoo.layers.refining_decoder import RefiningConfig, RefiningDecoder
from zoo.prediction.postprocess import TopKSigmoid
from zoo.training.criterion import GiouTerm, L1Term, LabelTerm, LossWeights, SetCriterion
from zoo.training.ema import EmaConfig
from zoo.training.losses import Varifocal
from zoo.training.matcher import HungarianMatcher, MatchCosts, focal_cost
from zoo.training.refining_module import RefiningModule, selection_limits
from zoo.training.schedule import Schedule

NUM_LEVELS = 3


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(RefiningConfig):
    """Sizes of the decoder and its denoising part; see `RefiningConfig`.

    Attributes:
        num_points: of the cross-attention per level and head.
    """

    num_points: int


class RtDetr(DenoisingNetwork):
    """Backbone -> hybrid encoder -> decoder. Images are RGB in [0, 1], sides multiples of 32."""

    title = "RT-DETR"
    decoder: RefiningDecoder

    def __init__(
        self,
        num_classes: int,
        backbone: BackboneConfig,
        encoder: EncoderConfig,
        decoder: DecoderConfig,
        multi_scale: Sequence[int] = (),
    ) -> None:
        def cross_attention() -> nn.Module:
            return DeformableAttention(decoder.dim, decoder.num_heads, NUM_LEVELS, decoder.num_points)

        extractor = build_backbone(backbone)
        super().__init__(
            backbone=extractor,
            encoder=HybridEncoder(extractor.channels, encoder),
            decoder=RefiningDecoder([encoder.dim] * NUM_LEVELS, num_classes, decoder, cross_attention),
            num_classes=num_classes,
            denoising=decoder,
            multi_scale=multi_scale,
            limits=selection_limits(decoder.num_queries, NUM_LEVELS, multi_scale),
        )


class RtDetrModule(RefiningModule):
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

    @classmethod
    def limits_of(cls, init_args: Mapping[str, Any]) -> InputLimits:
        """See `DetectionModule.limits_of`."""
        return selection_limits(init_args["decoder"]["num_queries"], NUM_LEVELS, init_args["multi_scale"])

    def macs_left_out(self, height: int, width: int) -> int:
        """The encoder's box head on the tokens that are not selected."""
        limits = self.limits_of(self.init_args)
        tokens = limits.places((height, width)) - (limits.queries or 0)
        return tokens * multiply_adds(self.network.get_submodule("decoder.enc_bbox_head"))

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


# -- published checkpoints ------------------------------------------------------------------------


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official state dict (`ema.module` or `model` already taken out), or Hugging Face's, to ours.

    Raises:
        KeyError: a key that the official network does not have.
    """
    if any(key.startswith("model.") for key in state):
        state = from_hugging_face(state, (*HUGGING_FACE_PRESNET, *HUGGING_FACE_RT_DETR))
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
