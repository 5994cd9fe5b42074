"""Our networks beside transformers' of the same family and size, with the same random weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    DFineConfig,
    DFineForObjectDetection,
    HGNetV2Config,
    PreTrainedModel,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)

from zoo.architectures import deformable_detr, detr, dfine, rt_detr, rt_detrv2
from zoo.contract.batch import Batch
from zoo.runs import recipes
from zoo.training.module import DetectionModule, build_module

TRANSFORMER = {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 20}
DECODER = {"num_layers": 2, "eval_layers": 2, "num_queries": 20}
R18 = {
    "backbone_config": {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]},
    "encoder_in_channels": [128, 256, 512], "hidden_expansion": 0.5, "decoder_layers": 3,
    "freeze_backbone_batch_norms": False,
}  # fmt: skip
B0 = {
    "use_learnable_affine_block": True, "stem_channels": [3, 16, 16], "stage_in_channels": [16, 64, 256, 512],
    "stage_mid_channels": [16, 32, 64, 128], "stage_out_channels": [64, 256, 512, 1024],
    "hidden_sizes": [64, 256, 512, 1024], "stage_num_blocks": [1, 1, 2, 1], "stage_numb_of_layers": [3, 3, 3, 3],
}  # fmt: skip
B4 = {
    "use_learnable_affine_block": False, "stem_channels": [3, 32, 48], "stage_in_channels": [48, 128, 512, 1024],
    "stage_mid_channels": [48, 96, 192, 384], "stage_out_channels": [128, 512, 1024, 2048],
    "hidden_sizes": [128, 512, 1024, 2048], "stage_num_blocks": [1, 1, 3, 1], "stage_numb_of_layers": [6, 6, 6, 6],
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A recipe and how transformers says the same.

    Attributes:
        recipe: ours.
        theirs: their network with these changes of its config.
        from_theirs: their state dict to ours.
        size: (h, w) of the images that the network is published for; of 480x640 where images keep their aspect.
        tiny: changes of our arguments, and of their config, for a run that shows that it runs.
    """

    recipe: str
    theirs: Callable[..., PreTrainedModel]
    from_theirs: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    size: tuple[int, int]
    tiny: tuple[dict[str, dict[str, Any]], dict[str, Any]]


def their_detr(**sizes: Any) -> PreTrainedModel:
    """DETR R50. With auxiliary losses its decoder has norms that the official one has not."""
    return DetrForObjectDetection(DetrConfig(num_labels=91, **sizes))


def their_deformable(**sizes: Any) -> PreTrainedModel:
    """Deformable DETR R50 with four levels."""
    return DeformableDetrForObjectDetection(DeformableDetrConfig(num_labels=91, **sizes))


def their_rt_detr(**sizes: Any) -> PreTrainedModel:
    """RT-DETR R50, or over another backbone."""
    return RTDetrForObjectDetection(RTDetrConfig(**of_presnet(sizes)))


def their_rt_detrv2(**sizes: Any) -> PreTrainedModel:
    """RT-DETRv2 over a backbone."""
    return RTDetrV2ForObjectDetection(RTDetrV2Config(**of_presnet(sizes)))


def of_presnet(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The config's arguments: 80 classes, and the backbone as what transformers takes."""
    sizes = {"num_labels": 80, **sizes}
    if "backbone_config" in sizes:
        sizes["backbone_config"] = RTDetrResNetConfig(
            out_features=["stage2", "stage3", "stage4"], **sizes["backbone_config"]
        )
    return sizes


def their_dfine(**sizes: Any) -> PreTrainedModel:
    """D-FINE over an HGNetv2."""
    backbone = HGNetV2Config(out_features=["stage2", "stage3", "stage4"], **sizes.pop("backbone_config"))
    config = DFineConfig(
        backbone_config=backbone, encoder_in_channels=backbone.stage_out_channels[1:], num_labels=80, **sizes
    )
    return DFineForObjectDetection(config)


def with_sizes(make: Callable[..., PreTrainedModel], **sizes: Any) -> Callable[..., PreTrainedModel]:
    """`make` with a config of these arguments, which later ones replace."""
    return lambda **changes: make(**{**sizes, **changes})


SQUARE, DETR_SIZE = (640, 640), (800, 1066)
OF_TRANSFORMER = ({"transformer": TRANSFORMER}, TRANSFORMER)
OF_DECODER = ({"decoder": DECODER}, {"decoder_layers": 2, "num_queries": 20})
PAIRS = {
    "detr_r50": Pair("detr/r50_coco_500e", their_detr, detr.from_published, DETR_SIZE, OF_TRANSFORMER),
    "deformable_detr_r50": Pair(
        "deformable_detr/r50_coco_50e", their_deformable, deformable_detr.from_published, DETR_SIZE, OF_TRANSFORMER
    ),
    "rt_detr_r18": Pair(
        "rt_detr/r18_coco_72e", with_sizes(their_rt_detr, **R18), rt_detr.from_published, SQUARE, OF_DECODER
    ),
    "rt_detr_r50": Pair("rt_detr/r50_coco_72e", their_rt_detr, rt_detr.from_published, SQUARE, OF_DECODER),
    "rt_detrv2_s": Pair(
        "rt_detrv2/r18_coco_120e", with_sizes(their_rt_detrv2, **R18), rt_detrv2.from_published, SQUARE, OF_DECODER
    ),
    "dfine_s": Pair(
        "dfine/s_coco_132e",
        with_sizes(
            their_dfine, backbone_config=B0, depth_mult=0.34, hidden_expansion=0.5, decoder_layers=3,
            decoder_n_points=[3, 6, 3], freeze_backbone_batch_norms=False,
        ),
        dfine.from_published, SQUARE, OF_DECODER,
    ),
    "dfine_l": Pair(
        "dfine/l_coco_80e", with_sizes(their_dfine, backbone_config=B4, decoder_n_points=[3, 6, 3]),
        dfine.from_published, SQUARE, OF_DECODER,
    ),
}  # fmt: skip


def build(name: str, tiny: bool = False) -> tuple[DetectionModule, PreTrainedModel]:
    """(ours, theirs) with equal random weights, in evaluation mode; ours without a moving average."""
    pair = PAIRS[name]
    block = recipes.load(recipes.resolve(pair.recipe))["model"]
    arguments = block["init_args"]
    arguments |= {key: value for key, value in {"ema": None, "multi_scale": []}.items() if key in arguments}
    if tiny:
        for part, changes in pair.tiny[0].items():
            arguments[part].update(changes)
    torch.manual_seed(0)
    module, model = (
        build_module(block, backbone_weights="random"),
        pair.theirs(**(pair.tiny[1] if tiny else {})),
    )
    living_convolutions(model)
    reasonable_norms(model)
    module.network.load_state_dict(pair.from_theirs(model.state_dict()))
    return module.eval(), model.eval()


@torch.no_grad()
def living_convolutions(model: nn.Module) -> None:
    """Convolutions and norms of which a signal is left at the end.

    transformers draws RT-DETR's, the norms' weights too, so small that all places of an image look alike behind them:
    queries are then selected by rounding, and no two runtimes agree.
    """
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        elif isinstance(part, nn.BatchNorm2d):
            part.weight.fill_(1.0)


@torch.no_grad()
def reasonable_norms(model: nn.Module) -> None:
    """Constant norms with random convolutions let a ResNet grow by 2 a block; its branches end with 0.2."""
    for name, tensor in model.state_dict().items():
        if re.search(r"backbone.*(bn3|layer\.2\.normalization)\.weight$", name):
            tensor.fill_(0.2)


@torch.no_grad()
def difference(module: DetectionModule, model: PreTrainedModel, batch: Batch) -> float:
    """Largest of `query_differences`."""
    ours = module.predictions(batch)
    theirs = model(pixel_values=batch.images, pixel_mask=(~batch.padding).long())
    return float(query_differences(ours.logits, ours.boxes, theirs).max())


def query_differences(logits: Tensor, boxes: Tensor, theirs: Any) -> Tensor:
    """[B, Q] largest difference of each query's logits [B, Q, C] and box [B, Q, 4] from theirs of the nearest box.

    Equal scores swap ranks, and with them queries.
    """
    found = []
    for mine, own, other, its in zip(boxes, logits, theirs.pred_boxes, theirs.logits, strict=True):
        apart, nearest = torch.cdist(mine.float(), other.float(), p=float("inf")).min(1)
        found.append(torch.maximum(apart, (own - its[nearest]).abs().amax(1).float()))
    return torch.stack(found)
