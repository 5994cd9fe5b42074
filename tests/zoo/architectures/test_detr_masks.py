"""DETR with masks: exact under any split, in two stages or one, from every published layout."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from zoo.architectures.detr import DetrModule, DetrSegmentationModule, from_published
from zoo.contract.batch import Batch, Predictions, Sample, Step, collate
from zoo.layers.backbone import BackboneConfig
from zoo.layers.transformer import TransformerConfig
from zoo.prediction.masks import PanopticRule, sizes_without_padding
from zoo.training.criterion import LossWeights, MaskLossWeights
from zoo.training.ema import EmaConfig
from zoo.training.matcher import MatchCosts
from zoo.training.module import build_module
from zoo.training.schedule import ParamRule, Schedule
from zoo.training.transfer import load_weights

CLASSES = 5
ONLY_MASKS = ParamRule(match=r"^(?!bbox_attention|mask_head)", freeze=True)
SIZES = ((64, 96), (48, 80), (64, 64), (56, 96))  # one batch: images of different sizes, padded


def tiny_module(masks: bool = True, rules=(), ema=None, **changes) -> DetrSegmentationModule | DetrModule:
    torch.manual_seed(0)
    sizes = {
        "dim": 128,
        "num_heads": 8,
        "ffn_dim": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_queries": 7,
        "dropout": changes.get("dropout", 0.0),
        "pre_norm": False,
        "position": "sine",
    }
    name = changes.get("backbone", "resnet18")
    shared = {
        "num_classes": changes.get("classes", CLASSES),
        "backbone": BackboneConfig(
            name=name,
            weights="random",
            freeze_stem=False,
            frozen_norm=True,
            dilate_last=changes.get("dilate", False),
            widths=[4, 8, 8, 8, 8] if name == "residual" else [],
        ),
        "transformer": TransformerConfig(**sizes),
        "costs": MatchCosts(label=1, l1=5, giou=2),
        "losses": LossWeights(label=1, l1=5, giou=2),
        "no_object_weight": 0.1,
        "normalizer": "exact",
        "schedule": Schedule(
            lr=1e-3, weight_decay=0, rules=list(rules), warmup_steps=0, drop_epochs=[], global_batch_size=4
        ),
        "ema": ema,
    }
    if not masks:
        return DetrModule(**shared)
    return DetrSegmentationModule(
        **shared,
        mask_losses=MaskLossWeights(focal=1, dice=1),
        mask_threshold=0.5,
        panoptic=PanopticRule(score_threshold=0.0, min_area=4, crop_padding=False),
    )


def random_batch(counts=(3, 0, 2, 1), seed: int = 0, sizes=SIZES) -> Batch:
    """Images of different sizes padded to the largest; every object has a random mask."""
    generator = torch.Generator().manual_seed(seed)
    samples = [
        Sample(
            image=torch.rand(3, *size, generator=generator, dtype=torch.float64),
            labels=torch.randint(CLASSES, (count,), generator=generator),
            boxes=0.25 + 0.3 * torch.rand(count, 4, generator=generator, dtype=torch.float64),
            image_id=index,
            original_size=size,
            masks=torch.rand(count, *size, generator=generator) < 0.3,
        )
        for index, (count, size) in enumerate(zip(counts, sizes, strict=False))
    ]
    batch = collate(samples)
    size = (batch.images.shape[2], batch.images.shape[3])
    return replace(batch, step=Step(torch.tensor(counts), size, 3, seed=7))


def total(losses) -> torch.Tensor:
    return torch.stack([v.sum() for v in losses.values()]).sum()


def gradients(module, batches) -> dict[str, torch.Tensor]:
    module.zero_grad()
    torch.stack([total(module.losses(b)) for b in batches]).sum().backward()
    return {n: p.grad.clone() for n, p in module.network.named_parameters() if p.grad is not None}


def freeze(module) -> dict[str, torch.nn.Parameter]:
    """Applies the schedule's rules; the parameters that train."""
    module.schedule.groups(module.network.named_parameters())
    return {n: p for n, p in module.network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("rules", [(), (ONLY_MASKS,)], ids=["joint", "mask_stage"])
@pytest.mark.parametrize("size", [2, 1])
def test_gradient_does_not_depend_on_the_split(size, rules):
    """4 padded images = 2 x 2 = 4 x 1, one of them without objects."""
    module = tiny_module(rules=rules).double().train()
    trained = freeze(module)
    whole = random_batch()
    expected = gradients(module, [whole])
    split = gradients(module, [whole.part(i, i + size) for i in range(0, 4, size)])
    assert expected.keys() == split.keys() == trained.keys()
    for name, gradient in expected.items():
        largest = gradient.abs().max().clamp(min=1e-3)
        assert (split[name] - gradient).abs().max() <= 1e-10 * largest, name


def test_masks_grow_with_the_batch_when_it_is_padded_to_the_step():
    """`padding: step`: the loss of a padded micro-batch is that of its images among larger ones."""
    module = tiny_module().double().train()
    whole = random_batch()
    small = random_batch(counts=(3, 0), sizes=((40, 60), (48, 80)))
    grown = replace(small, step=whole.step).padded_to((64, 96))
    assert grown.targets.masks.shape == (3, 64, 96)
    assert not grown.targets.masks[:, 40:].any()
    losses = module.losses(grown)
    assert losses["decoder/mask_focal"].shape == losses["decoder/dice"].shape == (1,)
    assert losses["decoder/l1"].shape == (2,)


@pytest.mark.parametrize("rules", [(), (ONLY_MASKS,)], ids=["joint", "mask_stage"])
@pytest.mark.parametrize("counts", [(2, 1), (0, 0)], ids=str)
def test_every_parameter_that_trains_takes_part(counts, rules):
    """Also in a batch without objects, whose frozen detector alone would leave nothing to differentiate."""
    module = tiny_module(rules=rules).double().train()
    trained = freeze(module)
    found = gradients(module, [random_batch(counts)])
    assert found.keys() == trained.keys()
    assert all(g.isfinite().all() for g in found.values())
    branch = [
        g
        for n, g in found.items()
        if n.startswith(("bbox_attention", "mask_head")) and "k_linear.bias" not in n
    ]
    assert all((g.abs().sum() > 0) == (sum(counts) > 0) for g in branch)


def test_mask_stage_keeps_the_detector_and_its_dropout():
    """As published: the frozen detector stays in training mode."""
    module = tiny_module(rules=[ONLY_MASKS], dropout=0.5).double().train()
    before = {n: p.clone() for n, p in module.network.state_dict().items()}
    optimizer = module.schedule.optimizer(module.network)
    batch = random_batch()
    first, second = (total(module.losses(batch)) for _ in range(2))
    assert first != second
    first.backward()
    optimizer.step()
    changed = {n for n, p in module.network.state_dict().items() if not torch.equal(p, before[n])}
    assert changed
    assert all(n.startswith(("bbox_attention.", "mask_head.")) for n in changed)


def test_the_step_makes_one_transfer_to_the_host(monkeypatch):
    module = tiny_module().double().train()
    batch = random_batch()
    transfers = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: transfers.append(self.shape) or original(self))
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, lambda self, n=name: pytest.fail(f"a host sync: {n}"))
    # the step's counts are on the host by contract
    monkeypatch.setattr(Step, "num_boxes", 6)
    monkeypatch.setattr("zoo.architectures.detr.SoftmaxLabelTerm.divisor", lambda self, matches, queries: 9.0)
    total(module.losses(batch)).backward()
    assert len(transfers) == 1


def test_only_matched_queries_are_computed_in_training(monkeypatch):
    module = tiny_module().double().train()
    computed = []
    module.network.mask_head.out_lay.register_forward_hook(lambda m, i, output: computed.append(len(output)))
    module.losses(random_batch((3, 0, 2, 1)))
    assert computed == [6]
    module.detect(random_batch())
    assert computed == [6], "boxes alone cost no masks"


def test_masks_and_segments_of_a_batch():
    module = tiny_module().eval().float()
    batch = replace(random_batch(), images=random_batch().images.float())
    raw = module.predictions(batch)
    processed = sizes_without_padding(batch)
    assert processed == list(SIZES)
    instances = module.instances(raw, processed, batch.original_sizes)
    boxes = module.detect(batch)
    for one, detections, size in zip(instances, boxes, batch.original_sizes, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:3], detections[:3], strict=True))
        assert [tuple(m["size"]) for m in one.masks] == [size] * 7
    segments = module.panoptic(raw, processed, batch.original_sizes, things={0, 1})
    assert [s.size for s in segments] == list(SIZES)


def test_a_batch_without_masks_is_refused():
    batch = random_batch()
    with pytest.raises(ValueError, match="'decoder' predicts masks, but the batch has none"):
        tiny_module().double().losses(replace(batch, targets=batch.targets._replace(masks=None)))


def test_a_backbone_of_three_maps_is_refused():
    with pytest.raises(ValueError, match="this backbone has 2; use a plain ResNet"):
        tiny_module(backbone="residual")


def test_half_precision_predictions_keep_their_masks():
    """Autocast: costs and losses are computed in float32."""
    module = tiny_module().train()
    batch = random_batch()
    batch = replace(
        batch, images=batch.images.float(), targets=batch.targets._replace(boxes=batch.targets.boxes.float())
    )
    exact = module.losses(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = module.losses(batch)
    assert rounded.keys() == exact.keys()
    for name in ("decoder/dice", "decoder/mask_focal"):
        assert rounded[name].dtype == torch.float32
        assert rounded[name].item() == pytest.approx(exact[name].item(), rel=0.1)


def test_the_average_predicts_masks_of_its_own():
    module = tiny_module(ema=EmaConfig(decay=0.9, warmup_steps=1)).double().eval()
    batch = random_batch((1,))
    one = torch.zeros(1, dtype=torch.int64)
    before = module.predictions(batch).masks(one, one)
    with torch.no_grad():
        module.network.mask_head.out_lay.bias += 1
    assert torch.equal(module.predictions(batch).masks(one, one), before)
    assert not torch.equal(module.network.eval()(batch).final.masks(one, one), before)


# -- weights --------------------------------------------------------------------------------------


def test_the_box_stage_starts_the_mask_stage():
    boxes, masks = tiny_module(masks=False), tiny_module(ema=EmaConfig(decay=0.9, warmup_steps=1))
    with torch.no_grad():
        for parameter in boxes.network.parameters():
            parameter += 1
    own = {n: p.clone() for n, p in masks.network.state_dict().items()}
    report = load_weights(masks, boxes.network.state_dict(), "keep")
    assert set(report.copied) == boxes.network.state_dict().keys()
    assert all(n.startswith(("bbox_attention.", "mask_head.")) for n in report.reinitialised)
    assert len(report.reinitialised) == 32
    for name, value in masks.network.state_dict().items():
        source = own if name in report.reinitialised else boxes.network.state_dict()
        assert torch.equal(value, source[name]), name
    averaged = masks.ema.network.state_dict()
    assert all(torch.equal(averaged[n], v) for n, v in masks.network.state_dict().items())


def test_half_a_mask_branch_and_masks_for_a_detector_are_refused():
    boxes, masks = tiny_module(masks=False), tiny_module()
    state = masks.network.state_dict()
    torn = {n: v for n, v in state.items() if n != "mask_head.lay3.weight"}
    with pytest.raises(ValueError, match=r"1 keys missing \(first: \['mask_head.lay3.weight'\]\)"):
        load_weights(masks, torn, "keep")
    with pytest.raises(ValueError, match=r"0 keys missing.*32 not known"):
        load_weights(boxes, state, "keep")


def test_a_model_block_builds_the_module_again():
    block = tiny_module().model_block()
    assert block["class_path"] == "zoo.architectures.detr.DetrSegmentationModule"
    again = build_module(block)
    assert again.panoptic == PanopticRule(score_threshold=0.0, min_area=4, crop_padding=False)
    block["init_args"]["panoptic"] = None
    assert build_module(block).panoptic is None


def official_names(state) -> dict[str, torch.Tensor]:
    """Our keys as the official checkpoint with masks has them."""
    renamed = {}
    for name, value in state.items():
        if not name.startswith(("bbox_attention.", "mask_head.")):
            name = "detr." + name.replace("backbone.", "backbone.0.body.")
        renamed[name] = value
    return renamed


@pytest.mark.parametrize("dilate", [False, True], ids=["plain", "dc5"])
def test_official_checkpoints_load_strictly(dilate):
    module = tiny_module(dilate=dilate)
    state = module.network.state_dict()
    converted = from_published(official_names(state))
    assert converted.keys() == state.keys()
    module.network.load_state_dict(converted, strict=True)
    batch = random_batch()
    batch = replace(batch, images=batch.images.float())
    masks = module.eval().predictions(batch).masks
    logits = masks(torch.tensor([0, 3]), torch.tensor([6, 1]))
    assert logits.shape == (2, 16, 24)


def hugging_face_model():
    """A small `DetrForSegmentation` whose normalisations are not at their start values."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(5)
    config = transformers.DetrConfig(
        backbone_config=transformers.TimmBackboneConfig(
            backbone="resnet18", use_pretrained_backbone=False, out_indices=[1, 2, 3, 4]
        ),
        d_model=128,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=7,
        num_labels=CLASSES,
        auxiliary_loss=False,
    )
    model = transformers.DetrForSegmentation(config).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "norm" in name or "bn" in name or "running" in name or "downsample.1" in name:
                value.copy_(0.5 + torch.rand_like(value))
            elif not name.startswith("mask_head"):
                value.copy_(torch.randn_like(value) * (0.2 if value.dim() < 3 else 0.05))
    return model.double()


def test_transformers_model_loads_strictly_and_predicts_the_same_masks():
    model, module = hugging_face_model(), tiny_module()
    module.double().network.load_state_dict(from_published(model.state_dict()), strict=True)
    batch = random_batch((0, 0))
    with torch.no_grad():
        theirs = model(pixel_values=batch.images, pixel_mask=(~batch.padding).long())
    ours = module.eval().predictions(batch)
    image, query = torch.arange(2).repeat_interleave(7), torch.arange(7).repeat(2)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-6)
    with torch.no_grad():
        masks = ours.masks(image, query).unflatten(0, (2, 7))
    torch.testing.assert_close(masks, theirs.pred_masks, rtol=1e-6, atol=1e-6)


TRANSFORMERS_4 = {
    ".q_proj": ".q_linear",
    ".k_proj": ".k_linear",
    "conv1.conv": "lay1",
    "conv1.norm": "gn1",
    "conv2.conv": "lay2",
    "conv2.norm": "gn2",
    "fpn_stages.0.fpn_adapter": "adapter1",
    "fpn_stages.1.fpn_adapter": "adapter2",
    "fpn_stages.2.fpn_adapter": "adapter3",
    "fpn_stages.0.refine.conv": "lay3",
    "fpn_stages.0.refine.norm": "gn3",
    "fpn_stages.1.refine.conv": "lay4",
    "fpn_stages.1.refine.norm": "gn4",
    "fpn_stages.2.refine.conv": "lay5",
    "fpn_stages.2.refine.norm": "gn5",
    "output_conv": "out_lay",
}


def test_the_names_of_transformers_4_are_known_too():
    """Files on the hub have them."""
    state = hugging_face_model().state_dict()
    old = {}
    for key, value in state.items():
        if key.startswith(("mask_head.", "bbox_attention.")):
            for new_name, old_name in TRANSFORMERS_4.items():
                key = key.replace(new_name, old_name)
        else:
            key = key.replace("model.backbone.model.", "model.backbone.conv_encoder.model.")
            key = key.replace(".o_proj.", ".out_proj.").replace(".mlp.fc", ".fc")
        old[key] = value
    assert {"mask_head.lay5.weight", "mask_head.gn1.bias", "bbox_attention.q_linear.bias"} <= old.keys()
    new, converted = from_published(state), from_published(old)
    assert converted.keys() == new.keys() == tiny_module().network.state_dict().keys()
    assert all(torch.equal(converted[k], new[k]) for k in new)


def test_unknown_mask_keys_are_named():
    for key in (
        "mask_head.lay6.weight",
        "bbox_attention.v_linear.weight",
        "mask_head.fpn_stages.3.refine.conv.bias",
    ):
        with pytest.raises(KeyError, match="is not a key of a published DETR with masks"):
            from_published({key: torch.empty(0)})


# -- full size ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["joint", "mask_stage"])
def test_full_size_r50_takes_a_step(stage):
    """251 logits, four ResNet-50 stages; one forward and backward on two small images."""
    torch.manual_seed(0)
    module = DetrSegmentationModule(
        num_classes=250,
        backbone=BackboneConfig(name="resnet50", weights="random", freeze_stem=True, frozen_norm=True),
        transformer=TransformerConfig(
            dim=256, num_heads=8, ffn_dim=2048, encoder_layers=6, decoder_layers=6, num_queries=100,
            dropout=0.1, pre_norm=False, position="sine",
        ),
        costs=MatchCosts(label=1, l1=5, giou=2),
        losses=LossWeights(label=1, l1=5, giou=2),
        mask_losses=MaskLossWeights(focal=1, dice=1),
        no_object_weight=0.1,
        normalizer="exact",
        mask_threshold=0.5,
        panoptic=PanopticRule(score_threshold=0.85, min_area=4, crop_padding=False),
        schedule=Schedule(
            lr=1e-4, weight_decay=1e-4, rules=[ONLY_MASKS] if stage == "mask_stage" else [], warmup_steps=0,
            drop_epochs=[], global_batch_size=2,
        ),
        ema=None,
    ).train()  # fmt: skip
    optimizer = module.schedule.optimizer(module.network)
    batch = random_batch((4, 3))
    batch = replace(
        batch, images=batch.images.float(), targets=batch.targets._replace(boxes=batch.targets.boxes.float())
    )
    loss = total(module.losses(batch))
    loss.backward()
    trained = sum(p.numel() for g in optimizer.param_groups for p in g["params"])
    layer1 = 212_992  # frozen by a rule in the recipes
    assert trained == (1_333_657 if stage == "mask_stage" else 42_676_888 + layer1)
    norm = torch.nn.utils.clip_grad_norm_(module.network.parameters(), 0.1)
    optimizer.step()
    assert math.isfinite(loss.item())
    assert 0 < norm.item() < math.inf
    assert isinstance(module.predictions(batch), Predictions)
