"""Published sizes take an optimizer step on real COCO images, at their size, through the command line."""

import json
from pathlib import Path

import pytest
import torch

from zoo.cli.main import main
from zoo.storage.checkpoint_io import read_checkpoint


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        "rt_detr/r18_coco_72e",
        "rt_detr/r50_coco_72e",
        "rt_detrv2/r18_coco_120e",
        "detr/r50_coco_500e",
        "deformable_detr/r50_coco_50e",
    ],
)
def test_one_step_at_batch_2_on_real_images(recipe, test_data, tmp_path, capsys):
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "fit",
                "--config",
                recipe,
                "--output",
                str(run),
                f"--data.init_args.root={test_data / 'coco'}",
                "--data.init_args.num_workers=0",
                "--data.init_args.limit_train=2",
                "--data.init_args.limit_eval=2",
                "--model.init_args.schedule.global_batch_size=2",
                "--model.init_args.backbone.weights=random",
                "--trainer.max_epochs=1",
                "--trainer.accelerator=cpu",
            ]
        )
    assert ended.value.code in (0, None), capsys.readouterr().err
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 <= metrics["val"]["AP"] <= 1
    assert (run / "training_images.png").exists()


@pytest.mark.slow
def test_both_stages_of_panoptic_take_a_step_on_real_images(test_data, capsys):
    """At full size, batch 1: the boxes of all segments, and the masks on the frozen detector that came of it."""
    folder = test_data / "coco_panoptic"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    small = [
        f"--data.init_args.root={folder}", "--data.init_args.ap_objects=panoptic", "--data.init_args.num_workers=0",
        "--data.init_args.limit_train=1", "--data.init_args.limit_eval=1", "--trainer.max_epochs=1",
        "--data.init_args.batch_size=1", "--model.init_args.schedule.global_batch_size=1",
        "--model.init_args.backbone.weights=random", "--trainer.accelerator=cpu",
    ]  # fmt: skip
    first, second = "detr/r50_panoptic_box_coco_300e", "detr/r50_panoptic_coco_25e"
    name = "detr_r50_panoptic_box.coco_300e"
    for words in (
        ["fit", "--config", first, "--output", "box", *small],
        ["publish", "box", "--name", name],
        ["fit", "--config", second, "--output", "mask", *small],
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code in (0, None), capsys.readouterr().err
    before, after = (read_checkpoint(Path(run) / "last.ckpt")["state_dict"] for run in ("box", "mask"))
    assert all(torch.equal(after[key], value) for key, value in before.items()), "the detector is not frozen"
    assert sum(v.numel() for k, v in after.items() if k not in before) == 1333657
    metrics = json.loads(Path("mask/metrics.json").read_text())
    assert 0 <= metrics["val"]["panoptic"]["PQ"] <= 1
    assert metrics["val"]["panoptic"]["protocol"]["padding"] == "no image had any"
