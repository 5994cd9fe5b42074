"""The small backbone: three maps for detection, four where masks need one of stride 4."""

from __future__ import annotations

import pytest
import torch

from zoo.layers.backbone import BackboneConfig, build_backbone


def config(widths: list[int]) -> BackboneConfig:
    return BackboneConfig(
        name="residual", weights="random", freeze_stem=False, frozen_norm=False, widths=widths
    )


@pytest.mark.parametrize(("widths", "strides"), [([4] * 5, (8, 16, 32)), ([4] * 6, (4, 8, 16, 32))])
def test_strides_of_the_maps(widths, strides):
    backbone = build_backbone(config(widths))
    maps = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape[-2:]) for m in maps] == [(64 // s, 96 // s) for s in strides]
    assert backbone.channels == (4,) * len(strides)


def test_another_number_of_widths_is_refused():
    with pytest.raises(ValueError, match=r"five numbers .* or six .* got \[4, 4\]"):
        build_backbone(config([4, 4]))
