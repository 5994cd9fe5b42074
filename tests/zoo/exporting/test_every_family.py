"""Every class of network as an ONNX file: the same answers at several sizes of batch and image."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import first_of_each_class, small_arguments

import zoo
from zoo.contract.batch import Sample, collate
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.detector import Detector
from zoo.exporting.differences import detection_difference
from zoo.exporting.limits import LIMITS
from zoo.exporting.onnx import exported
from zoo.runs import recipes
from zoo.training.module import build_module

LABELS = LabelMap.contiguous(["disc", "square", "no"], [7, 3, 12])
LEVELS = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
KEEPS_ASPECT = ("detr", "deformable_detr")
# the rest is slow: each is captured for about ten seconds
FAST = ("deimv2",)
VARIANTS = {
    "deformable_detr/r50_two_stage_coco_50e": {},
    "deformable_detr/r50_refine_coco_50e": {},
    "deformable_detr/r50_single_scale_coco_50e": {},
    "detr/r50_dc5_coco_500e": {},
    "rt_detrv2/r18_dsp_coco_36e": {},
}


def module_of(key, **changes):
    recipe = recipes.load(recipes.resolve(key))
    arguments = small_arguments(key) | {"num_classes": 3} | changes
    torch.manual_seed(0)
    made = build_module({"class_path": recipe["model"]["class_path"], "init_args": arguments})
    with torch.no_grad():
        for name, parameter in made.evaluation_network.named_parameters():
            if "score_head" in name or "class_embed" in name:
                parameter += 0.3 * torch.randn_like(parameter)
                if name.endswith("bias"):
                    parameter += 3.0  # else no score of a focal head is worth a pair
    return made.eval()


def contract_of(key):
    if key.split("/")[0] in KEEPS_ASPECT:
        return InputContract(resize="shortest", size=(70, 120), **LEVELS)
    return InputContract(resize="stretch", size=(64, 96), **LEVELS)


def batches(contract):
    random = np.random.default_rng(0)
    for sizes in ([(50, 90)], [(60, 60), (90, 50)], [(40, 80), (80, 80), (75, 110)]):
        samples = []
        for height, width in sizes:
            picture = Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8))
            nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)
            samples.append(Sample(contract.resize_image(picture), *nothing, 0, (height, width)))
        yield collate(samples)


def keys():
    every = [*first_of_each_class(), *VARIANTS]
    return [
        pytest.param(key, marks=[] if key.split("/")[0] in FAST else pytest.mark.slow)
        for key in dict.fromkeys(every)
    ]


@pytest.mark.parametrize("key", keys())
def test_a_file_answers_as_its_source(key, tmp_path):
    module, contract = module_of(key), contract_of(key)
    module.adopt(LABELS, contract)
    source = Detector(module, key)
    _, graph = exported(source, contract)
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    file = zoo.load(tmp_path / "model.onnx")
    for batch in batches(contract):
        mine, theirs = (one.module.predictions(batch) for one in (source, file))
        found = [
            one.module.postprocess(raw, batch.original_sizes) for one, raw in ((source, mine), (file, theirs))
        ]
        for one, other in zip(*found, strict=True):
            apart = detection_difference(one, other)
            assert apart.source > 0
            assert apart.alone == []
            assert apart.score < LIMITS["fp32"].score  # discrete sampling turns rounding into another pixel
            assert apart.pixels < 0.02
        if mine.masks is not None:
            images, queries = mine.logits.shape[:2]
            image, query = (
                torch.arange(images).repeat_interleave(queries),
                torch.arange(queries).repeat(images),
            )
            torch.testing.assert_close(
                mine.masks(image, query), theirs.masks(image, query), atol=1e-3, rtol=1e-4
            )
            torch.testing.assert_close(mine.logits, theirs.logits, atol=1e-4, rtol=1e-4)


def test_every_key_is_a_recipe():
    assert set(VARIANTS) <= set(recipes.bundled())
