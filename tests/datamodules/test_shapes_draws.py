"""The preset `shapes` draws and gives what it always has: its chain, written in torchvision's classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from datamodules.transforms.presets import build_transform
from datamodules.transforms.targets import ImageTargets, resized_targets
from zoo.contract.preprocess import InputContract, image_to_tensor


class Swap(v2.Transform):
    """Rows become columns with probability one half."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"swap": bool(torch.rand(1) < 0.5)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not params["swap"]:
            return inpt
        if isinstance(inpt, tv_tensors.BoundingBoxes):
            size = (inpt.canvas_size[1], inpt.canvas_size[0])
            return tv_tensors.BoundingBoxes(inpt.data[:, [1, 0, 3, 2]], format="XYXY", canvas_size=size)
        return tv_tensors.wrap(inpt.data.transpose(-1, -2), like=inpt) if inpt.ndim == 3 else inpt


CHAIN = v2.Compose(
    [
        v2.RandomHorizontalFlip(p=0.5),
        v2.RandomVerticalFlip(p=0.5),
        Swap(),
        v2.RandomChannelPermutation(),
        v2.RandomInvert(p=0.5),
    ]
)


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4, 5, 6, 7, 2**62 + 11])
def test_shapes_equals_its_chain_in_torchvision(seed):
    image = torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8)
    boxes = torch.tensor([[1.0, 2.0, 20.5, 30.0], [30.0, 5.0, 56.0, 40.0]])
    contract = InputContract(resize="stretch", size=(48, 48))
    torch.manual_seed(seed)
    wanted = CHAIN(
        {
            "image": tv_tensors.Image(image_to_tensor(Image.fromarray(image.permute(1, 2, 0).numpy()))),
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(40, 56)),
        }
    )
    targets = ImageTargets(torch.tensor([3, 4]), wanted["boxes"].data)
    labels, wanted_boxes = resized_targets(targets, wanted["boxes"].canvas_size, (48, 48))

    found = build_transform("shapes", contract)(image, ImageTargets(torch.tensor([3, 4]), boxes), seed)
    assert torch.equal(found.image, contract.resize_image(wanted["image"].data))
    assert torch.equal(found.labels, labels)
    assert torch.equal(found.boxes, wanted_boxes)
