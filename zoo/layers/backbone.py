"""Backbones: timm networks with the official details, frozen batch normalisation, published weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.resnet import BasicBlock
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.contract.bands import MOST_CHANNELS
from zoo.layers.hgnetv2 import CUTS, FULL, HgNetV2, fitting
from zoo.layers.onednn import runs_eagerly_on_cpu, use_onednn
from zoo.layers.recompute import recomputed
from zoo.storage.checkpoint_io import read_checkpoint

STAGES = ("layer1", "layer2", "layer3", "layer4")

# ImageNet weights of the RT-DETR backbones, converted from Paddle by the authors.
# Source: lyuwenyu/RT-DETR@068dfde rtdetr_pytorch/src/nn/backbone/presnet.py, donwload_url
_PRESNET = "https://github.com/lyuwenyu/storage/releases/download/v0.1/"
# ImageNet weights of DETR and Deformable DETR: torchvision's IMAGENET1K_V1, its old `pretrained=True`.
# Source: torchvision/models/resnet.py, ResNet*_Weights
_TORCHVISION = "https://download.pytorch.org/models/"
# ImageNet weights of D-FINE's backbones, converted from Paddle by the authors.
# Source: Peterande/D-FINE@4a1f73a src/nn/backbone/hgnetv2.py, arch_configs
_HGNETV2 = "https://github.com/Peterande/storage/releases/download/dfinev1.0/"
PUBLISHED_WEIGHTS = {
    "resnet18_vd": _PRESNET + "ResNet18_vd_pretrained_from_paddle.pth",
    "resnet34_vd": _PRESNET + "ResNet34_vd_pretrained_from_paddle.pth",
    "resnet50_vd_ssld_v2": _PRESNET + "ResNet50_vd_ssld_v2_pretrained_from_paddle.pth",
    "resnet101_vd_ssld": _PRESNET + "ResNet101_vd_ssld_pretrained_from_paddle.pth",
    "resnet18_imagenet1k_v1": _TORCHVISION + "resnet18-f37072fd.pth",
    "resnet34_imagenet1k_v1": _TORCHVISION + "resnet34-b627a593.pth",
    "resnet50_imagenet1k_v1": _TORCHVISION + "resnet50-0676ba61.pth",
    "resnet101_imagenet1k_v1": _TORCHVISION + "resnet101-63fe2227.pth",
    **{f"{name}_stage1": f"{_HGNETV2}PPHGNetV2_{name[-2:].upper()}_stage1.pth" for name in FULL},
}
PLAIN = ("resnet18", "resnet34", "resnet50", "resnet101")
DEEP_STEM = ("resnet18d", "resnet34d", "resnet50d", "resnet101d")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which backbone, with which weights, and which of its parts train.

    Attributes:
        name: a plain ResNet (`resnet18`, `resnet34`, `resnet50`, `resnet101`), a timm ResNet-D (the same
            with a d behind), HGNetv2 (`hgnetv2_b0` to `hgnetv2_b6`, and `hgnetv2_atto`, `hgnetv2_femto`,
            `hgnetv2_pico`), or `residual` for the small network of `widths`.
        weights: `random`, a name in `PUBLISHED_WEIGHTS`, or a path to a state dict. There is no default:
            a recipe without weights must say so by `random`.
        freeze_stem: the stem's convolutions do not train.
        frozen_norm: every batch normalisation is a constant affine map.
        widths: `residual` only: channels of two stem convolutions and three stages, or four for masks.
        dilate_last: plain ResNets only: the last stage keeps stride 16 and dilates instead (DC5).
        affine: HGNetv2 only: a learnable scale and shift after every activation.
        maps: HGNetv2 only: so many of the last stages give their map; 3 are strides 8, 16 and 32.
        channels: of the images; other than 3, the first convolution is made of the RGB one by `of_channels`.
    """

    name: str
    weights: str
    freeze_stem: bool
    frozen_norm: bool
    widths: list[int] = field(default_factory=list)
    dilate_last: bool = False
    affine: bool = False
    maps: int = 3
    channels: int = 3


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with fixed statistics and affine, all four of them buffers."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        if runs_eagerly_on_cpu(x):
            # one pass each way, and `x` is not kept for the backward pass
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            return torch.addcmul(shift[:, None, None], x, scale[:, None, None])
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def freeze_batch_norm(module: nn.Module) -> None:
    """Replaces every BatchNorm2d below `module` by a FrozenBatchNorm2d with the same numbers."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, child.eps)
            state = child.state_dict()
            state.pop("num_batches_tracked")
            frozen.load_state_dict(state)
            # timm's BatchNorm variants fuse an activation; plain ResNets use nn.BatchNorm2d alone
            setattr(module, name, frozen)
        else:
            freeze_batch_norm(child)


class _TimmResNet(nn.Module):
    """A timm ResNet without its head, from whose stages maps are taken; parameter names are torchvision's."""

    def __init__(self, model: Any, first: int) -> None:
        super().__init__()
        self.conv1: nn.Module = model.conv1
        self.bn1: nn.Module = model.bn1
        self.act1: nn.Module = model.act1
        self.maxpool: nn.Module = model.maxpool
        for stage in STAGES:
            setattr(self, stage, getattr(model, stage))
        use_onednn(self)
        self.first = first
        self.channels = tuple(info["num_chs"] for info in model.feature_info[1 + first :])

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] to the maps of the stages from `first`, of strides 4, 8, 16, 32 in all."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(images))))
        features = []
        for stage in STAGES:
            x = recomputed(getattr(self, stage), x)
            features.append(x)
        return features[self.first :]

    def frozen_stem(self) -> list[nn.Module]:
        """The modules before the first stage."""
        return [self.conv1, self.bn1]


class ResNet(_TimmResNet):
    """ResNet: maps of all four stages.

    Args:
        name: `resnet18`, `resnet34`, `resnet50` or `resnet101`.
        dilate_last: DC5: the last stage keeps its stride-16 resolution. Its first 3x3 convolution is not
            dilated, the others by 2, as torchvision's `replace_stride_with_dilation`.
    """

    def __init__(self, name: str, dilate_last: bool = False) -> None:
        super().__init__(
            timm.create_model(name, pretrained=False, output_stride=16 if dilate_last else 32), first=0
        )


class ResNetD(_TimmResNet):
    """ResNet "vd" (arXiv 1812.01187): features of strides 8, 16 and 32.

    timm's resnet18d and 34d lack the 1x1 projection that the official basic blocks have in the first
    block of the first stage (stride 1, equal width), so it is added.
    Source: lyuwenyu/RT-DETR@068dfde rtdetr_pytorch/src/nn/backbone/presnet.py
    """

    def __init__(self, name: str) -> None:
        model: Any = timm.create_model(name, pretrained=False)
        first = model.layer1[0]
        if isinstance(first, BasicBlock) and first.downsample is None:
            width = first.conv2.out_channels
            # index 0 is the average pool of strided shortcuts, so that names agree across stages
            first.downsample = nn.Sequential(
                nn.Identity(), nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)
            )
        super().__init__(model, first=1)


class ResidualBackbone(nn.Module):
    """A few residual blocks for small images and no pretraining, the last map at stride 32.

    Two convolutions, then three or four stages of one stride-2 basic block each. With three both
    convolutions have stride 2, with four only the first, so that there is a map of stride 4 for masks.
    """

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        if len(widths) not in (5, 6):
            raise ValueError(
                f"backbone.widths needs five numbers (two stem, three stages) or six (four stages), got {widths}"
            )
        self.conv1 = nn.Sequential(
            _conv_norm_relu(3, widths[0], stride=2),
            _conv_norm_relu(widths[0], widths[1], stride=2 if len(widths) == 5 else 1),
        )
        self.stages = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(widths[1:]))
        self.channels = tuple(widths[2:])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] to maps of strides 8, 16, 32; with four stages 4 before them."""
        x = self.conv1(images)
        features = []
        for stage in self.stages:
            x = recomputed(stage, x)
            features.append(x)
        return features

    def frozen_stem(self) -> list[nn.Module]:
        """The modules before the first stage."""
        return [self.conv1]


class ResidualBlock(nn.Module):
    """Stride-2 basic block with a 1x1 projection."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = _conv_norm_relu(channels_in, channels_out, stride=2)
        self.conv2 = nn.Sequential(
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out)
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 1, stride=2, bias=False), nn.BatchNorm2d(channels_out)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H/2, W/2]."""
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


def _conv_norm_relu(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True))


Backbone = ResNet | ResNetD | ResidualBackbone | HgNetV2


def build_backbone(config: BackboneConfig) -> Backbone:
    """The backbone of `config`, weights loaded, norms and stem frozen as it says.

    Raises:
        ValueError: unknown name or weights, or a backbone that cannot be dilated.
        ConnectionError: published weights are not in the cache and cannot be fetched.
    """
    backbone: Backbone
    if config.dilate_last and config.name not in PLAIN:
        raise ValueError(
            f"backbone.dilate_last is for {', '.join(PLAIN)}, not for {config.name!r}; set it to false"
        )
    if config.name == "residual":
        backbone = ResidualBackbone(config.widths)
    elif config.name in PLAIN:
        backbone = ResNet(config.name, config.dilate_last)
    elif config.name in DEEP_STEM:
        backbone = ResNetD(config.name)
    elif config.name in (*FULL, *CUTS):
        backbone = HgNetV2(config.name, config.affine, config.maps)
    else:
        known = ", ".join((*PLAIN, *DEEP_STEM, *FULL, *CUTS, "residual"))
        raise ValueError(f"backbone.name is {config.name!r}; known: {known}")
    if config.weights != "random":
        state = read_backbone_weights(config.weights)
        if isinstance(backbone, HgNetV2) and config.name in CUTS:
            state = fitting(state, backbone)
        try:
            backbone.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"backbone.weights {config.weights!r} are of another network than {config.name}: {reason[:200]}"
            ) from error
    if config.channels != 3:
        take_channels(backbone, config.channels)
    if config.frozen_norm:
        freeze_batch_norm(backbone)
    if config.freeze_stem:
        for part in backbone.frozen_stem():
            part.requires_grad_(False)
    return backbone


def take_channels(backbone: nn.Module, channels: int) -> None:
    """Gives the first convolution so many channels, with the weights that `of_channels` makes of its own."""
    if not 1 <= channels <= MOST_CHANNELS:
        raise ValueError(f"backbone.channels is {channels}; an image has 1 to {MOST_CHANNELS}")
    first = first_convolution(backbone)
    first.in_channels = channels
    first.weight = nn.Parameter(of_channels(first.weight.detach(), channels))


def first_convolution(network: nn.Module) -> nn.Conv2d:
    """That of the images: the first of a backbone, and of a network that begins with one."""
    return next(m for m in network.modules() if isinstance(m, nn.Conv2d))


def of_channels(weight: Tensor, channels: int) -> Tensor:
    """[n, 3, h, w] kernels for RGB to [n, channels, h, w]: each channel gets the sum of the three over their number.

    So equal channels give what RGB of three equal channels gives: a grey image what it gives as RGB.
    """
    return (weight.sum(dim=1, keepdim=True) / channels).repeat(1, channels, 1, 1)


def read_backbone_weights(weights: str) -> dict[str, Tensor]:
    """State dict in our key layout from a published name or a path to a .pth file.

    Raises:
        ValueError: neither a known name nor a file, or a file that is none of weights.
        ConnectionError: the download failed; names `weights: random` as the way out.
    """
    if weights in PUBLISHED_WEIGHTS:
        url = PUBLISHED_WEIGHTS[weights]
        try:
            state = torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
        except OSError as error:
            raise ConnectionError(
                f"backbone weights {weights!r} could not be fetched from {url}: {error}. Put the file into "
                f"{torch.hub.get_dir()}/checkpoints, give its path, or train from scratch with weights: random"
            ) from error
    elif Path(weights).is_file():
        state = read_checkpoint(weights)
    else:
        raise ValueError(
            f"backbone.weights is {weights!r}: not a file, and not one of random, "
            f"{', '.join(PUBLISHED_WEIGHTS)}"
        )
    if "stem.stem1.conv.weight" in state:
        return dict(state)  # HGNetv2 keeps the official keys
    try:
        return from_torchvision(state) if "conv1.weight" in state else from_presnet(state)
    except (KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"backbone.weights {weights!r} holds no ResNet: {error}") from error


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ResNet keys of torchvision are ours; its classifier is left out."""
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


# The official stem is three named ConvNorm blocks; timm's is conv1 = [conv, bn, act, conv, bn, act,
# conv] and bn1.
_STEM = {
    "conv1.conv1_1.conv": "conv1.0",
    "conv1.conv1_1.norm": "conv1.1",
    "conv1.conv1_2.conv": "conv1.3",
    "conv1.conv1_2.norm": "conv1.4",
    "conv1.conv1_3.conv": "conv1.6",
    "conv1.conv1_3.norm": "bn1",
}
_BLOCK = {
    "branch2a.conv": "conv1",
    "branch2a.norm": "bn1",
    "branch2b.conv": "conv2",
    "branch2b.norm": "bn2",
    "branch2c.conv": "conv3",
    "branch2c.norm": "bn3",
    # a strided shortcut nests its ConvNorm behind an average pool
    "short.conv.conv": "downsample.1",
    "short.conv.norm": "downsample.2",
    "short.conv": "downsample.1",
    "short.norm": "downsample.2",
}
# RTDetrResNet's names in transformers, 4 and 5, to those of the official PResNet
HUGGING_FACE_PRESNET = (
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
)
# ResNet's names in transformers, 4 and 5, to those of torchvision; DETR's models may have it instead of timm's
HUGGING_FACE_RESNET = (
    (r"^(backbone\.0\.body)\.embedder\.embedder\.convolution\.", r"\1.conv1."),
    (r"^(backbone\.0\.body)\.embedder\.embedder\.normalization\.", r"\1.bn1."),
    *((rf"^(backbone\.0\.body)\.encoder\.stages\.{n}\.layers\.", rf"\1.layer{n + 1}.") for n in range(4)),
    *((rf"^(backbone\.0\.body\..*)\.layer\.{n}\.convolution\.", rf"\1.conv{n + 1}.") for n in range(3)),
    *((rf"^(backbone\.0\.body\..*)\.layer\.{n}\.normalization\.", rf"\1.bn{n + 1}.") for n in range(3)),
    (r"^(backbone\.0\.body\..*)\.shortcut\.convolution\.", r"\1.downsample.0."),
    (r"^(backbone\.0\.body\..*)\.shortcut\.normalization\.", r"\1.downsample.1."),
)


def from_presnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official PResNet keys (`conv1.conv1_1.conv.weight`, `res_layers.0.blocks.0...`) to ours.

    Raises:
        KeyError: a key that the layout does not know.
    """
    return {_from_presnet_key(key): value for key, value in state.items()}


def _from_presnet_key(key: str) -> str:
    module, _, leaf = key.rpartition(".")
    if module in _STEM:
        return f"{_STEM[module]}.{leaf}"
    parts = module.split(".", 4)
    if len(parts) == 5 and parts[0] == "res_layers" and parts[4] in _BLOCK:
        return f"layer{int(parts[1]) + 1}.{parts[3]}.{_BLOCK[parts[4]]}.{leaf}"
    raise KeyError(f"{key!r} is not a key of the official PResNet")
