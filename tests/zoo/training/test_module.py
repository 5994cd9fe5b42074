"""The training loop: splits, resume, checkpoints, refusals. Networks are toys, everything else is real."""

from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from datamodules.custom import CustomDataModule
from datamodules.shapes import generate_shapes
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.training.module import build_module
from zoo.training.transfer import copy_rows, load_weights

RECIPE = Path(__file__).parents[3] / "recipes" / "rt_detr" / "tiny.yaml"
SIZE = 64


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return generate_shapes(tmp_path_factory.mktemp("shapes"), 32, 4, seed=0, size=SIZE)


def tiny_block(**init_args) -> dict:
    block = yaml.safe_load(RECIPE.read_text())["model"]
    arguments = block["init_args"]
    arguments["backbone"]["widths"] = [4, 8, 8, 8, 8]
    arguments["encoder"] |= {"dim": 16, "num_heads": 2, "ffn_dim": 16}
    arguments["decoder"] |= {"dim": 16, "num_heads": 2, "ffn_dim": 16, "num_queries": 8}
    arguments["schedule"] |= {"warmup_steps": 0}
    return block | {"init_args": arguments | init_args}


def build(**init_args):
    torch.manual_seed(0)
    return build_module(tiny_block(**init_args))


def make_data(shapes, batch_size=8, **arguments):
    return CustomDataModule(
        root=str(shapes), input=InputContract(resize="stretch", size=(SIZE, SIZE)), train_transform="shapes",
        batch_size=batch_size, eval_batch_size=4, num_workers=0, seed=0, **arguments,
    )  # fmt: skip


def trainer(tmp_path, **options) -> L.Trainer:
    defaults = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0, "use_distributed_sampler": False,
        "enable_checkpointing": False, "limit_val_batches": 0, "default_root_dir": str(tmp_path),
        "gradient_clip_val": 0.1,
    }  # fmt: skip
    return L.Trainer(**(defaults | options))


class EvalNorms(L.Callback):
    """Batch statistics are the one thing that a split changes; take them out."""

    def on_train_batch_start(self, trainer, module, batch, index):
        for child in module.network.modules():
            if isinstance(child, nn.BatchNorm2d):
                child.eval()


@pytest.mark.parametrize("batch_size", [4, 2, 1])
def test_weights_after_training_do_not_depend_on_the_split(shapes, tmp_path, batch_size):
    def weights_after(size):
        module = build()
        run = trainer(tmp_path, max_steps=3, callbacks=[EvalNorms()])
        run.fit(module, make_data(shapes, size))
        assert run.global_step == 3
        assert run.accumulate_grad_batches == 8 // size
        return module

    whole, split = weights_after(8), weights_after(batch_size)
    start = build()
    for (name, a), (_, b), (_, s) in zip(
        whole.network.named_parameters(), split.network.named_parameters(), start.network.named_parameters(),
        strict=True,
    ):  # fmt: skip
        moved = (a - s).norm()
        # AdamW divides by the root of tiny squares, which magnifies float32 rounding; 1e-10 is shown in float64
        assert (a - b).norm() <= 0.02 * moved + 1e-7, name


@pytest.mark.parametrize("at", [3, 4, 5])
def test_resume_is_bit_equal(shapes, tmp_path, at):
    """12 steps at once = a few, a checkpoint, and the rest from it; average, schedule and order included.

    An epoch has 4 steps: the checkpoint is inside one, at the end of one, and inside the second.
    """

    def checkpointing(every):
        saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=every, save_top_k=-1)
        return trainer(tmp_path, max_epochs=3, enable_checkpointing=True, callbacks=[saver])

    straight = build()
    checkpointing(at).fit(straight, make_data(shapes))
    assert (tmp_path / f"step={at}.ckpt").exists()
    torch.manual_seed(1234)
    resumed = build()
    run = checkpointing(100)
    run.fit(resumed, make_data(shapes), ckpt_path=str(tmp_path / f"step={at}.ckpt"), weights_only=True)
    assert run.global_step == 12
    for (name, a), (_, b) in zip(straight.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_mixed_precision_clips_and_the_checkpoint_goes_on_in_either(shapes, tmp_path):
    """The steps are those of float32 within rounding; the state of a fused AdamW is that of a plain one."""

    def steps(precision, checkpoint=None):
        module = build()
        run = trainer(tmp_path, max_steps=2 if checkpoint is None else 4, precision=precision)
        run.fit(module, make_data(shapes), ckpt_path=checkpoint, weights_only=True)
        run.save_checkpoint(tmp_path / f"{precision}.ckpt")
        assert {p.dtype for p in module.parameters()} == {torch.float32}
        return module, run

    start, (exact, _), (mixed, run) = build(), steps("32-true"), steps("bf16-mixed")
    assert not run.optimizers[0].param_groups[0]["fused"]
    moved, apart = (
        sum(
            (a - b).square().sum() for a, b in zip(one.parameters(), exact.network.parameters(), strict=True)
        ).sqrt()
        for one in (start.network, mixed.network)
    )
    assert 0 < apart < 0.7 * moved  # AdamW moves every weight as far, also where the gradient is rounding
    for precision, other in (("32-true", "bf16-mixed"), ("bf16-mixed", "32-true")):
        assert steps(precision, str(tmp_path / f"{other}.ckpt"))[1].global_step == 4


def test_an_epoch_that_ends_inside_a_step_is_refused(shapes, tmp_path):
    with pytest.raises(
        ValueError, match="leaves 3 micro-batches an epoch, and a step has 2; set it to a multiple of 2"
    ):
        trainer(tmp_path, max_epochs=1, limit_train_batches=3).fit(build(), make_data(shapes, batch_size=4))


def test_checkpoint_has_plain_values_and_says_what_it_is(shapes, tmp_path):
    module = build()
    run = trainer(tmp_path, max_steps=2)
    run.fit(module, make_data(shapes))
    run.save_checkpoint(tmp_path / "model.ckpt")
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=True)
    facts = checkpoint["zoo"]
    assert (facts["step"], facts["epoch"], facts["step_in_epoch"]) == (2, 0, 2)
    assert facts["model"]["class_path"] == "zoo.architectures.rt_detr.RtDetrModule"
    assert LabelMap.from_dict(facts["label_map"]).names == ("circle", "square", "triangle", "cross")
    again = build_module(facts["model"])
    again.load_state_dict(checkpoint["state_dict"])
    assert again.ema.count == 2
    averaged = checkpoint["state_dict"]["ema.network.decoder.enc_score_head.bias"]
    assert not torch.equal(averaged, checkpoint["state_dict"]["network.decoder.enc_score_head.bias"])


def test_a_head_that_does_not_fit_the_data_is_refused(shapes, tmp_path):
    with pytest.raises(ValueError, match=r"num_classes 7, but the data has 4 .*circle"):
        trainer(tmp_path, max_steps=1).fit(build(num_classes=7), make_data(shapes))


def test_a_global_batch_that_cannot_be_kept_is_refused(shapes, tmp_path):
    block = tiny_block()
    block["init_args"]["schedule"]["global_batch_size"] = 64
    with pytest.raises(ValueError, match="32 images, fewer than one step of global_batch_size 64"):
        trainer(tmp_path, max_steps=1).fit(build_module(block), make_data(shapes))


def test_validation_uses_the_average(shapes, tmp_path):
    module = build()
    run = trainer(tmp_path, max_steps=4, limit_val_batches=None)
    run.fit(module, make_data(shapes))
    assert "val/AP" in run.callback_metrics
    batch = next(iter(make_data(shapes).val_dataloader()))
    before = module.detect(batch)[0].scores
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter.zero_()
    assert torch.equal(module.detect(batch)[0].scores, before)


def test_foreign_class_paths_are_not_imported():
    for path in (
        "os.system",
        "zoo.training.module.DetectionModule",
        "zoo.architectures.rt_detr.evil.x",
        "zoo.architectures..x",
    ):
        with pytest.raises(ValueError, match="class_path"):
            build_module({"class_path": path, "init_args": {}})


def test_arguments_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="num_querys"):
        build_module(tiny_block(num_querys=3))


def test_rules_that_match_nothing_are_refused():
    block = tiny_block()
    block["init_args"]["schedule"]["rules"] = [{"match": "^backbon\\.", "lr": 1.0e-5}]
    module = build_module(block)
    with pytest.raises(ValueError, match=r"schedule.rules\[0\] .*backbon.* matches no parameter"):
        module.schedule.optimizer(module.network)


def maps() -> tuple[LabelMap, LabelMap]:
    return (
        LabelMap.contiguous(["dog", "cat", "bird", "cow"], [0, 1, 2, 3]),
        LabelMap.contiguous(["cat", "fish", "dog"], [1, 2, 3]),
    )


def test_head_by_class_name_carries_the_rows_that_both_know():
    source, target = build(num_classes=4), build(num_classes=3)
    with torch.no_grad():
        for p in source.network.parameters():
            p.normal_()
        source.network.decoder.denoising_class_embed.weight[-1].zero_()
    ours, theirs = source.network.state_dict(), target.network.state_dict()
    untouched = theirs["decoder.enc_score_head.weight"].clone()
    report = load_weights(target, ours, "by_class_name", *maps())
    rows = target.network.decoder.enc_score_head.weight
    assert torch.equal(rows[0], ours["decoder.enc_score_head.weight"][1])
    assert torch.equal(rows[1], untouched[1])
    assert torch.equal(rows[2], ours["decoder.enc_score_head.weight"][0])
    assert report.classes == ["cat", "dog"]
    assert "decoder.denoising_class_embed.weight" in report.reinitialised
    assert not target.network.decoder.denoising_class_embed.weight[-1].any()
    averaged = target.ema.network.decoder.enc_score_head.weight
    assert torch.equal(averaged, rows)


def test_the_row_after_the_classes_is_carried_over():
    source = torch.arange(5.0)[:, None].repeat(1, 2)
    target = torch.zeros(4, 2)
    copy_rows(target, source, *maps())
    assert target[:, 0].tolist() == [1.0, 0.0, 0.0, 4.0]  # cat, fish (new), dog, no object


def test_keep_refuses_a_head_of_another_width():
    with pytest.raises(ValueError, match=r"in the weights and \[4, 16\] here.*head: new"):
        load_weights(build(num_classes=3), build(num_classes=4).network.state_dict(), "keep")


def test_weights_of_another_network_are_refused():
    state = build().network.state_dict()
    state.pop("decoder.enc_output.0.bias")
    state["stranger"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"1 keys missing .*enc_output.0.bias.*1 not known .*stranger"):
        load_weights(build(), state, "keep")


def test_building_leaves_the_block_as_it_was():
    block = tiny_block()
    before = repr(block)
    build_module(block)
    assert repr(block) == before
