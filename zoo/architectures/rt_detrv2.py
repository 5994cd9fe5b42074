"""RT-DETRv2 (Lv et al., arXiv 2407.17140): RT-DETR with points by level and discrete sampling.

Semantics of lyuwenyu/RT-DETR@068dfde rtdetrv2_pytorch; its DEIM variant (arXiv 2412.04234) of
ShihuaHuang95/DEIM@a9aa4ad. Module names below the network are the state-dict keys of the official code, but for
the backbone and the encoder's input projections.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from torch import Tensor, nn
from torch.nn import functional as F

from zoo.contract.input_limits import InputLimits
from zoo.layers.backbone import HUGGING_FACE_PRESNET, BackboneConfig, build_backbone, from_presnet
from zoo.layers.deformable_attention import DeformableAttention, Sampling
from zoo.layers.denoising_network import DenoisingNetwork
from zoo.layers.hybrid_encoder import ConvNorm, EncoderConfig, HybridEncoder
from zoo.layers.mlp import multiply_adds
from zoo.layers.published_keys import HUGGING_FACE_RT_DETR, from_hugging_face, numbered
from zoo.layers.query_selection import by_any_class, by_best_class
from zoo.layers.refining_decoder import DecoderLayer, RefiningConfig, RefiningDecoder
from zoo.prediction.postprocess import TopKSigmoid
from zoo.training.criterion import GiouTerm, L1Term, LabelTerm, LossWeights, SetCriterion
from zoo.training.ema import EmaConfig
from zoo.training.losses import LABEL_LOSSES
from zoo.training.matcher import HungarianMatcher, MatchCosts, focal_cost
from zoo.training.refining_module import RefiningModule, selection_limits
from zoo.training.schedule import Schedule

NUM_LEVELS = 3
ACTIVATIONS = {"relu": F.relu, "silu": F.silu}


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(RefiningConfig):
    """Sizes of the decoder and its denoising part; see `RefiningConfig`.

    Attributes:
        num_points: of the cross-attention, per head: a number for each level.
        sampling: `discrete` takes the nearest pixel, which needs no grid sampling; offsets do not train then.
        selection: `best_class` takes the tokens whose best class is best; `any_class` the best (token, class)
            pairs, which may take a token twice; `objects` those whose one logit says best that there is an object.
        activation: of the feed-forward parts, the box heads and the position of queries.
        position_hidden: widths of the hidden layers of the perceptron that makes this position, all equal; empty for
            one of twice `dim`.
        denoising: what differs in DEIM's: a step without objects has none, and noised corners that cross still
            make a box. RT-DETRv2 gives such a step one group of padding, and such a box no size.
    """

    num_points: list[int]
    sampling: Sampling = "bilinear"
    selection: Literal["best_class", "any_class", "objects"] = "best_class"
    activation: Literal["relu", "silu"] = "relu"
    position_hidden: list[int] = field(default_factory=list)
    denoising: Literal["rt_detrv2", "deim"] = "rt_detrv2"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.num_points) != NUM_LEVELS or min(self.num_points) < 1:
            raise ValueError(
                f"num_points is {self.num_points}; it must be {NUM_LEVELS} numbers above 0, one a level"
            )
        if len(set(self.position_hidden)) > 1:
            raise ValueError(f"position_hidden is {self.position_hidden}; the widths must be equal")


class Decoder(RefiningDecoder):
    """RT-DETR's decoder with the attention of RT-DETRv2 and its initial values."""

    config: DecoderConfig

    def __init__(self, channels: Sequence[int], num_classes: int, config: DecoderConfig) -> None:
        def cross_attention() -> nn.Module:
            points, sampling = config.num_points, config.sampling
            return DeformableAttention(config.dim, config.num_heads, NUM_LEVELS, points, sampling)

        hidden = config.position_hidden or [2 * config.dim]
        super().__init__(
            channels,
            num_classes,
            config,
            cross_attention,
            activation=ACTIVATIONS[config.activation],
            position=(hidden[0], len(hidden) + 1),
            choose=by_any_class if config.selection == "any_class" else by_best_class,
            selects_objects=config.selection == "objects",
        )

    def reset_parameters(self) -> None:
        """As RT-DETR's; the feed-forward parts and the projections of the maps start by Xavier's rule too."""
        super().reset_parameters()
        for layer in cast(Iterable[DecoderLayer], self.decoder.layers):
            nn.init.xavier_uniform_(layer.linear1.weight)
            nn.init.xavier_uniform_(layer.linear2.weight)
        for projection in cast(Iterable[ConvNorm], self.input_proj):
            nn.init.xavier_uniform_(projection.conv.weight)


class RtDetrV2(DenoisingNetwork):
    """Backbone -> hybrid encoder -> decoder. Images are RGB in [0, 1], sides multiples of 32."""

    title = "RT-DETRv2"
    decoder: Decoder

    def __init__(
        self,
        num_classes: int,
        backbone: BackboneConfig,
        encoder: EncoderConfig,
        decoder: DecoderConfig,
        multi_scale: Sequence[int] = (),
        multi_scale_epochs: int | None = None,
    ) -> None:
        extractor = build_backbone(backbone)
        super().__init__(
            backbone=extractor,
            encoder=HybridEncoder(extractor.channels, encoder),
            decoder=Decoder([encoder.dim] * NUM_LEVELS, num_classes, decoder),
            num_classes=num_classes,
            denoising=decoder,
            multi_scale=multi_scale,
            multi_scale_epochs=multi_scale_epochs,
            limits=selection_limits(decoder.num_queries, NUM_LEVELS, multi_scale),
        )
        self.uncross = decoder.denoising == "deim"
        self.empty_group = not self.uncross


class RtDetrV2Module(RefiningModule):
    """Trains RT-DETRv2. The signature is the recipe's schema; published values are in recipes/rt_detrv2/.

    Args:
        num_classes: width of the head; must equal the data's label map.
        backbone, encoder, decoder: sizes of the parts.
        costs: weights of the matching cost.
        losses: weights of label, L1 and GIoU loss.
        schedule: optimizer groups and learning rate.
        ema: average of the weights, used for evaluation and release; null for none.
        multi_scale: square training sizes, one drawn per step with equal probability; empty for none.
        multi_scale_epochs: epochs that have them, counted from the first; null for all.
        label_loss: varifocal, or the matchability-aware one of DEIM.
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
        multi_scale_epochs: int | None = None,
        label_loss: Literal["vfl", "mal"] = "vfl",
    ) -> None:
        super().__init__(num_classes=num_classes, schedule=schedule, init_args=locals())
        self.network = RtDetrV2(num_classes, backbone, encoder, decoder, multi_scale, multi_scale_epochs)
        self.criterion = SetCriterion(
            HungarianMatcher(costs, focal_cost),
            [LabelTerm(losses.label, LABEL_LOSSES[label_loss]()), L1Term(losses.l1), GiouTerm(losses.giou)],
        )
        self.postprocess = TopKSigmoid(decoder.num_queries)
        self.average(ema)


# -- published checkpoints ------------------------------------------------------------------------

# compared by `check_published`
_CONSTANT = re.compile(r"decoder\.(anchors|valid_mask|.*cross_attn\.(num|n)_points_scale)")


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official state dict (`ema.module` or `model` already taken out), or Hugging Face's, to ours.

    Left out is what `check_published` compares.

    Raises:
        KeyError: a key that the official network does not have.
    """
    if any(key.startswith("model.") for key in state):
        state = from_hugging_face(state, (*HUGGING_FACE_PRESNET, *HUGGING_FACE_RT_DETR))
    converted, backbone = {}, {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part == "backbone":
            backbone[rest] = value
        elif part not in ("encoder", "decoder"):
            raise KeyError(f"{key!r} is not a key of an official RT-DETRv2 checkpoint")
        elif not _CONSTANT.fullmatch(key):
            converted[numbered(key)] = value
    return {f"backbone.{key}": value for key, value in from_presnet(backbone).items()} | converted
