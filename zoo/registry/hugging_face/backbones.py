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


def with_backbone_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json whose backbone is told by `backbone_config` alone.

    transformers 4 wrote the name of timm's backbone and arguments beside it; its successor asks the hub whether there
    is a repository of that name, which a file that somebody sends must not bring about.

    Raises:
        ValueError: the backbone is a repository of the hub, or has arguments that no network of ours has.
    """
    names = ("backbone", "backbone_kwargs", "use_timm_backbone", "use_pretrained_backbone")
    config = {key: value for key, value in raw.items() if key not in names}
    name = raw.get("backbone")
    if name is None or raw.get("backbone_config") is not None:
        return config
    of_timm = ("detr", "deformable_detr")
    if not raw.get("use_timm_backbone", raw.get("model_type") in of_timm):
        raise ValueError(
            f"backbone is {name!r}, a repository of the hub, which is not asked; write what its config.json says as "
            "backbone_config"
        )
    given = dict(raw.get("backbone_kwargs") or {})
    one_map = raw.get("num_feature_levels", 4) == 1
    usual = {"detr": [1, 2, 3, 4]}.get(str(raw.get("model_type")), [4] if one_map else [2, 3, 4])
    stride = given.pop("output_stride", 16 if raw.get("dilation") else None)
    config["backbone_config"] = {
        "model_type": "timm_backbone",
        "backbone": name,
        "num_channels": given.pop("in_chans", given.pop("num_channels", raw.get("num_channels", 3))),
        "features_only": given.pop("features_only", True),
        "out_indices": [*given.pop("out_indices", usual)],
        "use_pretrained_backbone": False,
        **({} if stride is None else {"output_stride": stride}),
    }
    if given:
        raise ValueError(f"backbone_kwargs has {sorted(given)[0]}, which this package does not know")
    return config


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
