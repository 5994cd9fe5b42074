"""DEIMv2: what an official file may leave out or name twice, and sizes that cannot be."""

import pytest
import torch
from torch import Tensor

from zoo.architectures.deimv2 import from_published
from zoo.layers.gated_decoder import GatedConfig
from zoo.layers.sum_encoder import LiteEncoder, SumEncoderConfig
from zoo.verification.proof import build_recipe

HEAD = "decoder.dec_bbox_head."


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return build_recipe("deimv2/atto_coco_500e").network


def official(network: torch.nn.Module) -> dict[str, Tensor]:
    """The network's weights under the official names, with what it computes and its second names."""
    state = {}
    for key, value in network.state_dict().items():
        if key.startswith("encoder.input_proj.0."):
            part, rest = key.removeprefix("encoder.input_proj.0.").split(".")
            key = f"encoder.input_proj.0.{('conv', 'norm')[int(part)]}.{rest}"
        state[key] = value
    constants = {f"decoder.decoder.{name}": state[f"decoder.{name}"] for name in ("up", "reg_scale")}
    computed = {name: torch.zeros(1) for name in ("decoder.anchors", "decoder.valid_mask")}
    computed["decoder.decoder.layers.0.cross_attn.num_points_scale"] = torch.ones(6)
    return state | constants | computed


def assert_loads(network: torch.nn.Module, state: dict[str, Tensor]) -> None:
    expected = network.state_dict()
    converted = from_published(state)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], value) for key, value in expected.items())


def test_official_names_become_ours(network):
    assert_loads(network, official(network))


def test_a_file_that_names_a_shared_tensor_once_is_whole(network):
    """Hugging Face's safetensors keep the first name in alphabetical order."""
    state = {
        key: value
        for key, value in official(network).items()
        if not key.startswith((f"{HEAD}1.", f"{HEAD}2.", "decoder.up", "decoder.reg_scale"))
    }
    assert_loads(network, state)


def test_two_copies_that_differ_are_refused(network):
    with pytest.raises(ValueError, match=r"two copies of decoder\.reg_scale differ"):
        from_published(official(network) | {"decoder.decoder.reg_scale": torch.tensor([8.0])})


def test_a_file_that_lacks_one_of_several_heads_is_not_completed():
    state = official(build_recipe("deimv2/n_coco_160e").network)
    lacking = {key: value for key, value in state.items() if not key.startswith(f"{HEAD}2.")}
    assert not any(key.startswith(f"{HEAD}2.") for key in from_published(lacking))


def test_weights_on_dinov3_are_refused_in_words():
    with pytest.raises(KeyError, match=r"DEIMv2 on DINOv3, S to X; this package has Atto, Femto, Pico and N"):
        from_published({"backbone.dinov3.cls_token": torch.zeros(1)})
    with pytest.raises(KeyError, match="is not a key of an official DEIMv2"):
        from_published({"neck.weight": torch.zeros(1)})


@pytest.mark.parametrize(("kind", "heads"), [("lite", 8), ("hybrid", 0)])
def test_attention_is_of_the_hybrid_encoder(kind, heads):
    with pytest.raises(ValueError, match=f"encoder.num_heads is {heads}; a {kind} encoder has"):
        SumEncoderConfig(kind=kind, dim=16, expansion=0.5, num_blocks=1, num_heads=heads)


def test_a_lite_encoder_has_one_map():
    config = SumEncoderConfig(kind="lite", dim=16, expansion=0.5, num_blocks=1)
    with pytest.raises(ValueError, match="takes one map of the backbone, not 2"):
        LiteEncoder([8, 16], config)
    maps = LiteEncoder([8], config)([torch.zeros(1, 8, 4, 6)])
    assert [tuple(m.shape) for m in maps] == [(1, 16, 4, 6), (1, 16, 2, 3)]


def test_half_of_the_feed_forward_part_are_gates():
    with pytest.raises(ValueError, match="ffn_dim \\(15\\) must be even"):
        GatedConfig(
            dim=16, num_queries=5, num_layers=1, eval_layers=1, num_heads=2, ffn_dim=15, num_points=[1], reg_scale=4.0,
            num_denoising=4, label_noise=0.5, box_noise=1.0, gateway=True, shared_box_head=False,
        )  # fmt: skip


def test_positions_are_made_once_and_the_box_head_is_one(network):
    decoder = network.decoder
    reference = torch.rand(1, 5, 4)
    first = decoder.positions(reference, None)
    assert decoder.positions(torch.rand(1, 5, 4), first) is first
    assert decoder.dec_bbox_head[0] is decoder.dec_bbox_head[2]
