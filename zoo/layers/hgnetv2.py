"""HGNetv2, the backbone of D-FINE and of the small DEIMv2 models: timm's network under the official keys.

Sources: Peterande/D-FINE@4a1f73a src/nn/backbone/hgnetv2.py; the three cuts
Intellindust-AI-Lab/DEIMv2@0fff8d4 engine/backbone/hgnetv2.py. Their state-dict keys are timm's, without its head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models.hgnet import HighPerfGpuNet, model_cfgs
from torch import Tensor, nn

from zoo.layers.onednn import use_onednn
from zoo.layers.recompute import recomputed

FULL = tuple(f"hgnetv2_b{n}" for n in range(7))
# DEIMv2's cuts of B0 have no fourth stage, and another third one:
# channels in, inside and out, blocks, halves the map, light blocks, kernel, layers of a block
_THIRD_STAGE = {
    "hgnetv2_atto": [256, 64, 256, 1, True, True, 3, 3],
    "hgnetv2_femto": [256, 64, 512, 1, True, True, 5, 3],
    "hgnetv2_pico": [256, 64, 512, 2, True, True, 5, 3],
}
CUTS = tuple(_THIRD_STAGE)


class HgNetV2(nn.Module):
    """The stem and the stages, from whose last ones maps are taken.

    Args:
        name: one of `FULL`, strides 4 to 32, or of `CUTS`, 4 to 16.
        affine: a learnable scale and shift, one number each, after every activation (LAB).
        maps: so many of the last stages give their map.
    """

    def __init__(self, name: str, affine: bool, maps: int) -> None:
        super().__init__()
        table: dict[str, Any] = dict(model_cfgs["hgnetv2_b0" if name in CUTS else name])
        if name in CUTS:
            table["stage3"] = _THIRD_STAGE[name]
        network: Any = HighPerfGpuNet(table, num_classes=0, head_hidden_size=None, use_lab=affine)
        self.stem: nn.Module = network.stem
        self.stages: nn.Sequential = network.stages[:3] if name in CUTS else network.stages
        if not 1 <= maps <= len(self.stages):
            raise ValueError(f"backbone.maps is {maps}; {name} has {len(self.stages)} stages")
        self.first = len(self.stages) - maps
        self.channels = tuple(table[f"stage{i + 1}"][2] for i in range(self.first, len(self.stages)))
        use_onednn(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] to the maps of the last stages, fine to coarse."""
        x = self.stem(images)
        features = []
        for stage in self.stages:
            x = recomputed(stage, x)
            features.append(x)
        return features[self.first :]

    def frozen_stem(self) -> list[nn.Module]:
        """The modules before the first stage."""
        return [self.stem]


def fitting(state: Mapping[str, Tensor], network: HgNetV2) -> dict[str, Tensor]:
    """The weights of B0 that a cut of it has, the others as `network` has them.

    DEIMv2 starts its cuts so: tensors of the same name and shape. Atto has other ones where its kernels are
    smaller and its third stage narrower.
    """
    own = network.state_dict()
    return {name: state[name] if _same(name, state, own) else value for name, value in own.items()}


def _same(name: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    return name in state and state[name].shape == own[name].shape
