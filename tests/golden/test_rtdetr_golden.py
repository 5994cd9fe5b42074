"""RT-DETR equals lyuwenyu/RT-DETR@068dfde on every stored case."""

import pytest
import torch
from official_cases import assert_all_pass, collect, official_case, structure_facts

from datamodules.transforms.targets import ImageTargets, resized_targets, training_targets
from zoo.verification.cases import Case, find_cases
from zoo.verification.proof import build_recipe
from zoo.verification.rt_detr import CASES


@pytest.mark.parametrize("case", collect("rtdetr"))
def test_official_case(case):
    assert isinstance(case, Case), str(case)
    assert_all_pass(CASES.compare(case))


@pytest.mark.parametrize(
    "prefix", ["im0/", "im1/", "im2/", "im3/"], ids=lambda p: f"rtdetr/preprocess_val targets {p}"
)
def test_targets_equal_the_official_data_path(prefix):
    """Crowds and boxes without width dropped, boxes clipped, resized, thin ones dropped, normalised."""
    case = official_case("rtdetr", "preprocess_val")
    width, height = case[f"{prefix}input_wh"].tolist()
    coco_80 = official_case("rtdetr", "postprocess_bbox")["label_to_coco_category"].tolist()
    categories = [coco_80.index(c) for c in case[f"{prefix}ann_category"].tolist()]
    crowd = [index == 3 for index in range(len(categories))]
    targets = training_targets(case[f"{prefix}ann_bbox_xywh"], categories, crowd, (height, width))
    assert targets.labels.tolist() == case[f"{prefix}target_labels"].tolist()
    torch.testing.assert_close(targets.boxes_xyxy, case[f"{prefix}target_boxes_xyxy"], rtol=0, atol=1e-4)
    size = tuple(case[f"{prefix}out_chw"].tolist()[1:])
    scale = torch.tensor([size[1] / width, size[0] / height] * 2)
    resized = targets.boxes_xyxy * scale
    torch.testing.assert_close(resized, case[f"{prefix}val_boxes_xyxy_resized"], rtol=0, atol=1e-3)
    labels, boxes = resized_targets(ImageTargets(*targets), (height, width), size)
    assert labels.tolist() == case[f"{prefix}train_labels"].tolist()
    torch.testing.assert_close(boxes, case[f"{prefix}train_boxes_cxcywh"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CASES.recipes, ids=lambda name: f"structure/{name}")
def test_full_size_network_has_the_official_structure(name):
    """Tensor names, shapes, parameter counts, frozen parameters and optimizer groups, from the recipe."""
    module = build_recipe(CASES.recipes[name])
    assert_all_pass(CASES.compare_structure(structure_facts(name), module.network, module.schedule))


def test_find_cases_fails_on_an_empty_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="no official numbers"):
        find_cases(tmp_path, "rtdetr")
