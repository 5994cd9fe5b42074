"""Deformable DETR's promises beyond equality with the official code (that is in tests/golden)."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from zoo.architectures.deformable_detr import (
    DeformableDetr,
    DeformableDetrModule,
    TransformerConfig,
    from_published,
)
from zoo.contract.batch import Batch, Step, Targets
from zoo.layers.backbone import BackboneConfig, ResNet, freeze_batch_norm
from zoo.layers.deformable_attention import DeformableAttention, sampling_locations
from zoo.training.criterion import LossWeights
from zoo.training.losses import SigmoidFocal
from zoo.training.matcher import MatchCosts
from zoo.training.schedule import Schedule

CLASSES = 4
KINDS = {
    "single_scale": {"num_levels": 1},
    "multi_scale": {},
    "refine": {"refine_boxes": True},
    "two_stage": {"refine_boxes": True, "two_stage": True},
}
kinds = pytest.mark.parametrize("kind", KINDS)


def config(**changes) -> TransformerConfig:
    sizes = {
        "dim": 32,
        "num_heads": 4,
        "ffn_dim": 16,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_points": 2,
        "decoder_points": 3,
        "num_levels": 4,
        "num_queries": 10,
        "dropout": 0.0,
        "refine_boxes": False,
        "two_stage": False,
    }
    return TransformerConfig(**sizes | changes)


def tiny_module(kind="multi_scale", **changes) -> DeformableDetrModule:
    torch.manual_seed(0)
    return DeformableDetrModule(
        num_classes=CLASSES,
        backbone=BackboneConfig(
            name="residual", weights="random", freeze_stem=False, frozen_norm=True, widths=[4, 8, 8, 8, 8]
        ),
        transformer=config(**KINDS[kind] | changes),
        costs=MatchCosts(label=2, l1=5, giou=2),
        losses=LossWeights(label=2, l1=5, giou=2),
        schedule=Schedule(
            lr=1e-3, weight_decay=0, rules=[], warmup_steps=0, drop_epochs=[], global_batch_size=8
        ),
        top_k=20,
    )


def perturbed(module: DeformableDetrModule) -> DeformableDetrModule:
    """Away from the initial zeros of offsets and box heads, which would stop gradients."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return module


def random_batch(counts, seed=0, dtype=torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(len(counts), 3, 64, 96, generator=generator, dtype=torch.float64)
    boxes = 0.25 + 0.3 * torch.rand(sum(counts), 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (sum(counts),), generator=generator)
    return Batch(
        images=images.to(dtype),
        padding=torch.zeros(len(counts), 64, 96, dtype=torch.bool),
        targets=Targets(labels, boxes.to(dtype), tuple(counts)),
        image_ids=tuple(100 + i for i in range(len(counts))),
        original_sizes=((64, 96),) * len(counts),
        step=Step(torch.tensor(counts), (64, 96), 3, seed=7),
    )


def gradients(module: DeformableDetrModule, batches) -> dict[str, torch.Tensor]:
    module.zero_grad()
    for batch in batches:
        torch.stack([v.sum() for v in module.losses(batch).values()]).sum().backward()
    return {n: p.grad.clone() for n, p in module.network.named_parameters()}


@kinds
@pytest.mark.parametrize("size", [4, 1])
def test_gradient_does_not_depend_on_the_split(kind, size):
    """8 images = 2 x 4 = 8 x 1, without dropout and at equal sizes."""
    module = perturbed(tiny_module(kind)).double().train()
    whole = random_batch([3, 0, 1, 5, 2, 1, 0, 4])
    expected = gradients(module, [whole])
    split = gradients(module, [whole.part(i, i + size) for i in range(0, 8, size)])
    for name, gradient in expected.items():
        largest = gradient.abs().max().clamp(min=1e-3)
        assert (split[name] - gradient).abs().max() <= 1e-10 * largest, name


def test_step_facts_are_what_makes_the_split_exact():
    """With each micro-batch's own facts the gradient is another one: the test above can fail."""
    module = perturbed(tiny_module()).double().train()
    whole = random_batch([3, 0, 1, 5, 2, 1, 0, 4])
    parts = [whole.part(i, i + 2) for i in range(0, 8, 2)]
    alone = [replace(p, step=replace(p.step, counts=torch.tensor(p.targets.counts))) for p in parts]
    expected, split = gradients(module, [whole]), gradients(module, alone)
    name = "bbox_embed.0.layers.2.weight"
    assert (split[name] - expected[name]).norm() > 0.1 * expected[name].norm()


@kinds
@pytest.mark.parametrize("counts", [[2, 3], [0, 4], [0, 0]], ids=str)
def test_every_parameter_takes_part_in_the_backward_pass(kind, counts):
    module = perturbed(tiny_module(kind)).double().train()
    found = gradients(module, [random_batch(counts)])
    for name, gradient in found.items():
        assert gradient.isfinite().all(), name
    if sum(counts):
        # a bias that softmax cancels has none
        still = [n for n, g in found.items() if not g.abs().sum() and not n.endswith("in_proj_bias")]
        assert still == []


@kinds
def test_valid_ratios_are_width_then_height(kind):
    network = tiny_module(kind).double().eval().network
    with torch.no_grad():
        memory, position = network.tokens(random_batch([1]).padded_to((128, 128)))
    assert memory.tokens.shape == position.shape
    assert memory.padding.shape == memory.tokens.shape[:2]
    assert memory.valid_ratios[0, 0].tolist() == [0.75, 0.5]


def test_values_on_padding_are_never_sampled():
    torch.manual_seed(0)
    attention = DeformableAttention(16, 2, 2, 3)
    sizes = [(4, 6), (2, 3)]
    memory, query = torch.randn(2, 30, 16), torch.randn(2, 5, 16)
    padding = torch.rand(2, 30) < 0.5
    references = torch.rand(2, 5, 2, 2)
    first = attention(query, references, memory, sizes, padding)
    changed = torch.where(padding[..., None], memory + 100.0, memory)
    torch.testing.assert_close(attention(query, references, changed, sizes, padding), first)
    assert not torch.allclose(attention(query, references, changed, sizes), first)


def test_offsets_around_points_are_pixels_in_width_height_order():
    """The official code had (H, W) until 2020-12-07."""
    references, offsets = torch.full((1, 1, 2, 2), 0.5), [torch.ones(1, 1, 1, 1, 2)] * 2
    locations = sampling_locations(references, offsets, [(4, 8), (2, 5)])
    found = torch.stack(locations)[:, 0, 0, 0, 0]
    torch.testing.assert_close(found, 0.5 + torch.tensor([[1 / 8, 1 / 4], [1 / 5, 1 / 2]]))


def test_boxes_start_at_the_prior():
    """Focal prior; boxes small in the first layer, unchanged by the others."""
    module = tiny_module("refine")
    network = module.network
    assert torch.stack([h.bias.sigmoid() for h in network.class_embed]).allclose(torch.tensor(0.01))
    last = [head.layers[-1] for head in network.bbox_embed]
    assert [h.bias.tolist() for h in last] == [[0, 0, -2, -2], [0, 0, 0, 0]]
    assert not any(h.weight.any() for h in last)
    assert torch.equal(network.class_embed[0].weight, network.class_embed[1].weight)
    two_stage = tiny_module("two_stage").network
    assert len(two_stage.bbox_embed) == 3
    assert not any(h.layers[-1].bias.any() for h in two_stage.bbox_embed)
    shared = tiny_module().network
    assert (len(shared.class_embed), len(shared.bbox_embed)) == (1, 1)


def test_references_are_detached_between_layers_and_the_first_is_not():
    module = perturbed(tiny_module("refine")).double().train()
    boxes = module.network(random_batch([2])).supervised[0].predictions.boxes
    first = module.network.bbox_embed[0].layers[2].bias
    (through,) = torch.autograd.grad(boxes[1].sum(), first, retain_graph=True)
    assert not through.any()
    weight = module.network.transformer.reference_points.weight
    (start,) = torch.autograd.grad(boxes[0].sum(), weight)
    assert start.abs().sum() > 0


def test_proposals_of_all_tokens_are_supervised_as_one_class():
    module = perturbed(tiny_module("two_stage")).double().train()
    decoder, encoder = module.network(random_batch([2, 1])).supervised
    tokens = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2
    assert encoder.predictions.logits.shape == (1, 2, tokens, CLASSES)
    assert encoder.class_agnostic
    assert not decoder.class_agnostic


def test_two_stage_needs_refinement():
    with pytest.raises(ValueError, match="two_stage needs refine_boxes: true"):
        config(two_stage=True)


@kinds
def test_state_survives_saving_and_loading_strictly(kind, tmp_path):
    from safetensors.torch import load_file, save_file

    network = perturbed(tiny_module(kind)).network
    save_file(network.state_dict(), tmp_path / "x.safetensors")
    other = tiny_module(kind).network
    other.load_state_dict(load_file(tmp_path / "x.safetensors"), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    "kind",
    [
        "multi_scale",
        "two_stage",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("single_scale", "refine")),
    ],
)
def test_training_forward_is_one_graph(kind):
    module = perturbed(tiny_module(kind)).train()
    batch = random_batch([2, 1], dtype=torch.float32)

    def forward(images):
        outputs = module.network(replace(batch, images=images))
        return [s.predictions[:2] for s in outputs.supervised]

    expected = forward(batch.images)
    torch._dynamo.reset()
    found = torch.compile(forward, fullgraph=True, backend="eager")(batch.images)
    for (logits, boxes), (wanted_logits, wanted_boxes) in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, wanted_logits)
        torch.testing.assert_close(boxes, wanted_boxes)


def test_focal_loss_in_blocks_equals_the_formula():
    """More entries a layer than one block has, so that layers and blocks both have seams."""
    torch.manual_seed(0)
    logits = (3 * torch.randn(2, 900, 91, dtype=torch.float64)).requires_grad_()
    matched = torch.tensor([5, 900 * 91 - 1, 900 * 91, 2 * 900 * 91 - 3])
    target = torch.zeros(2 * 900 * 91, dtype=torch.float64)
    target[matched] = 1
    target = target.view(logits.shape)
    p = logits.sigmoid()
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    right = p * target + (1 - p) * (1 - target)
    wanted = ((0.25 * target + 0.75 * (1 - target)) * (1 - right) ** 2 * bce).flatten(1).sum(1)
    (wanted_gradient,) = torch.autograd.grad((wanted * torch.tensor([1.0, 2.0])).sum(), logits)
    found = SigmoidFocal(0.25, 2.0)(logits, matched, torch.ones(4))
    (gradient,) = torch.autograd.grad((found * torch.tensor([1.0, 2.0])).sum(), logits)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-10, atol=1e-14)


# -- published layouts ----------------------------------------------------------------------------


def hugging_face_model(**changes):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = transformers.DeformableDetrConfig(
        use_timm_backbone=True, use_pretrained_backbone=False, backbone="resnet18", backbone_config=None,
        d_model=64, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_n_points=2, decoder_n_points=3,
        num_queries=7, two_stage_num_proposals=7, num_labels=5, **changes,
    )  # fmt: skip
    model = transformers.DeformableDetrForObjectDetection(settings).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # its initial zeros would hide a swapped tensor
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and "backbone" not in name:
                tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
    return model


def counterpart(**changes) -> DeformableDetr:
    backbone = ResNet("resnet18")
    freeze_batch_norm(backbone)
    sizes = config(dim=64, ffn_dim=32, num_queries=7, **changes)
    return DeformableDetr(5, backbone, sizes).double().eval()


@kinds
def test_transformers_model_gives_the_same_logits_and_boxes(kind):
    changes = KINDS[kind]
    options = {
        "with_box_refine": changes.get("refine_boxes", False),
        "two_stage": changes.get("two_stage", False),
        "num_feature_levels": changes.get("num_levels", 4),
    }
    theirs, ours = hugging_face_model(**options), counterpart(**changes)
    ours.load_state_dict(from_published(theirs.state_dict()), strict=True)
    batch = random_batch([1, 1]).padded_to((96, 128))
    padding = batch.padding.clone()
    padding[1] = False
    batch = replace(batch, padding=padding)
    with torch.no_grad():
        found = ours(batch).final
        wanted = theirs(batch.images, pixel_mask=~padding)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.boxes, wanted.pred_boxes, rtol=0, atol=1e-6)


@kinds
def test_saved_transformers_files_convert(kind, tmp_path):
    """`save_pretrained` writes the names of version 4 and leaves tied tensors out."""
    from safetensors.torch import load_file

    changes = KINDS[kind]
    theirs = hugging_face_model(
        with_box_refine=changes.get("refine_boxes", False),
        two_stage=changes.get("two_stage", False),
        num_feature_levels=changes.get("num_levels", 4),
    )
    theirs.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert any(key.startswith("model.backbone.conv_encoder.model.") for key in saved)
    converted = from_published(saved)
    counterpart(**changes).load_state_dict(converted, strict=True)
    whole = from_published(theirs.state_dict())
    assert converted.keys() == whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in converted.items())


def test_unknown_keys_and_torn_ties_are_refused():
    with pytest.raises(
        KeyError, match=r"'decoder\.x' is not a key of an official Deformable DETR checkpoint"
    ):
        from_published({"decoder.x": torch.zeros(1)})
    torn = {"class_embed.0.bias": torch.zeros(2), "class_embed.1.bias": torch.ones(2)}
    with pytest.raises(ValueError, match=r"'class_embed\.1\.bias' differs from the other copies"):
        from_published(torn)
