"""Preflight passes on sound data and names the fault on data with one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from datamodules.custom import CustomDataModule
from datamodules.shapes import generate_shapes
from zoo.contract.preprocess import InputContract
from zoo.contract.tiles import Tiles
from zoo.training import preflight
from zoo.training.module import build_module
from zoo.training.preflight import (
    PreflightError,
    annotated_images,
    check_dropped,
    frozen_heads,
    run_preflight,
)
from zoo.training.schedule import ParamRule

RECIPE = Path(__file__).parents[3] / "recipes" / "rt_detr" / "tiny.yaml"


class Planted:
    """Sound data with a fault in its annotations."""

    def __init__(self, data, fault):
        self.data, self.fault = data, fault

    def __getattr__(self, name):
        return getattr(self.data, name)

    def val_dataloader(self):
        for batch in self.data.val_dataloader():
            yield replace(batch, annotations=self.fault(batch.annotations))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return generate_shapes(tmp_path_factory.mktemp("shapes"), 16, 8, seed=0, size=96)


@pytest.fixture
def data(shapes):
    module = CustomDataModule(
        root=str(shapes), input=InputContract(resize="stretch", size=(96, 96)), train_transform="none",
        batch_size=8, eval_batch_size=4, num_workers=0, seed=0,
    )  # fmt: skip
    module.setup("fit")
    return module


@pytest.fixture
def model(data):
    torch.manual_seed(0)
    module = build_module(yaml.safe_load(RECIPE.read_text())["model"])
    module.adopt(data.label_map, data.input)
    return module


def test_sound_data_pass_and_leave_a_picture(model, data, tmp_path):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = run_preflight(model, data, tmp_path, overfit=True)
    assert (tmp_path / "training_images.png").stat().st_size > 1000
    text = "\n".join(report.lines())
    assert "all " in text
    assert "overfits 4 images: AP50" in text
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def shifted(annotations):
    return annotations._replace(labels=(annotations.labels + 1) % 4)


def corners_as_sizes(annotations):
    boxes = annotations.boxes_xywh
    return annotations._replace(boxes_xywh=torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))


@pytest.mark.parametrize(
    ("fault", "named"),
    [(shifted, "labels are off by -1"), (corners_as_sizes, r"\(x0, y0, x1, y1\) read as \(x, y, w, h\)")],
)
def test_a_planted_fault_is_named(model, data, tmp_path, monkeypatch, fault, named):
    monkeypatch.setattr(preflight, "OVERFIT_STEPS", 60)  # sound data are learned in fewer
    with pytest.raises(PreflightError, match=named):
        run_preflight(model, Planted(data, fault), tmp_path, overfit=True)


def test_a_frozen_head_is_named(model, data, tmp_path):
    model.schedule = replace(model.schedule, rules=[ParamRule(match="dec_score_head", freeze=True)])
    with pytest.raises(PreflightError, match=r"class head does not train \(decoder.dec_score_head"):
        run_preflight(model, data, tmp_path, overfit=True)


def test_a_frozen_part_whose_name_has_head_in_it_is_no_class_head(model):
    model.schedule = replace(model.schedule, rules=[ParamRule(match="query_pos_head|bbox_head", freeze=True)])
    assert frozen_heads(model) == []


def test_a_loss_that_is_not_finite_is_named(model, data, tmp_path):
    with torch.no_grad():
        model.network.decoder.enc_score_head.bias.fill_(torch.nan)
    with pytest.raises((PreflightError, FloatingPointError), match=r"encoder|not finite"):
        run_preflight(model, data, tmp_path)


def test_too_few_queries_are_told(model, data, tmp_path):
    assert data.most_objects() <= 5
    assert any("20 queries for at most" in line for line in run_preflight(model, data, tmp_path).lines())
    crowded = Planted(data, lambda annotations: annotations)
    crowded.most_objects = lambda: 28
    told = run_preflight(model, crowded, tmp_path).lines()
    assert any(
        "WARNING: an image has 28 objects, 20 queries find at most 20: give the model more with "
        "--model.decoder.num_queries 50, or cut such images into tiles" in line
        for line in told
    )


def test_transforms_that_lose_everything_are_named():
    assert "leaves out 1 of 4 objects (25%)" in check_dropped(1, 4)
    with pytest.raises(PreflightError, match="drops all 4 objects"):
        check_dropped(4, 4)


def test_of_images_that_are_cut_tiles_are_overfitted_as_images_of_their_own(shapes):
    contract = InputContract(resize="stretch", size=(64, 64), tiles=Tiles(size=(64, 64), overlap=0.25))
    data = CustomDataModule(
        root=str(shapes), input=contract, train_transform="none", batch_size=8, eval_batch_size=8, num_workers=0, seed=0
    )  # fmt: skip
    data.setup("fit")
    batch = annotated_images(data, 4)
    assert batch.pieces is None
    assert batch.image_ids == (0, 1, 2, 3)
    assert set(batch.original_sizes) == {(64, 64)}, "not the whole image"
    assert batch.annotations.counts == batch.part(0, 4).annotations.counts
    assert sum(batch.targets.counts) > 0
