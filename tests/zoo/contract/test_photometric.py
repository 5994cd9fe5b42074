"""The distortion on the device: torchvision's operations for a batch, with black borders left black."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from zoo.contract.batch import Sample, collate
from zoo.contract.photometric import Distortion, distort_batch, shift_hue
from zoo.contract.preprocess import InputContract

SIZE = (40, 60)
WHOLE = (0.0, 0.0, 60.0, 40.0)
DISTORTIONS = [
    Distortion(),
    Distortion(brightness=1.1),
    Distortion(contrast=0.6),
    Distortion(contrast=1.4, contrast_first=False, hue=0.02),
    Distortion(saturation=1.5, channels=(1, 2, 0)),
    Distortion(0.9, 1.3, 0.7, -0.05, True, (2, 0, 1)),
]


def by_torchvision(image: torch.Tensor, d: Distortion) -> torch.Tensor:
    image = TF.adjust_brightness(image, d.brightness)
    if d.contrast_first:
        image = TF.adjust_contrast(image, d.contrast)
    image = TF.adjust_saturation(image, d.saturation)
    if d.hue:
        image = TF.adjust_hue(image, d.hue)
    if not d.contrast_first:
        image = TF.adjust_contrast(image, d.contrast)
    return image[list(d.channels)]


def pictures(count: int) -> torch.Tensor:
    coarse = torch.randint(0, 256, (count, 3, 6, 6), dtype=torch.uint8)
    smooth = TF.resize(coarse, list(SIZE), antialias=True).int()
    return (smooth + torch.randint(-20, 21, smooth.shape)).clamp(0, 255).to(torch.uint8)


def vectors(inside=WHOLE) -> torch.Tensor:
    return torch.stack([d.vector(inside) for d in DISTORTIONS])


def test_whole_images_equal_torchvision_on_uint8():
    images = pictures(len(DISTORTIONS))
    found = distort_batch(images.float(), vectors())
    for image, one, d in zip(images, found, DISTORTIONS, strict=True):
        apart = (one - by_torchvision(image, d).float()).abs()
        assert apart.max() <= 1
        # another order of float operations, in hue and in the mean of contrast
        assert (apart > 0).float().mean() < (2e-3 if d.hue or d.contrast != 1 else 1e-9)
    assert torch.equal(found[0], images[0].float())


def test_borders_stay_black_and_do_not_count_in_the_mean():
    """The photograph alone and on a black canvas come out the same; the canvas stays black."""
    images = pictures(len(DISTORTIONS))
    alone = distort_batch(images.float(), vectors())
    canvas = torch.zeros(len(DISTORTIONS), 3, 70, 100)
    canvas[:, :, 10:50, 25:85] = images
    found = distort_batch(canvas, vectors((25.0, 10.0, 85.0, 50.0)))
    torch.testing.assert_close(found[:, :, 10:50, 25:85], alone, rtol=0, atol=1)
    assert (found[:, :, 10:50, 25:85] != alone).float().mean() < 1e-3
    found[:, :, 10:50, 25:85] = 0
    assert not found.any()


def test_a_pixel_that_is_half_border_gets_half_of_the_shift():
    images = torch.zeros(1, 3, 2, 2)
    images[:, :, :, 0] = 100  # the photograph
    images[:, :, :, 1] = 50  # mixed with the border by the resize
    found = distort_batch(images, Distortion(contrast=0.5).vector((0.0, 0.0, 1.5, 2.0))[None])
    mean = (99 + 49 / 2) / 1.5  # luma's weights sum to less than 1: 100 is 99
    assert abs(float(found[0, 0, 0, 0]) - (50 + 0.5 * mean)) <= 1
    assert abs(float(found[0, 0, 0, 1]) - (25 + 0.25 * mean)) <= 1


def test_an_image_is_alone_in_its_batch():
    images = pictures(len(DISTORTIONS)).float()
    together = distort_batch(images.clone(), vectors())
    for row, d in enumerate(DISTORTIONS):
        assert torch.equal(
            distort_batch(images[row : row + 1].clone(), d.vector(WHOLE)[None])[0], together[row]
        )


def test_normalize_distorts_and_leaves_padding_at_zero():
    contract = InputContract(resize="stretch", size=SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    nothing = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    d = Distortion(0.9, 1.3, 0.7, 0.04, True, (2, 0, 1))
    large, small = pictures(2)[:, :, :, :]
    small = small[:, :30, :50]
    samples = [
        Sample(image, *nothing, i, SIZE, photometric=d.vector((0, 0, image.shape[2], image.shape[1])))
        for i, image in enumerate((large, small))
    ]
    batch = collate(samples)
    assert batch.photometric.shape == (2, 12)
    out = contract.normalize(batch.to("cpu").padded_to((48, 64)))
    assert out.photometric is None
    assert not out.images.masked_select(out.padding[:, None].expand_as(out.images)).any()
    mean, std = torch.tensor(contract.mean)[:, None, None], torch.tensor(contract.std)[:, None, None]
    for row, image in enumerate((large, small)):
        wanted = (by_torchvision(image, d).float() / 255 - mean) / std
        apart = out.images[row, :, : image.shape[1], : image.shape[2]] - wanted
        assert apart.abs().max() < 1.01 / 255 / 0.2
        assert (apart.abs() > 1e-6).float().mean() < 2e-3


def test_a_batch_is_distorted_whole_or_not_at_all():
    nothing = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    samples = [
        Sample(image, *nothing, 0, (4, 4)),
        Sample(image, *nothing, 1, (4, 4), photometric=torch.zeros(12)),
    ]
    with pytest.raises(
        ValueError, match=r"1 of 2 samples of a batch have a photometric distortion for the device"
    ):
        collate(samples)


def test_numbers_of_another_kind_are_refused():
    with pytest.raises(ValueError, match=r"photometric is \(1, 9\); it must be \(1, 12\)"):
        distort_batch(torch.zeros(1, 3, 4, 4), torch.zeros(1, 9))


@pytest.mark.slow
def test_a_hue_of_zero_keeps_every_colour():
    levels = torch.arange(256.0)
    for red in range(0, 256, 8):
        planes = torch.stack(torch.meshgrid(levels[red : red + 8], levels, levels, indexing="ij")).reshape(
            3, 1, -1
        )
        kept = planes.clone()
        shift_hue(kept, 0.0)
        assert torch.equal(kept, planes)
