"""A batch slices, moves and pins itself whole: every field, also one that a later family adds."""

from dataclasses import fields, replace

import pytest
import torch

from zoo.contract.batch import Annotations, Batch, Piece, Sample, Step, Targets, collate
from zoo.contract.segments import PanopticSegmentation
from zoo.contract.tiles import whole

OBJECTS = (2, 0, 3, 1)
SIZE = (6, 8)
PIECE = Piece(whole(*SIZE), 1, SIZE, None)


def segmentation(number):
    return PanopticSegmentation(torch.zeros(SIZE, dtype=torch.int32), ())


def sample(number, count):
    generator = torch.Generator().manual_seed(number)
    draw = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    facts = Annotations(
        draw(count, 4).double(), draw(count).double(), torch.arange(count), draw(count) > 0.5, (count,),
        tuple({"size": list(SIZE), "counts": b"%d%d" % (number, row)} for row in range(count)),
    )  # fmt: skip
    return Sample(
        image=(draw(3, *SIZE) * 255).byte(), labels=torch.arange(count) + 10 * number, boxes=draw(count, 4),
        image_id=100 + number, original_size=(60 + number, 80), annotations=facts,
        masks=draw(count, *SIZE) > 0.5, panoptic=segmentation(number), photometric=draw(12), piece=PIECE,
        ignored=draw((number + 1) % 3, 4),
    )  # fmt: skip


SAMPLES = [sample(number, count) for number, count in enumerate(OBJECTS)]
WHOLE = replace(collate(SAMPLES), step=Step(torch.tensor(OBJECTS), SIZE, 7))


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (Targets, Annotations)):
        return all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a is b or a == b


def test_the_whole_batch_has_every_field():
    """Without this the other tests would prove nothing of a field that is None."""
    assert all(getattr(WHOLE, field.name) is not None for field in fields(Batch))
    assert None not in WHOLE.targets
    assert None not in WHOLE.annotations


@pytest.mark.parametrize(("first", "last"), [(0, 4), (0, 1), (1, 2), (1, 4), (2, 9), (2, 2)])
def test_a_part_is_the_batch_of_its_samples(first, last):
    part = WHOLE.part(first, last)
    assert len(part) == len(SAMPLES[first:last])
    assert part.step is WHOLE.step
    if not SAMPLES[first:last]:
        assert part.targets.labels.shape == (0,)
        assert part.annotations.segmentations == ()
        return
    expected = replace(collate(SAMPLES[first:last]), step=WHOLE.step)
    for field in fields(Batch):
        assert equal(getattr(part, field.name), getattr(expected, field.name)), field.name


def test_a_part_without_the_optional_fields_has_none_of_them():
    bare = replace(
        WHOLE, targets=WHOLE.targets._replace(masks=None), step=None, annotations=None, panoptic=None,
        photometric=None,
    ).part(1, 3)  # fmt: skip
    assert (bare.targets.masks, bare.step, bare.annotations, bare.panoptic, bare.photometric) == (None,) * 5
    assert bare.targets.counts == (0, 3)


def test_all_that_the_network_and_the_criterion_read_moves():
    moved = WHOLE.to("meta")
    tensors = [getattr(moved, f.name) for f in fields(Batch)] + list(moved.targets)
    there = [t for t in tensors if isinstance(t, torch.Tensor)]
    assert len(there) == 7  # images, padding, photometric; labels, boxes, masks, ignored
    assert all(t.device.type == "meta" for t in there)
    assert moved.annotations is WHOLE.annotations
    assert moved.step is WHOLE.step
    assert WHOLE.images.device.type == "cpu"


def test_all_that_moves_is_pinned(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    WHOLE.pin_memory()
    wanted = (WHOLE.images, WHOLE.padding, WHOLE.photometric, WHOLE.targets.labels, WHOLE.targets.boxes,
              WHOLE.targets.masks, WHOLE.targets.ignored)  # fmt: skip
    assert {id(tensor) for tensor in pinned} == {id(tensor) for tensor in wanted}
