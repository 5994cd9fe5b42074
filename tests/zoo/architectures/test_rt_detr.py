"""RT-DETR's promises beyond equality with the official code (that is in tests/golden)."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from zoo.architectures.rt_detr import DecoderConfig, RtDetrModule
from zoo.contract.batch import Batch, Step, Targets
from zoo.layers.backbone import BackboneConfig
from zoo.layers.hybrid_encoder import EncoderConfig
from zoo.layers.query_selection import anchor_logits
from zoo.training.criterion import LossWeights
from zoo.training.ema import EmaConfig
from zoo.training.matcher import MatchCosts
from zoo.training.schedule import Schedule

CLASSES = 4


def tiny_module(multi_scale=(), **decoder) -> RtDetrModule:
    torch.manual_seed(0)
    return RtDetrModule(
        num_classes=CLASSES,
        backbone=BackboneConfig(
            name="residual", weights="random", freeze_stem=False, frozen_norm=False, widths=[4, 8, 8, 8, 8]
        ),
        encoder=EncoderConfig(dim=16, num_heads=2, ffn_dim=16, expansion=0.5, num_blocks=1),
        decoder=DecoderConfig(
            **{
                "dim": 16,
                "num_queries": 10,
                "num_layers": 2,
                "eval_layers": 2,
                "num_heads": 2,
                "num_points": 2,
                "ffn_dim": 16,
                "num_denoising": 12,
                "label_noise": 0.5,
                "box_noise": 1.0,
            }
            | decoder
        ),
        costs=MatchCosts(label=2, l1=5, giou=2),
        losses=LossWeights(label=1, l1=5, giou=2),
        schedule=Schedule(
            lr=1e-3, weight_decay=0, rules=[], warmup_steps=0, drop_epochs=[], global_batch_size=8
        ),
        ema=EmaConfig(decay=0.99, warmup_steps=10),
        multi_scale=list(multi_scale),
    )


def random_batch(counts, seed=0, step_index=3) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(len(counts), 3, 64, 96, generator=generator, dtype=torch.float64)
    boxes = 0.25 + 0.3 * torch.rand(sum(counts), 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (sum(counts),), generator=generator)
    return Batch(
        images=images,
        padding=torch.zeros(len(counts), 64, 96, dtype=torch.bool),
        targets=Targets(labels, boxes, tuple(counts)),
        image_ids=tuple(100 + i for i in range(len(counts))),
        original_sizes=((64, 96),) * len(counts),
        step=Step(torch.tensor(counts), (64, 96), step_index, seed=7),
    )


def gradients(module: RtDetrModule, batches) -> dict[str, torch.Tensor]:
    module.zero_grad()
    for batch in batches:
        torch.stack([v.sum() for v in module.losses(batch).values()]).sum().backward()
    return {n: p.grad.clone() for n, p in module.network.named_parameters()}


def without_batch_statistics(module: RtDetrModule) -> RtDetrModule:
    module = module.double().train()
    for child in module.network.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.eval()
    return module


@pytest.mark.parametrize("size", [4, 2, 1])
def test_gradient_does_not_depend_on_the_split(size):
    """8 images = 2 x 4 = 4 x 2 = 8 x 1, denoising noise and multi-scale included (BatchNorm in eval)."""
    module = without_batch_statistics(tiny_module(multi_scale=[64, 96]))
    whole = random_batch([3, 0, 1, 5, 2, 1, 0, 4])
    expected = gradients(module, [whole])
    split = gradients(module, [whole.part(i, i + size) for i in range(0, 8, size)])
    for name, gradient in expected.items():
        largest = gradient.abs().max().clamp(min=1e-3)
        assert (split[name] - gradient).abs().max() <= 1e-10 * largest, name


def test_step_facts_are_what_makes_the_split_exact():
    """With each micro-batch's own facts the gradient is another one: the test above can fail."""
    module = without_batch_statistics(tiny_module())
    whole = random_batch([3, 0, 1, 5, 2, 1, 0, 4])
    parts = [whole.part(i, i + 2) for i in range(0, 8, 2)]
    alone = [replace(p, step=replace(p.step, counts=torch.tensor(p.targets.counts))) for p in parts]
    expected, split = gradients(module, [whole]), gradients(module, alone)
    name = "decoder.dec_bbox_head.1.layers.2.weight"
    assert (split[name] - expected[name]).norm() > 0.1 * expected[name].norm()


def test_denoising_depends_on_seed_step_and_image_and_on_nothing_else():
    module = tiny_module().double()
    batch = random_batch([2, 3])
    torch.manual_seed(1)
    first = module.network.denoise(batch)
    torch.manual_seed(2)
    again = module.network.denoise(batch.part(1, 2))
    assert torch.equal(first.boxes_unactivated[1], again.boxes_unactivated[0])
    next_step = module.network.denoise(replace(batch, step=replace(batch.step, index=4)))
    assert not torch.equal(first.boxes_unactivated, next_step.boxes_unactivated)


@pytest.mark.parametrize("counts", [[2, 3], [0, 4], [0, 0]], ids=str)
def test_every_parameter_takes_part_in_the_backward_pass(counts):
    module = tiny_module().double().train()
    for name, gradient in gradients(module, [random_batch(counts)]).items():
        assert gradient.isfinite().all(), name


def test_box_gradient_reaches_one_layer_back():
    """Look forward twice: the second layer's box moves the first layer's head."""
    module = without_batch_statistics(tiny_module())
    sets = module.network(random_batch([2, 2])).supervised
    sets[0].predictions.boxes[1].sum().backward()
    # heads start at zero offsets, so the gradient arrives at their bias
    assert module.network.decoder.dec_bbox_head[0].layers[2].bias.grad.abs().sum() > 0


@pytest.mark.parametrize("layers", [1, 2])
def test_fewer_layers_equal_the_prediction_of_that_layer(layers):
    module = without_batch_statistics(tiny_module(num_denoising=0))
    batch = random_batch([2, 2])
    with torch.no_grad():
        trained = module.network(batch).supervised[0].predictions
        module.network.eval()
        module.network.decoder.eval_layers = layers
        final = module.network(batch).final
    torch.testing.assert_close(final.boxes, trained.boxes[layers - 1])
    torch.testing.assert_close(final.logits, trained.logits[layers - 1])


def test_multi_scale_is_one_size_per_step_for_all_parts():
    module = tiny_module(multi_scale=range(64, 1024, 32)).double()
    batch = random_batch([1, 1, 1, 1])
    sizes = {module.network.rescale(batch.part(i, i + 1).images, batch.step).shape[-2:] for i in range(4)}
    assert len(sizes) == 1
    others = {module.network.rescale(batch.images, replace(batch.step, index=i)).shape[-1] for i in range(20)}
    assert len(others) > 5


def test_multi_scale_ends_after_its_epochs():
    network = tiny_module(multi_scale=[96]).double().network
    network.multi_scale_epochs = 2
    batch = random_batch([1])
    heights = [network.rescale(batch.images, replace(batch.step, epoch=e)).shape[-2] for e in range(4)]
    assert heights == [96, 96, 64, 64]


def test_anchors_outside_the_image_stay_where_they_are():
    logits, valid = anchor_logits([(200, 2)], torch.device("cpu"))
    assert logits[~valid].isinf().all()
    assert 0 < valid.sum() < len(valid)


def test_odd_image_sizes_are_refused():
    module = tiny_module().double().eval()
    batch = random_batch([1])
    with pytest.raises(ValueError, match="64x90; RT-DETR needs both sides to be multiples of 32"):
        module.network(replace(batch, images=batch.images[..., :90]))


def test_evaluation_layers_must_exist():
    with pytest.raises(ValueError, match=r"eval_layers \(3\) must be in 1..num_layers \(2\)"):
        tiny_module(eval_layers=3)


def test_focal_prior():
    module = tiny_module()
    with torch.no_grad():
        outputs = module.double().eval().network(random_batch([1]))
    assert outputs.final.logits.sigmoid().mean() == pytest.approx(0.01, rel=0.9)


def test_training_forward_is_one_graph():
    """Capture without a break; draws are made before it, on the host."""
    module = without_batch_statistics(tiny_module())
    batch = random_batch([2, 3])
    expected = module.network(batch).supervised[0].predictions
    images, denoising = module.network.prepare(batch)
    compiled = torch.compile(module.network.compute, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images, denoising).supervised[0].predictions.boxes, expected.boxes)
