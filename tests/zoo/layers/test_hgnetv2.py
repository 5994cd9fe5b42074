"""HGNetv2: the published sizes, and B0's weights in the cuts of it."""

import pytest
import torch

from zoo.layers.backbone import BackboneConfig, build_backbone
from zoo.layers.hgnetv2 import CUTS

# Peterande/D-FINE@4a1f73a and Intellindust-AI-Lab/DEIMv2@0fff8d4, counted in the official models; with LAB or not
PARAMETERS = {
    "hgnetv2_b0": (True, 1_850_396),
    "hgnetv2_b2": (True, 6_026_626),
    "hgnetv2_b4": (False, 13_553_376),
    "hgnetv2_b5": (False, 33_325_760),
    "hgnetv2_atto": (True, 230_344),
    "hgnetv2_femto": (True, 389_832),
    "hgnetv2_pico": (True, 749_202),
}


def config(name: str, **changes) -> BackboneConfig:
    plain = {"weights": "random", "freeze_stem": False, "frozen_norm": False, "affine": True}
    return BackboneConfig(name=name, **{**plain, **changes})


@pytest.mark.parametrize("name", PARAMETERS)
def test_it_has_the_published_parameters(name):
    affine, expected = PARAMETERS[name]
    with torch.device("meta"):
        network = build_backbone(config(name, affine=affine))
    assert sum(p.numel() for p in network.parameters()) == expected


@pytest.mark.parametrize(("name", "maps", "sides"), [("hgnetv2_b0", 2, [4, 2]), ("hgnetv2_pico", 1, [4])])
def test_the_last_stages_give_their_map(name, maps, sides):
    network = build_backbone(config(name, maps=maps)).eval()
    features = network(torch.zeros(1, 3, 64, 64))
    assert [f.shape[-1] for f in features] == sides
    assert [f.shape[1] for f in features] == list(network.channels)


def test_as_many_maps_as_there_are_stages():
    with pytest.raises(ValueError, match=r"backbone\.maps is 4; hgnetv2_atto has 3 stages"):
        build_backbone(config("hgnetv2_atto", maps=4))


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_starts_from_the_weights_of_b0_that_fit_it(tmp_path, name):
    whole = build_backbone(config("hgnetv2_b0")).state_dict()
    torch.save({key: torch.ones_like(value) for key, value in whole.items()}, tmp_path / "b0.pth")
    own = build_backbone(config(name, weights=str(tmp_path / "b0.pth"))).state_dict()
    fitting = {key for key in own if own[key].shape == whole[key].shape}
    assert all((own[key] == 1).all() for key in fitting)
    other = sorted(own.keys() - fitting)
    assert bool(other) == (name == "hgnetv2_atto")
    assert all(".layers." in key or ".aggregation." in key for key in other)


def test_other_weights_of_b0_are_refused(tmp_path):
    state = build_backbone(config("hgnetv2_b0")).state_dict()
    state["stages.9.downsample.conv.weight"] = torch.ones(1)
    torch.save(state, tmp_path / "b0.pth")
    with pytest.raises(ValueError, match=r"stages\.9"):
        build_backbone(config("hgnetv2_b0", weights=str(tmp_path / "b0.pth")))


def test_a_frozen_stem_does_not_train_and_frozen_norms_are_buffers():
    network = build_backbone(config("hgnetv2_b0", affine=False, freeze_stem=True, frozen_norm=True))
    trained = {n for n, p in network.named_parameters() if p.requires_grad}
    assert not any(n.startswith("stem.") for n in trained)
    assert not any(".bn." in n for n in trained)
    assert "stages.3.blocks.0.aggregation.1.conv.weight" in trained
