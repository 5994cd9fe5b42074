"""RT-DETRv2's promises beyond equality with the official code (that is in tests/golden)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from zoo.architectures.rt_detrv2 import DecoderConfig, RtDetrV2, from_published
from zoo.contract.batch import Batch, Step, Targets
from zoo.layers.backbone import BackboneConfig
from zoo.layers.hybrid_encoder import EncoderConfig
from zoo.layers.published_constants import refuse_other_constants

CLASSES = 4


def network(backbone: str = "residual", **decoder) -> RtDetrV2:
    torch.manual_seed(0)
    widths = [4, 8, 8, 8, 8] if backbone == "residual" else []
    sizes = {"dim": 32, "num_queries": 10, "num_layers": 2, "eval_layers": 2, "num_heads": 4, "ffn_dim": 16}
    noise = {"num_denoising": 12, "label_noise": 0.5, "box_noise": 1.0}
    return RtDetrV2(
        CLASSES,
        BackboneConfig(name=backbone, weights="random", freeze_stem=False, frozen_norm=False, widths=widths),
        EncoderConfig(dim=32, num_heads=4, ffn_dim=16, expansion=1.0, num_blocks=3),
        DecoderConfig(**{**sizes, **noise, "num_points": [4, 4, 4], **decoder}),
    ).double()


def batch_of(*counts: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    total = sum(counts)
    boxes = 0.25 + 0.3 * torch.rand(total, 4, generator=generator, dtype=torch.float64)
    return Batch(
        images=torch.rand(len(counts), 3, 64, 96, generator=generator, dtype=torch.float64),
        padding=torch.zeros(len(counts), 64, 96, dtype=torch.bool),
        targets=Targets(torch.randint(CLASSES, (total,), generator=generator), boxes, counts),
        image_ids=tuple(range(len(counts))),
        original_sizes=((64, 96),) * len(counts),
        step=Step(torch.tensor(counts), (64, 96), 3, seed=7),
    )


def hugging_face_model():
    transformers = pytest.importorskip("transformers")
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.RTDetrV2Config(
        backbone_config=backbone, encoder_in_channels=[128, 256, 512], encoder_hidden_dim=32, d_model=32,
        encoder_ffn_dim=16, encoder_attention_heads=4, decoder_in_channels=[32, 32, 32], decoder_ffn_dim=16,
        decoder_attention_heads=4, decoder_layers=2, num_queries=10, num_labels=CLASSES,
        freeze_backbone_batch_norms=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.RTDetrV2ForObjectDetection(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def test_a_hugging_face_model_predicts_the_same():
    model, ours = hugging_face_model(), network("resnet18d").eval()
    ours.load_state_dict(from_published(model.state_dict()), strict=True)
    images = batch_of(1).images
    theirs, final = model(pixel_values=images), ours(replace(batch_of(1), images=images)).final
    torch.testing.assert_close(final.logits, theirs.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(final.boxes, theirs.pred_boxes, rtol=1e-5, atol=1e-6)


def test_keys_of_the_hub_give_the_same_tensors():
    """Files of 2024-25: fc1 and out_proj, where transformers now writes mlp.fc1, o_proj and aifi."""
    state = hugging_face_model().state_dict()
    old = {
        k.replace(".mlp.fc", ".fc").replace(".o_proj.", ".out_proj.").replace(".aifi.", ".encoder."): v
        for k, v in state.items()
    }
    assert old.keys() != state.keys()
    ours, theirs = from_published(state), from_published(old)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_computed_constants_are_dropped_and_foreign_keys_refused():
    constants = ("anchors", "valid_mask", "decoder.layers.0.cross_attn.num_points_scale")
    assert from_published({f"decoder.{name}": torch.empty(0) for name in constants}) == {}
    with pytest.raises(KeyError, match=r"'head\.weight' is not a key of an official RT-DETRv2 checkpoint"):
        from_published({"head.weight": torch.empty(0)})


def test_points_of_transformers_that_are_spread_otherwise_are_refused():
    state = hugging_face_model().state_dict()
    refuse_other_constants(state, network("resnet18d").decoder)
    other = network("resnet18d", num_points=[3, 6, 3])
    other.load_state_dict(from_published(state), strict=True)
    with pytest.raises(
        ValueError, match=r"^model\.decoder\.layers\.0\.encoder_attn\.n_points_scale is 1 over 4, 4"
    ):
        refuse_other_constants(state, other.decoder)


@pytest.mark.parametrize("sampling", ["bilinear", "discrete"])
def test_offsets_learn_where_sampling_has_a_gradient(sampling):
    trained = network(sampling=sampling).train()
    outputs = trained(batch_of(2, 1))
    sum(s.predictions.boxes.sum() + s.predictions.logits.sum() for s in outputs.supervised).backward()
    offsets = trained.decoder.decoder.layers[1].cross_attn.sampling_offsets.weight
    assert offsets.requires_grad is (sampling == "bilinear")
    assert (offsets.grad is not None) is (sampling == "bilinear")


def test_a_step_without_objects_has_one_group_of_padding():
    denoising = network().train().denoise(batch_of(0, 0))
    assert denoising is not None
    assert denoising.groups == 1
    assert denoising.labels.tolist() == [[CLASSES] * 2] * 2
    assert len(denoising.pairs.query) == 0


def test_denoising_of_deim_has_no_group_without_objects_and_uncrosses_corners():
    ours, deim = network().train(), network(denoising="deim").train()
    assert deim.denoise(batch_of(0, 0)) is None
    plain, uncrossed = (n.denoise(batch_of(2, 1)).boxes_unactivated.sigmoid() for n in (ours, deim))
    crossed = (plain[..., 2:] < 1e-4) & (uncrossed[..., 2:] > 1e-3)
    assert crossed.any()
    assert not crossed.all()
    torch.testing.assert_close(uncrossed[..., :2], plain[..., :2])
    torch.testing.assert_close(uncrossed[..., 2:][~crossed], plain[..., 2:][~crossed])


def test_only_the_first_two_layers_of_the_position_start_by_xaviers_rule():
    layers = network(position_hidden=[32, 32]).decoder.query_pos_head.layers
    bounds = [(6 / (4 + 32)) ** 0.5, (6 / (32 + 32)) ** 0.5, 32**-0.5]
    for layer, bound in zip(layers, bounds, strict=True):
        assert 0.95 * bound < layer.weight.abs().max() <= bound


def test_a_selection_of_objects_is_supervised_without_classes():
    outputs = network(selection="objects").train()(batch_of(1, 2))
    encoder = next(s for s in outputs.supervised if s.name == "encoder")
    assert encoder.class_agnostic
    assert encoder.predictions.logits.shape[-1] == 1


@pytest.mark.parametrize("points", [[4, 4], [4, 0, 4]])
def test_points_must_be_given_for_each_level(points):
    with pytest.raises(ValueError, match="it must be 3 numbers above 0, one a level"):
        network(num_points=points)
