"""DETR's promises beyond equality with the official code (that is in tests/golden)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from zoo.architectures.detr import DetrModule, SoftmaxLabelTerm, from_published
from zoo.contract.batch import Batch, OutputSet, Predictions, Step, Targets
from zoo.layers.backbone import BackboneConfig, build_backbone, from_torchvision
from zoo.layers.transformer import TransformerConfig
from zoo.prediction.postprocess import BestClassSoftmax
from zoo.training.criterion import LossWeights
from zoo.training.losses import SoftmaxCrossEntropy
from zoo.training.matcher import MatchCosts
from zoo.training.schedule import ParamRule, Schedule

CLASSES = 4
STEM = ParamRule(match=r"^backbone\.(conv1|layer1)\.", freeze=True)


def tiny_module(normalizer="exact", rules=(), backbone="residual", frozen_norm=False, **sizes) -> DetrModule:
    torch.manual_seed(0)
    widths = [4, 8, 8, 8, 8] if backbone == "residual" else []
    return DetrModule(
        num_classes=CLASSES,
        backbone=BackboneConfig(
            name=backbone, weights="random", freeze_stem=False, frozen_norm=frozen_norm, widths=widths
        ),
        transformer=TransformerConfig(
            **{
                "dim": 16,
                "num_heads": 2,
                "ffn_dim": 24,
                "encoder_layers": 2,
                "decoder_layers": 3,
                "num_queries": 7,
                "dropout": 0.0,
                "pre_norm": False,
                "position": "sine",
            }
            | sizes
        ),
        costs=MatchCosts(label=1, l1=5, giou=2),
        losses=LossWeights(label=1, l1=5, giou=2),
        no_object_weight=0.1,
        normalizer=normalizer,
        schedule=Schedule(
            lr=1e-3,
            weight_decay=0,
            rules=list(rules),
            warmup_steps=0,
            drop_epochs=[],
            global_batch_size=8,
        ),
        ema=None,
    )


def random_batch(counts, seed=0, size=(64, 96)) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(len(counts), 3, *size, generator=generator, dtype=torch.float64)
    boxes = 0.25 + 0.3 * torch.rand(sum(counts), 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (sum(counts),), generator=generator)
    return Batch(
        images=images,
        padding=torch.zeros(len(counts), *size, dtype=torch.bool),
        targets=Targets(labels, boxes, tuple(counts)),
        image_ids=tuple(100 + i for i in range(len(counts))),
        original_sizes=(size,) * len(counts),
        step=Step(torch.tensor(counts), size, 3, seed=7),
    )


def loss(module: DetrModule, batches) -> torch.Tensor:
    return torch.stack([v.sum() for b in batches for v in module.losses(b).values()]).sum()


def gradients(module: DetrModule, batches) -> dict[str, torch.Tensor]:
    module.zero_grad()
    loss(module, batches).backward()
    return {n: p.grad.clone() for n, p in module.network.named_parameters() if p.grad is not None}


def without_batch_statistics(module: DetrModule) -> DetrModule:
    module = module.double().train()
    module.network.backbone.eval()
    return module


COUNTS = [3, 0, 1, 12, 2, 1, 0, 4]  # one image has more objects than queries


@pytest.mark.parametrize("pre_norm", [False, True], ids=["post", "pre"])
@pytest.mark.parametrize("size", [4, 2, 1])
def test_gradient_does_not_depend_on_the_split(size, pre_norm):
    """8 images = 2 x 4 = 4 x 2 = 8 x 1, the cross entropy's class weights included."""
    module = without_batch_statistics(tiny_module(pre_norm=pre_norm))
    whole = random_batch(COUNTS)
    expected = gradients(module, [whole])
    split = gradients(module, [whole.part(i, i + size) for i in range(0, 8, size)])
    assert expected.keys() == split.keys() == dict(module.network.named_parameters()).keys()
    for name, gradient in expected.items():
        largest = gradient.abs().max().clamp(min=1e-3)
        assert (split[name] - gradient).abs().max() <= 1e-10 * largest, name


def test_official_normalizer_is_the_mean_over_micro_batches_and_depends_on_the_split():
    module = without_batch_statistics(tiny_module(normalizer="official"))
    whole = random_batch(COUNTS)
    parts = [whole.part(i, i + 2) for i in range(0, 8, 2)]
    with torch.no_grad():
        split = torch.stack([module.losses(p)["decoder/label"] for p in parts]).sum(0)
        alone = [replace(p, step=replace(p.step, counts=torch.tensor(p.targets.counts))) for p in parts]
        mean = torch.stack([module.losses(p)["decoder/label"] for p in alone]).mean(0)
        undivided = module.losses(whole)["decoder/label"]
    torch.testing.assert_close(split, mean, rtol=1e-12, atol=0)
    assert (split - undivided).abs().max() > 1e-3


@pytest.mark.parametrize("normalizer", ["exact", "official"])
def test_both_normalizers_are_torchs_weighted_mean_on_an_undivided_batch(normalizer):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 7, CLASSES + 1, generator=generator, dtype=torch.float64)
    counts = (2, 0, 5)
    module = tiny_module(normalizer)
    boxes = torch.rand(2, 3, 7, 4, generator=generator, dtype=torch.float64) * 0.3 + 0.2
    targets = Targets(
        torch.randint(CLASSES, (7,), generator=generator),
        torch.rand(7, 4, generator=generator, dtype=torch.float64) * 0.3 + 0.2,
        counts,
    )
    step = Step(torch.tensor(counts), (0, 0), 0)
    sets = [OutputSet("decoder", Predictions(logits, boxes))]
    matches = module.criterion.match(sets, targets, step)
    ours = module.criterion(sets, targets, step)["decoder/label"]
    classes = torch.full((2 * 3 * 7,), CLASSES)
    classes[matches["decoder"].rows] = matches["decoder"].labels(targets)
    weight = torch.tensor([1.0] * CLASSES + [0.1]).double()
    for layer in range(2):
        official = torch.nn.functional.cross_entropy(
            logits[layer].flatten(0, 1), classes.view(2, -1)[layer], weight
        )
        torch.testing.assert_close(ours[layer], official, rtol=1e-12, atol=0)


def test_cross_entropy_gradient_is_that_of_autograd():
    generator = torch.Generator().manual_seed(2)
    logits = (5 * torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    matched = torch.tensor([0 * 5 + 1, 3 * 5 + 0, 8 * 5 + 3])
    assert torch.autograd.gradcheck(
        lambda x: SoftmaxCrossEntropy(0.1)(x, matched, torch.empty(0)), [logits], atol=1e-8
    )


def test_weight_sum_clamps_an_image_to_its_queries():
    term = SoftmaxLabelTerm(1.0, no_object=0.1, normalizer="exact")
    assert term.weight_sum(torch.tensor([2, 0, 9]), queries=5) == pytest.approx(7 + 0.1 * 8)


@pytest.mark.parametrize("position", ["sine", "learned"])
@pytest.mark.parametrize("counts", [[2, 3], [0, 4], [0, 0]], ids=str)
def test_every_parameter_takes_part_in_the_backward_pass(counts, position):
    module = tiny_module(position=position).double().train()
    found = gradients(module, [random_batch(counts)])
    assert found.keys() == dict(module.network.named_parameters()).keys()
    for name, gradient in found.items():
        assert gradient.isfinite().all(), name
        # the first decoder layer starts from zeros: it attends among equals and normalises nothing
        first = ("transformer.decoder.layers.0.self_attn", "transformer.decoder.layers.0.norm1")
        silent = name.endswith("bias") or name.startswith(first)
        if sum(counts) and not silent:
            assert gradient.abs().sum() > 0, name


def test_an_empty_batch_costs_only_its_cross_entropy():
    module = without_batch_statistics(tiny_module())
    losses = module.losses(random_batch([0, 0, 0]))
    assert losses["decoder/l1"].tolist() == losses["decoder/giou"].tolist() == [0.0] * 3
    assert (losses["decoder/label"] > 0).all()


def test_the_rule_freezes_stem_and_first_stage():
    module = tiny_module(
        backbone="resnet18", frozen_norm=True, rules=[STEM, ParamRule(match="^backbone", lr=1e-5)]
    )
    groups = module.schedule.groups(module.network.named_parameters())
    found = gradients(module.double().train(), [random_batch([1, 2])])
    assert not [n for n in found if n.startswith(("backbone.conv1", "backbone.layer1"))]
    trained = {n for g in groups for n in g["param_names"]}
    assert trained == found.keys()
    assert [g["lr"] for g in groups] == [1e-5, 1e-3]


def test_dropout_is_active_in_training_only():
    module = tiny_module(dropout=0.5).double()
    batch = random_batch([1])
    with torch.no_grad():
        torch.manual_seed(0)
        first = module.train().network(batch).final.logits
        assert not torch.equal(first, module.network(batch).final.logits)
        module.eval()
        assert torch.equal(module.network(batch).final.logits, module.network(batch).final.logits)


def test_initialisation_is_the_official_one():
    module = tiny_module(dim=64, num_heads=4, ffn_dim=128, num_queries=200)
    network = module.network
    packed = network.transformer.encoder.layers[0].self_attn.in_proj_weight.detach()
    bound = math.sqrt(6 / (64 + 3 * 64))
    assert packed.abs().max() <= bound
    assert packed.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert network.transformer.decoder.layers[1].multihead_attn.in_proj_bias.abs().sum() == 0
    assert network.query_embed.weight.std().item() == pytest.approx(1.0, rel=0.05)
    # PyTorch's default, no focal prior
    assert network.class_embed.bias.abs().max() <= 1 / 8
    assert network.class_embed.bias.abs().sum() > 0


def test_padding_does_not_reach_an_image_beyond_the_convolutions():
    """Tokens of padding are masked: what stands in them does not matter."""
    network = tiny_module().double().eval().network
    tokens = torch.randn(1, 12, 16, dtype=torch.float64)
    padding = torch.zeros(1, 12, dtype=torch.bool)
    padding[:, 8:] = True
    position = torch.randn(12, 16, dtype=torch.float64)
    other = tokens.clone()
    other[:, 8:] = 100.0
    first, second = (
        network.transformer(t, padding, network.query_embed.weight, position)[0] for t in (tokens, other)
    )
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def test_learned_positions_end_at_their_table():
    module = tiny_module(position="learned").double().eval()
    with pytest.raises(ValueError, match="feature map is 51x1; position: learned has 50 rows"):
        module.network(random_batch([0], size=(51 * 32, 32)))


@pytest.mark.parametrize("pre_norm", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["post", "pre"])
def test_training_forward_is_one_graph(pre_norm):
    torch._dynamo.reset()
    module = tiny_module(pre_norm=pre_norm, dropout=0.1, backbone="resnet18", frozen_norm=True).train()
    batch = random_batch([1, 2])
    batch = replace(batch, images=batch.images.float())

    def forward(images, padding):
        outputs = module.network(replace(batch, images=images, padding=padding))
        return outputs.supervised[0].predictions[:2]

    compiled = torch.compile(forward, fullgraph=True, backend="eager")
    torch.manual_seed(0)
    logits, boxes = compiled(batch.images, batch.padding)
    torch.manual_seed(0)
    expected = forward(batch.images, batch.padding)
    torch.testing.assert_close(logits, expected[0])
    torch.testing.assert_close(boxes, expected[1])


def test_detections_are_every_query_best_first():
    logits = torch.tensor([[[9.0, 0.0, 0.0], [0.0, 4.0, 5.0], [0.0, 6.0, 0.0]]])  # the last is no object
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.5, 1.0]]])
    [found] = BestClassSoftmax()(Predictions(logits, boxes), [(100, 200)])  # h, w
    assert found.labels.tolist() == [0, 1, 1]
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    torch.testing.assert_close(found.boxes_xyxy[2], torch.tensor([80.0, 30.0, 120.0, 70.0]))
    with pytest.raises(ValueError, match="2 original sizes for predictions of 1 images"):
        BestClassSoftmax()(Predictions(logits, boxes), [(1, 1), (1, 1)])
    assert BestClassSoftmax()(Predictions(logits[:0], boxes[:0]), []) == []


# -- published layouts ----------------------------------------------------------------------------


def hugging_face_model(name: str = "resnet18", dilation: bool = False):
    """A small `DetrForObjectDetection` whose normalisations are not at their start values."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(5)
    backbone = transformers.TimmBackboneConfig(
        backbone=name,
        use_pretrained_backbone=False,
        out_indices=[1, 2, 3, 4],
        **({"output_stride": 16} if dilation else {}),
    )
    config = transformers.DetrConfig(
        backbone_config=backbone,
        d_model=32,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_queries=9,
        num_labels=CLASSES,
        auxiliary_loss=False,  # true changes the network: transformers_vs_official, B1
    )
    model = transformers.DetrForObjectDetection(config).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "norm" in name or "bn" in name or "running" in name or "downsample.1" in name:
                value.copy_(0.5 + torch.rand_like(value))
            else:
                value.copy_(torch.randn_like(value) * (0.3 if value.dim() < 3 else 0.05))
    return model.double()


def our_copy(state, name: str, dilation: bool):
    module = tiny_module(
        backbone=name,
        frozen_norm=True,
        dim=32,
        num_heads=4,
        ffn_dim=48,
        decoder_layers=3,
        num_queries=9,
    )
    if dilation:
        module.network.backbone = build_backbone(
            BackboneConfig(name=name, weights="random", freeze_stem=True, frozen_norm=True, dilate_last=True)
        )
    module.double().network.load_state_dict(from_published(state), strict=True)
    return module.eval()


@pytest.mark.parametrize(("name", "dilation"), [("resnet18", False), ("resnet50", True)])
def test_transformers_model_loads_strictly_and_predicts_the_same(name, dilation):
    model = hugging_face_model(name, dilation)
    module = our_copy(model.state_dict(), name, dilation)
    batch = random_batch([0, 0], size=(96, 128))
    padding = batch.padding.clone()
    padding[1, 64:] = True
    padding[1, :, 100:] = True
    images = batch.images.masked_fill(padding[:, None], 0.0)
    with torch.no_grad():
        theirs = model(pixel_values=images, pixel_mask=(~padding).long())
        ours = module.network(replace(batch, images=images, padding=padding)).final
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.boxes, theirs.pred_boxes, rtol=0, atol=1e-6)


def test_the_names_of_transformers_4_are_known_too():
    """Files on the hub have them."""
    state = hugging_face_model().state_dict()
    old = {}
    for key, value in state.items():
        key = key.replace("model.backbone.model.", "model.backbone.conv_encoder.model.")
        key = key.replace(".o_proj.", ".out_proj.").replace(".mlp.fc", ".fc")
        old[key] = value
    new = from_published(state)
    assert old.keys() != state.keys()
    converted = from_published(old)
    assert converted.keys() == new.keys()
    assert all(torch.equal(converted[k], new[k]) for k in new)


def test_unknown_and_missing_keys_are_named():
    with pytest.raises(KeyError, match=r"mask_head\.lay6\.weight"):
        from_published({"mask_head.lay6.weight": torch.empty(0)})
    with pytest.raises(KeyError, match=r"model\.encoder\.layers\.0\.gate\.weight"):
        from_published({"model.encoder.layers.0.gate.weight": torch.empty(0)})
    with pytest.raises(KeyError, match=r"encoder\.layers\.0\.self_attn\.k_proj\.weight is missing"):
        from_published({"model.encoder.layers.0.self_attn.q_proj.weight": torch.empty(0)})


def test_torchvision_weights_load_into_every_plain_backbone(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    path = tmp_path / "weights.pth"
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, path)
    for dilate in (False, True):
        backbone = build_backbone(
            BackboneConfig(
                name="resnet18", weights=str(path), freeze_stem=True, frozen_norm=True, dilate_last=dilate
            )
        )
        assert torch.equal(backbone.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    assert "fc.weight" not in from_torchvision(state)
    with pytest.raises(ValueError, match=r"dilate_last is for resnet18.*not for 'resnet18d'"):
        build_backbone(
            BackboneConfig(
                name="resnet18d", weights="random", freeze_stem=True, frozen_norm=True, dilate_last=True
            )
        )
