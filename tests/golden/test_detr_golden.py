"""DETR equals facebookresearch/detr@29901c5 on every stored case."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from official_cases import ROOT, assert_all_pass, collect, official_case, structure_facts

from datamodules.transforms import draws, presets
from datamodules.transforms.geometry import Crop, HorizontalFlip, Resize
from datamodules.transforms.plan import Placed
from datamodules.transforms.targets import ImageTargets, resized_targets, training_targets
from zoo.registry.weights import count
from zoo.training.module import build_module
from zoo.training.schedule import ParamRule
from zoo.verification.cases import COMMITTED, Case, find_cases
from zoo.verification.detr import CASES, INPUT
from zoo.verification.preprocessing import stored_image
from zoo.verification.proof import build_recipe


@pytest.mark.parametrize("case", collect("detr"))
def test_official_case(case):
    assert isinstance(case, Case), str(case)
    assert_all_pass(CASES.compare(case))


def test_some_cases_are_committed():
    """`zoo verify` proves every kind of case but one on a machine that has nothing else.

    The pictures of preprocess_val are large; preprocess_pieces resizes too.
    """
    kinds = {CASES.kind_of(case) for case in find_cases(COMMITTED, "detr")}
    assert kinds == CASES.kinds.keys() - {"preprocess_val"}


@pytest.mark.parametrize("index", range(8), ids=lambda i: f"detr/preprocess_val targets im{i}")
def test_targets_equal_the_official_data_path(index):
    """Crowds and boxes without width dropped, boxes clipped, resized, normalised; none dropped for its size."""
    case, prefix = official_case("detr", "preprocess_val"), f"im{index}/"
    if f"{prefix}input_wh" not in case:
        pytest.skip("this directory has fewer images")
    width, height = case[f"{prefix}input_wh"].tolist()
    targets = training_targets(
        case[f"{prefix}ann_bbox_xywh"],
        case[f"{prefix}ann_category"],
        case[f"{prefix}ann_iscrowd"].bool(),
        (height, width),
    )
    labels, boxes = resized_targets(
        ImageTargets(*targets), (height, width), tuple(case[f"{prefix}out_hw"].tolist()), min_size=0.0
    )
    assert labels.tolist() == case[f"{prefix}labels"].tolist()
    torch.testing.assert_close(boxes, case[f"{prefix}boxes"], rtol=0, atol=1e-6)


def pieces() -> tuple[Case, torch.Tensor, ImageTargets]:
    case = official_case("detr", "preprocess_pieces")
    image = torch.from_numpy(case.arrays["input_uint8"].copy()).permute(2, 0, 1)
    return case, image, ImageTargets(case["input/labels"], case["input/boxes"], masks(case, "input"))


def masks(case: Case, name: str) -> torch.Tensor:
    """[n, h, w] bool of `name`."""
    packed = case.arrays[f"{name}/masks"]
    # the input's masks have its image's width; the others give their shape
    shape = case.arrays.get(f"{name}/masks_shape", (*packed.shape[:2], case.arrays["input_uint8"].shape[1]))
    bits = np.unpackbits(packed, axis=-1)[..., : int(shape[2])]
    return torch.from_numpy(bits.reshape(tuple(int(side) for side in shape)).astype(bool))


def assert_equals(case: Case, name: str, found: ImageTargets, tolerance: float) -> None:
    """Boxes to `tolerance` pixels; labels and masks exactly."""
    torch.testing.assert_close(found.boxes_xyxy, case[f"{name}/boxes"], rtol=0, atol=tolerance)
    assert found.labels.tolist() == case[f"{name}/labels"].tolist()
    assert found.masks is not None
    assert torch.equal(found.masks, masks(case, name))


def test_flip_equals_the_official_one():
    case, image, targets = pieces()
    flip = HorizontalFlip(image.shape[2])
    assert torch.equal(flip.on_tensor(Placed.whole(image)).image, case["hflip/image"].permute(2, 0, 1))
    assert_equals(case, "hflip", flip.on_targets(targets), 0)


@pytest.mark.parametrize("index", range(4), ids=lambda i: f"detr/preprocess_pieces crop{i}")
def test_crop_equals_the_official_one(index):
    case, image, targets = pieces()
    crop = Crop(*case[f"crop{index}/region_top_left_h_w"].tolist())
    found = crop.on_tensor(Placed.whole(image)).on_canvas()
    assert torch.equal(found, case[f"crop{index}/image"].permute(2, 0, 1))
    assert_equals(case, f"crop{index}", crop.on_targets(targets), 0)


@pytest.mark.parametrize("index", range(3), ids=lambda i: f"detr/preprocess_pieces resize{i}")
def test_resize_equals_the_official_one(index):
    case, image, targets = pieces()
    assert stored_image(case).size == (image.shape[2], image.shape[1])
    resize = Resize((image.shape[1], image.shape[2]), tuple(case[f"resize{index}/size"].tolist()))
    assert_equals(case, f"resize{index}", resize.on_targets(targets), 1e-5)


def test_preset_has_the_official_sizes():
    case = official_case("detr", "preprocess_sizes")
    assert list(draws.DETR_SIDES) == case["train_scales"].tolist()
    assert list(draws.DETR_SIDES_BEFORE_CROP) == case["train_pre_crop_scales"].tolist()
    assert list(draws.DETR_CROP) == case["train_crop_min_max"].tolist()
    assert int(case["max_size"]) == presets.DETR_LONGEST


WITH_MASKS = ["detr_resnet50_panoptic", "detr_resnet50_dc5_panoptic", "detr_resnet101_panoptic"]
PANOPTIC_CLASSES = 250  # raw ids of things and stuff; the head has one logit more


def module_with_masks(name: str):
    """The full-size network with masks, from the recipe of its detector."""
    recipe = CASES.recipes[name.removesuffix("_panoptic")]
    model = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())["model"]
    init = model["init_args"] | {
        "num_classes": PANOPTIC_CLASSES,
        "mask_losses": {"focal": 1.0, "dice": 1.0},
        "mask_threshold": 0.5,
        "panoptic": {"score_threshold": 0.85, "min_area": 4, "crop_padding": False},
    }
    block = {"class_path": "zoo.architectures.detr.DetrSegmentationModule", "init_args": init}
    return build_module(block, backbone_weights="random")


@pytest.mark.parametrize("name", WITH_MASKS, ids=lambda name: f"structure/{name}")
def test_full_size_network_with_masks_has_the_official_structure(name):
    """Tensor names, shapes, parameter counts, frozen parameters and learning rates."""
    facts = structure_facts(name)
    module = module_with_masks(name)
    assert_all_pass(CASES.compare_structure(facts, module.network, module.schedule))


def test_the_mask_stage_trains_the_published_number_of_parameters():
    module = module_with_masks("detr_resnet50_panoptic")
    frozen = replace(module.schedule, rules=[ParamRule(match=r"^(?!bbox_attention|mask_head)", freeze=True)])
    [group] = frozen.groups(module.network.named_parameters())
    assert (
        sum(p.numel() for p in group["params"]) == 1_333_657
    )  # facebookresearch/detr@29901c5: attention map and mask head
    assert all(n.startswith(("bbox_attention.", "mask_head.")) for n in group["param_names"])
    assert group["lr"] == 1e-4


@pytest.mark.slow
def test_multiply_adds_with_masks_are_the_official_ones_but_for_what_is_computed_once():
    name = "detr_resnet50_panoptic"
    facts = structure_facts(name)
    _, ours, _ = counted(name)
    # features beside the attention maps are convolved once an image and not for each of 100 queries, at 25x34;
    # heads run on the last decoder layer of six
    once = (100 - 1) * 256 * 264 * 9 * 25 * 34
    heads = 5 * 100 * (256 * (PANOPTIC_CLASSES + 1) + 2 * 256 * 256 + 256 * 4)
    assert facts["macs"]["800x1066"] - ours == once + heads


def counted(name: str) -> tuple[int, int, str]:
    module = module_with_masks(name)
    module.input = INPUT
    return count(module, INPUT)


@pytest.mark.parametrize("name", CASES.recipes, ids=lambda name: f"structure/{name}")
def test_full_size_network_has_the_official_structure(name):
    """Tensor names, shapes, parameter counts, frozen parameters and learning rates, from the recipe."""
    facts = structure_facts(name)
    module = build_recipe(CASES.recipes[name])
    assert_all_pass(CASES.compare_structure(facts, module.network, module.schedule))
