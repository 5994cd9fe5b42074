"""D-FINE: weights under the names of transformers, steps without objects, crossed sides."""

import re

import pytest
import torch
from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config

from zoo.architectures.dfine import DFine, from_published
from zoo.layers.backbone import BackboneConfig
from zoo.layers.distribution_decoder import DistributionConfig
from zoo.layers.hybrid_encoder import EncoderConfig
from zoo.training.module import build_module
from zoo.verification.proof import build_recipe


def perturbed(config: DFineConfig) -> DFineForObjectDetection:
    """The network of transformers in float64, with values that tell tensors apart."""
    torch.manual_seed(0)
    network = DFineForObjectDetection(config).double().eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point() and not re.search(r"up$|reg_scale$|num_points_scale$", name):
                value.add_(torch.empty_like(value).uniform_(-0.05, 0.05))
    return network


def of_transformers(affine: bool = True, maps: int = 3, **sizes) -> DFineForObjectDetection:
    """D-FINE over HGNetv2-B0 as transformers builds it; of size S if nothing else is said."""
    channels = [64, 256, 512, 1024]
    backbone = HGNetV2Config(
        out_features=["stage2", "stage3", "stage4"][-maps:], use_learnable_affine_block=affine,
        stem_channels=[3, 16, 16], stage_in_channels=[16, 64, 256, 512], stage_mid_channels=[16, 32, 64, 128],
        hidden_sizes=channels, stage_out_channels=channels,
        stage_num_blocks=[1, 1, 2, 1], stage_numb_of_layers=[3, 3, 3, 3],
    )  # fmt: skip
    of_s = {"depth_mult": 0.34, "hidden_expansion": 0.5, "decoder_layers": 3, "num_labels": 80}
    of_s["freeze_backbone_batch_norms"] = False
    config = DFineConfig(
        backbone_config=backbone, encoder_in_channels=channels[-maps:],
        feat_strides=[8, 16, 32][-maps:], encode_proj_layers=[maps - 1], num_feature_levels=maps,
        **{**of_s, "decoder_n_points": [3, 6, 3], **sizes},
    )  # fmt: skip
    return perturbed(config)


def as_of_the_hub(key: str) -> str:
    """transformers 4 named these otherwise."""
    key = re.sub(r"mlp\.layers\.0\.", "fc1.", key)
    key = re.sub(r"mlp\.layers\.1\.", "fc2.", key)
    key = key.replace("encoder.aifi.", "encoder.encoder.").replace(".o_proj.", ".out_proj.")
    return key


def as_small(inner: int, points: list[int], blocks: int, scale: float) -> dict:
    """Sizes of a small network in the words of transformers; the decoder's width is 32."""
    return {
        "encoder_hidden_dim": inner, "decoder_in_channels": [inner] * len(points), "encoder_ffn_dim": 24,
        "encoder_attention_heads": 4, "depth_mult": blocks / 3, "hidden_expansion": 1.0, "d_model": 32,
        "decoder_attention_heads": 4, "decoder_ffn_dim": 16, "decoder_layers": 2, "num_queries": 20,
        "decoder_n_points": points, "num_labels": 5, "reg_scale": scale,
    }  # fmt: skip


def small(inner: int, points: list[int], blocks: int, scale: float, affine: bool) -> DFine:
    """The same network as ours."""
    backbone = BackboneConfig(
        name="hgnetv2_b0",
        weights="random",
        freeze_stem=False,
        frozen_norm=False,
        affine=affine,
        maps=len(points),
    )
    decoder = DistributionConfig(
        dim=32, num_layers=2, eval_layers=2, num_heads=4, ffn_dim=16, num_points=points, reg_scale=scale,
        num_queries=20, num_denoising=4, label_noise=0.5, box_noise=1.0,
    )  # fmt: skip
    encoder = EncoderConfig(dim=inner, num_heads=4, ffn_dim=24, expansion=1.0, num_blocks=blocks)
    return DFine(5, backbone, encoder, decoder).double().eval()


@pytest.mark.parametrize(
    ("inner", "points", "blocks", "scale", "affine"),
    [(32, [3, 6, 3], 1, 4.0, True), (32, [6, 6], 2, 4.0, True), (48, [3, 6, 3], 3, 8.0, False)],
    ids=["as S", "two maps, as N", "wider encoder, as X"],
)
@pytest.mark.parametrize("hub", [False, True], ids=["transformers 5", "hub"])
@torch.no_grad()
def test_a_network_of_transformers_predicts_the_same(inner, points, blocks, scale, affine, hub):
    """Files of the hub have frozen norms in every backbone, so no counts of batches, and tied heads once."""
    sizes = as_small(inner, points, blocks, scale)
    theirs = of_transformers(affine, len(points), **sizes, freeze_backbone_batch_norms=hub)
    state = theirs.state_dict()
    if hub:
        tied = ("class_embed.", "bbox_embed.")
        state = {as_of_the_hub(key): value for key, value in state.items() if not key.startswith(tied)}
        assert not any("backbone" in key and key.endswith("num_batches_tracked") for key in state)
    ours = small(inner, points, blocks, scale, affine)
    ours.load_state_dict(from_published(state), strict=True)
    images = torch.rand(2, 3, 128, 192, dtype=torch.float64)
    expected, final = (
        theirs(pixel_values=images),
        ours.decoder(ours.encoder(ours.backbone(images)), None).final,
    )
    torch.testing.assert_close(final.logits, expected.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(final.boxes, expected.pred_boxes, rtol=0, atol=1e-6)


@pytest.mark.parametrize("named", [str, as_of_the_hub], ids=["transformers 5", "hub"])
def test_weights_of_transformers_have_their_place(named):
    theirs = of_transformers().state_dict()
    converted = from_published({named(key): value for key, value in theirs.items()})
    own = build_recipe("dfine/s_coco_132e").network.state_dict()
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in own.items()}
    second = "model.encoder.fpn_blocks.0.csp_rep2.conv2.conv.weight"
    assert torch.equal(converted["encoder.fpn_blocks.0.cv3.0.conv2.conv.weight"], theirs[second])


@pytest.mark.parametrize("named", [str, as_of_the_hub], ids=["transformers 5", "hub"])
def test_points_of_transformers_that_are_spread_otherwise_are_refused(named):
    """Its default, 4 on each level, has tensors of the same shapes."""
    theirs = {named(key): value for key, value in of_transformers(decoder_n_points=4).state_dict().items()}
    module = build_recipe("dfine/s_coco_132e")
    module.network.load_state_dict(from_published(theirs), strict=True)
    with pytest.raises(
        ValueError, match=r"^model\.decoder\.layers\.0\.encoder_attn\.num_points_scale is 1 over 4, 4"
    ):
        module.check_published(theirs)
    module.check_published({named(key): value for key, value in of_transformers().state_dict().items()})


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
