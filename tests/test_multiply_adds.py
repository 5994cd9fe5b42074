"""One number of multiply-adds everywhere: that of the authors' network, whether published, pulled or trained here.

`test_every_manifest.py` counts each network; here is what is added to the count where evaluation leaves a part out.
"""

import pytest
import torch

from zoo.contract.preprocess import InputContract
from zoo.runs import recipes
from zoo.training.module import build_module

RECIPES = (
    "detr/r50_coco_500e", "deformable_detr/r50_coco_50e", "deformable_detr/r50_single_scale_coco_50e",
    "deformable_detr/r50_refine_coco_50e", "deformable_detr/r50_two_stage_coco_50e", "rt_detr/r18_coco_72e",
    "rt_detr/r101_coco_72e", "rt_detrv2/r18_coco_120e", "rt_detrv2/r50m_dsp_coco_36e", "dfine/n_coco_160e",
    "deimv2/atto_coco_500e", "detr/r50_panoptic_coco_25e",
)  # fmt: skip


@pytest.mark.parametrize("key", RECIPES)
def test_what_evaluation_leaves_out_is_what_the_recipe_says(key):
    recipe = recipes.load(recipes.resolve(key))
    with torch.device("meta"):
        module = build_module(recipe["model"], backbone_weights="random")
    contract = InputContract.from_dict(recipe["data"]["init_args"]["input"])
    left_out = module.macs_left_out(*contract.resized_size(480, 640))
    assert left_out == recipe["about"].get("macs_left_out", 0)
