"""Published sizes take an optimizer step on real COCO images, at their size, through the command line."""

import json

import pytest

from zoo.cli.main import main


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        "rt_detr/r18_coco_72e",
        "rt_detr/r50_coco_72e",
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
