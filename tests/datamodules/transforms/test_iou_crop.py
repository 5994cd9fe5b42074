"""The crop accepts just the windows that torchvision's RandomIoUCrop accepts on the same numbers."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from datamodules.transforms.iou_crop import OVERLAPS, TRIALS, draw_iou_crop


class Numbers:
    """Hands torchvision the numbers that our crop draws: an overlap, then four a trial, used or not.

    torchvision draws a trial's place only for a window of fair aspect; the numbers of the others are
    passed over.
    """

    def __init__(self, seed: int, size: tuple[int, int]) -> None:
        self._random = Random(seed)
        self._height, self._width = size
        self._trials: list[torch.Tensor] = []
        self._place: torch.Tensor | None = None

    def randint(self, low: int, high: int, size: tuple[int, ...]) -> torch.Tensor:
        value = int(self._random.random() * high)
        self._place = None
        if value < len(OVERLAPS) - 1:
            numbers = [self._random.random() for _ in range(4 * TRIALS)]
            self._trials = list(torch.tensor(numbers, dtype=torch.float64).float().reshape(TRIALS, 4))
        return torch.full(size, value)

    def rand(self, count: int) -> torch.Tensor:
        if self._place is not None:
            place, self._place = self._place, None
            return place
        trial = self._trials.pop(0)
        share = 0.3 + (1.0 - 0.3) * trial[:2]
        aspect = int(self._width * share[0]) / int(self._height * share[1])
        self._place = trial[2:] if 0.5 <= aspect <= 2 else None
        return trial[:2]


def boxes_in(size: tuple[int, int], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 9, (), generator=generator))
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([size[1], size[0]])
    if seed % 3 == 0:
        corners = corners.round()  # centres on window edges happen
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


@pytest.mark.parametrize("size", [(480, 640), (375, 500), (31, 23), (200, 90)])
def test_equals_torchvision_on_the_same_numbers(size, monkeypatch):
    crop_class = v2.RandomIoUCrop()
    cropped = 0
    for seed in range(120):
        boxes = boxes_in(size, seed)
        found = draw_iou_crop(Random(seed), size, boxes)
        numbers = Numbers(seed, size)
        with monkeypatch.context() as patched:
            patched.setattr(torch, "rand", numbers.rand)
            patched.setattr(torch, "randint", numbers.randint)
            wanted = crop_class.make_params(
                [
                    tv_tensors.Image(torch.zeros(3, *size, dtype=torch.uint8)),
                    tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
                ]
            )
        if not wanted:
            assert found is None
            continue
        cropped += 1
        assert (found.top, found.left) == (wanted["top"], wanted["left"])
        assert (found.height, found.width) == (wanted["height"], wanted["width"])
    assert 60 <= cropped < 120


def test_no_window_is_tried_without_objects():
    assert all(draw_iou_crop(Random(seed), (50, 50), torch.zeros(0, 4)) is None for seed in range(5))


def test_images_of_few_pixels_end_without_a_window_or_with_one_that_has_area():
    for size in ((1, 1), (2, 3), (3, 90)):
        for seed in range(20):
            crop = draw_iou_crop(Random(seed), size, torch.tensor([[0.0, 0.0, size[1], size[0]]]))
            assert crop is None or (crop.height > 0 and crop.width > 0)
