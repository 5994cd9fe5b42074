"""The backbones of transformers that are ours: what stands under `backbone_config` of its config.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from timm.models.hgnet import model_cfgs

from zoo.layers.backbone import DEEP_STEM, PLAIN
from zoo.layers.hgnetv2 import FULL

Candidate = tuple[dict[str, Any], dict[str, Any]]  # of our `backbone` block, and of transformers' config
_RESNETS: Mapping[
    str, tuple[str, list[int], list[int]]
] = {  # kind of block; blocks and channels of each stage
    "resnet18": ("basic", [2, 2, 2, 2], [64, 128, 256, 512]),
    "resnet34": ("basic", [3, 4, 6, 3], [64, 128, 256, 512]),
    "resnet50": ("bottleneck", [3, 4, 6, 3], [256, 512, 1024, 2048]),
    "resnet101": ("bottleneck", [3, 4, 23, 3], [256, 512, 1024, 2048]),
}


def plain_resnets(first: int) -> Iterator[Candidate]:
    """ResNets with maps of the stages from `first`: timm's, which can be dilated, then transformers' own."""
    for name, dilated in product(PLAIN, (False, True)):
        timm = {
            "model_type": "timm_backbone",
            "backbone": name,
            "num_channels": 3,
            "features_only": True,
            "out_indices": [*range(first, 5)],
            "output_stride": 16 if dilated else None,
        }
        yield {"name": name, "dilate_last": dilated}, timm
    for name in PLAIN:
        yield {"name": name, "dilate_last": False}, _own_resnet(name, "resnet", first)


def deep_stem_resnets() -> Iterator[Candidate]:
    """RT-DETR's, with maps of the last three stages."""
    for name in DEEP_STEM:
        yield {"name": name}, _own_resnet(name.removesuffix("d"), "rt_detr_resnet", 2)


def hgnets(maps: int) -> Iterator[Candidate]:
    """HGNetv2 with so many maps."""
    for name, affine in product(FULL, (False, True)):
        table: dict[str, Any] = model_cfgs[name]
        columns = zip(*(table[f"stage{n}"] for n in (1, 2, 3, 4)), strict=True)
        entering, inside, out, blocks, halves, light, kernel, layers = (list(column) for column in columns)
        config = {
            "model_type": "hgnet_v2",
            "num_channels": 3,
            "hidden_act": "relu",
            "stem_channels": [3, *table["stem_chs"]],
            "stem_strides": [2, 1, 1, 2, 1],
            "stage_in_channels": entering,
            "stage_mid_channels": inside,
            "stage_out_channels": out,
            "stage_num_blocks": blocks,
            "stage_downsample": halves,
            "stage_downsample_strides": [2, 2, 2, 2],
            "stage_light_block": light,
            "stage_kernel_size": kernel,
            "stage_numb_of_layers": layers,
            "use_learnable_affine_block": affine,
            "hidden_sizes": out,
            "out_indices": [*range(5 - maps, 5)],
        }
        yield {"name": name, "affine": affine, "maps": maps}, config


def _own_resnet(name: str, model_type: str, first: int) -> dict[str, Any]:
    block, depths, channels = _RESNETS[name]
    return {
        "model_type": model_type,
        "num_channels": 3,
        "embedding_size": 64,
        "hidden_sizes": channels,
        "depths": depths,
        "layer_type": block,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        "out_indices": [*range(first, 5)],
    }
