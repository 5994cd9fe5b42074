"""Training with masks under Lightning: splits, resume, scores of one evaluation. The network is a toy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from panoptic_case import SMALL, panoptic_folder
from torch import nn

from datamodules.panoptic import CocoPanopticDataModule
from zoo.contract.preprocess import InputContract
from zoo.runs import recipes
from zoo.training.module import DetectionModule, build_module
from zoo.training.schedule import Schedule

CONTRACT = InputContract(resize="stretch", size=(64, 64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return panoptic_folder(tmp_path_factory.mktemp("panoptic") / "data", images=8)


def build(dropout: float = 0.1) -> DetectionModule:
    torch.manual_seed(0)
    block = recipes.load(recipes.resolve("detr/r50_panoptic_coco_25e"))["model"]
    block["init_args"] |= SMALL | {"num_classes": 3, "ema": {"decay": 0.9, "warmup_steps": 1}}
    block["init_args"]["transformer"] = {**SMALL["transformer"], "dropout": dropout}
    block["init_args"]["schedule"] |= {"rules": [], "global_batch_size": 4, "lr": 1e-3}
    return build_module(block)


def data_of(folder: Path, batch_size: int = 4, **changes: Any) -> CocoPanopticDataModule:
    return CocoPanopticDataModule(
        root=str(folder), labels="contiguous", input=CONTRACT, train_transform="none", batch_size=batch_size,
        eval_batch_size=3, num_workers=0, seed=0, **changes,
    )  # fmt: skip


def trainer(place: Path, **options: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0, "use_distributed_sampler": False,
        "enable_checkpointing": False, "limit_val_batches": 0, "default_root_dir": str(place),
        "gradient_clip_val": 0.1,
    }  # fmt: skip
    return L.Trainer(**(defaults | options))


class EvalNorms(L.Callback):
    """Batch statistics are what a split changes, beside the draws of dropout; take them out."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        for child in module.network.modules():
            if isinstance(child, nn.BatchNorm2d):
                child.eval()


@pytest.mark.parametrize("batch_size", [2, 1])
def test_weights_after_training_do_not_depend_on_the_split(folder, tmp_path, batch_size):
    def weights_after(size: int) -> DetectionModule:
        module = build(dropout=0.0)
        run = trainer(tmp_path, max_steps=2, callbacks=[EvalNorms()])
        run.fit(module, data_of(folder, size))
        assert run.accumulate_grad_batches == 4 // size
        return module

    start, whole, split = build(), weights_after(4), weights_after(batch_size)
    triples = zip(*(m.network.named_parameters() for m in (start, whole, split)), strict=True)
    for (name, s), (_, a), (_, b) in triples:
        # AdamW magnifies the float32 rounding of tiny gradients; test_detr_masks.py shows 1e-10 in float64
        assert (a - b).norm() <= 0.02 * (a - s).norm() + 1e-5, name


def test_frozen_parameters_are_frozen_before_ddp_would_wrap_the_network(folder, tmp_path, monkeypatch):
    """Lightning makes the optimizer after it; DDP fails if a parameter that trained then has no gradient."""
    block, learning = build().model_block(), []
    block["init_args"]["schedule"]["rules"] = [{"match": "^(?!bbox_attention|mask_head)", "freeze": True}]
    made = Schedule.optimizer

    def recorded(schedule: Schedule, network: nn.Module, **options: Any) -> Any:
        learning.extend(name for name, p in network.named_parameters() if p.requires_grad)
        return made(schedule, network, **options)

    monkeypatch.setattr(Schedule, "optimizer", recorded)
    trainer(tmp_path, max_steps=1).fit(build_module(block), data_of(folder))
    assert learning
    assert all(name.startswith(("bbox_attention.", "mask_head.")) for name in learning)


def test_resume_is_bit_equal(folder, tmp_path):
    """4 steps at once = 3, a checkpoint inside the second epoch, and the rest from it."""

    def run(every: int) -> L.Trainer:
        saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=every, save_top_k=-1)
        return trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[saver])

    straight = build()
    run(3).fit(straight, data_of(folder))
    torch.manual_seed(1234)
    resumed = build()
    run(100).fit(resumed, data_of(folder), ckpt_path=str(tmp_path / "step=3.ckpt"), weights_only=True)
    for (name, a), (_, b) in zip(straight.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_one_forward_of_the_averaged_network_gives_all_scores(folder, tmp_path):
    module, runs = build(), []
    module.evaluation_network.register_forward_hook(lambda *_: runs.append("average"))
    module.network.register_forward_hook(lambda *_: runs.append("trained"))
    run = trainer(tmp_path, limit_val_batches=None)
    run.validate(module, data_of(folder), verbose=False)
    assert runs == ["average"] * 3  # 8 images in batches of 3
    found = run.callback_metrics
    assert {"val/AP", "val/AR100", "val/segm_AP", "val/segm_AP50", "val/segm_ARl"} <= set(found)
    groups = ("", "_th", "_st")
    assert {f"val/{name}{group}" for name in ("PQ", "SQ", "RQ") for group in groups} <= set(found)
    assert module.val_masks.panoptic_evaluation().num_images == 8
    run.validate(module, data_of(folder, limit_eval=4), verbose=False)  # a second evaluation starts anew
    assert module.val_masks.panoptic_evaluation().num_images == 4
    assert module.val_masks.segm_evaluation().num_images == 4


def test_the_box_stage_reads_boxes_alone(folder):
    data = data_of(folder, masks=False)
    data.setup("fit")
    data.plan_steps(4, 1, 0)
    with_masks = data_of(folder)
    with_masks.setup("fit")
    with_masks.plan_steps(4, 1, 0)
    bare, full = (next(iter(d.train_dataloader())).targets for d in (data, with_masks))
    assert bare.masks is None
    assert full.masks is not None
    assert torch.equal(bare.boxes, full.boxes)
