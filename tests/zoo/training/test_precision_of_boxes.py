"""Under bfloat16 no coordinate is rounded to it, in any family: boxes, their logits, distances, places of attention."""

from __future__ import annotations

import sys

import pytest
import torch
from partitions import Case, small_module, step_of_images
from tiny_families import first_of_each_class
from torch import Tensor

# functions whose arguments and results are coordinates: {name: which of the arguments}
COORDINATES = {
    "inverse_sigmoid": (0,), "multi_scale_deformable_attention": (2,), "sample_nearest": (2,),
    "expected_distances": (0,), "boxes_around": (0, 1), "iou_and_giou": (0, 1), "cxcywh_to_xyxy": (0,),
}  # fmt: skip


def tensors(value):
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


@pytest.fixture
def seen(monkeypatch):
    """{name: kinds of numbers that it was called with and gave back, in 16-bit code}."""
    found: dict[str, set[torch.dtype]] = {}

    def watch(name, function):
        def watched(*arguments, **options):
            result = function(*arguments, **options)
            mine = [arguments[i] for i in COORDINATES[name] if i < len(arguments)]
            found.setdefault(name, set()).update(
                t.dtype for t in tensors([mine, result]) if t.is_floating_point()
            )
            return result

        return watched

    for module in [m for n, m in list(sys.modules.items()) if n.startswith("zoo.")]:
        for name in COORDINATES:
            if callable(getattr(module, name, None)):
                monkeypatch.setattr(module, name, watch(name, getattr(module, name)))
    return found


@pytest.mark.parametrize("key", first_of_each_class())
def test_no_coordinate_is_of_16_bits(key, seen):
    module = small_module(Case(key, dtype=torch.float32)).train()
    batch = step_of_images(Case(key, dtype=torch.float32)).part(0, 3)
    wide: list[torch.dtype] = []
    linear = next(m for m in module.network.modules() if isinstance(m, torch.nn.Conv2d))
    linear.register_forward_hook(lambda m, given, out: wide.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = module.network(module.normalized(batch))
        losses = module.losses(batch)
    assert set(wide) == {torch.bfloat16}, "the network ran in 16 bits"
    for name, kinds in seen.items():
        assert kinds == {torch.float32}, name
    assert {"inverse_sigmoid", "multi_scale_deformable_attention"} <= set(seen) or "detr/" in f"/{key}"
    assert {v.dtype for v in losses.values()} == {torch.float32}
    for one in outputs.supervised:
        assert one.predictions.boxes.dtype == torch.float32
    assert "iou_and_giou" in seen
