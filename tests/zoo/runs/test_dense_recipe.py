"""A recipe of DEIM's kind: flat cosine, second stage, augmentation by epoch and Dense O2O, trained and resumed."""

import pytest
from empty_store import put_empty_store

import zoo
from datamodules.shapes import generate_shapes
from zoo.storage.checkpoint_io import read_checkpoint

DEIM = """
model:
  init_args:
    ema: {decay: 0.9999, warmup_steps: 1000}
    schedule:
      global_batch_size: 4
      warmup_steps: 3
      decay: flat_cosine       # quadratic warm-up, flat, cosine, tail
      flat_epochs: 2           # warm-up included
      tail_epochs: 1           # at final_factor
      final_factor: 0.5
      first_factor: 0.002      # of step 0: 1/500
      restart_epoch: 3         # back to the best so far
data:
  init_args:
    batch_size: 4
    train_transform: rt_detr_clean
    later_transforms:
      - {from_epoch: 1, name: rt_detr}
      - {from_epoch: 3, name: rt_detr_clean}
    min_box_side: 1
    dense_o2o:
      group: 2                 # images that are mixed with each other: the published batch of a device
      mosaic: {epochs: [1, 2], probability: 0.5, side: 32, rotation: 10.0, translation: 0.1, scale: [0.5, 1.5]}
      mixup: {epochs: [1, 2], probability: 0.5}
      copy_blend: {epochs: [1, 3], probability: 0.5, objects: 3, least_area: 100, expand: [0.1, 0.25]}
trainer: {max_epochs: 4}
"""
NARROW = {
    "model.backbone.widths": [4, 8, 8, 8, 8], "model.encoder.dim": 16, "model.encoder.ffn_dim": 16,
    "model.decoder.dim": 16, "model.decoder.ffn_dim": 16, "model.num_classes": 4, "data.num_workers": 0,
    "data.root": "shapes", "data.input.size": [64, 64],
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generate_shapes(tmp_path / "shapes", 8, 2, 0, 64)
    put_empty_store(tmp_path / "mlruns")
    (tmp_path / "deim.yaml").write_text(DEIM)
    return zoo.recipe(["rt_detr/tiny", "deim.yaml"], NARROW)


def test_it_trains_and_goes_back(recipe, tmp_path, capsys):
    run = zoo.fit(recipe, output="run")
    said = capsys.readouterr().out
    assert "training images as the network sees them in epoch 2" in said
    assert "epoch   4  starts from step" in said
    assert (tmp_path / "run" / "first-stage.ckpt").is_file()
    assert [step for step, _ in run.curves["val/AP"]] == [2, 4, 6, 8]
    data = read_checkpoint(run.checkpoint)["zoo"]
    assert data["model"]["init_args"]["schedule"]["decay"] == "flat_cosine"
    assert run.recipe["data"]["init_args"]["dense_o2o"]["mosaic"]["epochs"] == [1, 2]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "data.dense_o2o.mixup.epoch",
            [1, 2],
            r"data.dense_o2o.mixup.epoch is no key of a recipe; did you mean 'epochs'",
        ),
        ("data.dense_o2o.mixup", {"epochs": [1, 2]}, "lacks data.dense_o2o.mixup.probability"),
        ("data.dense_o2o.mixup.epochs", [2, 1], r"dense_o2o.mixup.epochs is \[2, 1\]"),
        ("data.dense_o2o.mixup.epochs", "often", "dense_o2o"),
        ("model.schedule.restart_epoch", 0, "schedule.restart_epoch is 0"),
        ("model.schedule.decay", "constant", "schedule.flat_epochs is for decay: flat_cosine"),
    ],
)
def test_faults_are_one_line(recipe, key, value, message):
    with pytest.raises(ValueError, match=message) as told:
        zoo.fit(recipe, overrides={key: value}, output="run", console=zoo.Silent())
    assert "\n" not in str(told.value)
