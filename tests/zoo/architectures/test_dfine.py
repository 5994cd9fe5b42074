"""D-FINE: weights under the names of transformers, steps without objects, crossed sides."""

import re

import pytest
import torch
from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config

from zoo.architectures.dfine import from_published
from zoo.training.module import build_module
from zoo.verification.proof import build_recipe


def of_transformers() -> DFineForObjectDetection:
    """D-FINE-S as transformers builds it, with values that tell tensors apart."""
    backbone = HGNetV2Config(
        out_features=["stage2", "stage3", "stage4"], use_learnable_affine_block=True,
        stem_channels=[3, 16, 16], stage_in_channels=[16, 64, 256, 512], stage_mid_channels=[16, 32, 64, 128],
        hidden_sizes=[64, 256, 512, 1024], stage_out_channels=[64, 256, 512, 1024],
        stage_num_blocks=[1, 1, 2, 1], stage_numb_of_layers=[3, 3, 3, 3],
    )  # fmt: skip
    config = DFineConfig(
        backbone_config=backbone, encoder_in_channels=[256, 512, 1024], depth_mult=0.34, hidden_expansion=0.5,
        decoder_layers=3, num_labels=80, freeze_backbone_batch_norms=False, eval_size=None,
    )  # fmt: skip
    torch.manual_seed(0)
    network = DFineForObjectDetection(config).eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point() and not re.search(r"up$|reg_scale$|num_points_scale$", name):
                low, high = (0.5, 1.5) if name.endswith("running_var") else (-0.05, 0.05)
                value.add_(torch.empty_like(value).uniform_(low, high) if low < 0 else 0)
    return network


def as_of_the_hub(key: str) -> str:
    """transformers 4 named these otherwise."""
    key = re.sub(r"mlp\.layers\.0\.", "fc1.", key)
    key = re.sub(r"mlp\.layers\.1\.", "fc2.", key)
    key = key.replace("encoder.aifi.", "encoder.encoder.").replace(".o_proj.", ".out_proj.")
    return key


@pytest.mark.parametrize("named", [str, as_of_the_hub], ids=["transformers 5", "hub"])
def test_weights_of_transformers_have_their_place(named):
    theirs = of_transformers().state_dict()
    converted = from_published({named(key): value for key, value in theirs.items()})
    own = build_recipe("dfine/s_coco_132e").network.state_dict()
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in own.items()}
    second = "model.encoder.fpn_blocks.0.csp_rep2.conv2.conv.weight"
    assert torch.equal(converted["encoder.fpn_blocks.0.cv3.0.conv2.conv.weight"], theirs[second])


def test_weights_that_count_distances_otherwise_are_refused():
    module = build_recipe("dfine/s_coco_132e")
    state = dict(module.network.state_dict())
    state["decoder.reg_scale"] = torch.tensor([8.0])
    with pytest.raises(RuntimeError, match=r"reg_scale is 8 in the weights and 4 here"):
        module.network.load_state_dict(state)
    assert build_module(module.model_block(), backbone_weights="random").decoder_layers == 3


def test_a_foreign_key_and_two_copies_that_differ_are_refused():
    with pytest.raises(KeyError, match="neck"):
        from_published({"neck.conv.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"two copies of decoder\.up differ"):
        from_published({"decoder.up": torch.ones(1), "decoder.decoder.up": torch.zeros(1)})
