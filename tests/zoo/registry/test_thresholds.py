"""The thresholds of a manifest: checked, written at publishing, and what `predict` shows by default."""

import numpy as np
import pytest
import torch
from PIL import Image
from registry_case import INPUT, LABELS, tiny_checkpoint, tiny_manifest, tiny_module

from zoo.contract.batch import Detections
from zoo.contract.preprocess import InputContract
from zoo.detector import Detector
from zoo.registry.manifest import ManifestError, parse_manifest
from zoo.registry.publish import publish
from zoo.runs.console import Console
from zoo.runs.predict import predict

CHOSEN = {"chosen_for": "best F1", "split": "val", "all": 0.4, "classes": {"square": 0.2}}
PICTURE = Image.fromarray(np.zeros((40, 60, 3), dtype=np.uint8))


def detector(monkeypatch, **changes):
    module = tiny_module()
    module.adopt(LABELS, InputContract.from_dict(INPUT))
    scores, heads = torch.tensor([0.45, 0.35, 0.25, 0.15]), torch.tensor([0, 0, 1, 1])
    found = Detections(scores, heads, torch.tensor([[1.0, 1, 9, 9]] * 4))
    monkeypatch.setattr(module, "detect", lambda batch: [found])
    return Detector(module, "tiny", tiny_manifest(**changes))


def test_each_class_has_its_own_and_the_others_that_of_all(monkeypatch):
    prediction = detector(monkeypatch, thresholds=CHOSEN).predict(PICTURE)
    assert list(zip(prediction.labels, prediction.scores, strict=True)) == [
        ("disc", pytest.approx(0.45)),
        ("square", pytest.approx(0.25)),
    ]
    assert (prediction.threshold, dict(prediction.class_thresholds)) == (0.4, {"square": 0.2})
    assert prediction.to_dict()["class_thresholds"] == {"square": 0.2}
    plain, painted = np.asarray(PICTURE), np.asarray(prediction.paint(PICTURE).resize((60, 40)))
    assert (painted != plain).any()


def test_a_number_takes_their_place(monkeypatch):
    prediction = detector(monkeypatch, thresholds=CHOSEN).predict(PICTURE, threshold=0.3)
    assert prediction.scores == pytest.approx([0.45, 0.35])
    assert (prediction.threshold, dict(prediction.class_thresholds)) == (0.3, {})
    assert "class_thresholds" not in prediction.to_dict()


def test_a_manifest_without_them_shows_from_three_tenths(monkeypatch):
    model = detector(monkeypatch)
    assert model.thresholds is None
    prediction = model.predict(PICTURE)
    assert prediction.scores == pytest.approx([0.45, 0.35])
    assert prediction.threshold == 0.3
    assert "thresholds" not in model.manifest.to_dict()


def test_predict_says_where_the_threshold_is_from(monkeypatch, tmp_path, capsys):
    PICTURE.save(tmp_path / "a.png")
    model = detector(monkeypatch, thresholds=CHOSEN)
    found = predict(lambda: model, [str(tmp_path / "a.png")], None, tmp_path / "out", Console())
    line = "threshold   0.400, its own for 1 of the classes: the best F1 on val, kept with the model; --threshold N"
    assert line in capsys.readouterr().out
    hardly = detector(monkeypatch, thresholds=CHOSEN | {"all": 0.02, "precision": 0.031, "recall": 1.0})
    predict(lambda: hardly, [str(tmp_path / "a.png")], None, tmp_path / "out", Console())
    line = "the best F1 on val (3% of what is shown there is right, 100% of the objects found), kept with the model"
    assert line in capsys.readouterr().out
    assert found["threshold"] == 0.4
    assert [d["label"] for d in found["predictions"][0]["detections"]] == ["disc", "square"]
    predict(lambda: model, [str(tmp_path / "a.png")], 0.3, tmp_path / "out", Console())
    assert "kept with the model" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"all": 1.5}, "thresholds.all"),
        ({"precision": 1.5}, "thresholds.precision"),
        ({"classes": {"cow": 0.5}}, "'cow', which is no class"),
        ({"classes": {"disc": -1}}, "thresholds.classes"),
        ({"other": 1}, "other"),
    ],
)
def test_what_they_may_hold(change, message):
    with pytest.raises(ManifestError, match=message):
        tiny_manifest(thresholds=CHOSEN | change)


def test_they_are_published_and_read_again(tmp_path, caplog):
    tiny_checkpoint(tmp_path / "best.ckpt")
    published = publish(
        tmp_path / "best.ckpt", "rt_detr_tiny.mine", registry=tmp_path / "r", thresholds=CHOSEN
    )
    manifest = parse_manifest((published.folder / "manifest.yaml").read_text())
    assert (manifest.thresholds.all, manifest.thresholds.classes) == (0.4, {"square": 0.2})
    assert "precision" not in manifest.to_dict()["thresholds"], "as it was written before it was known"
    more = CHOSEN | {"precision": 0.5, "recall": 1.0}
    published = publish(tmp_path / "best.ckpt", "rt_detr_tiny.more", registry=tmp_path / "r", thresholds=more)
    manifest = parse_manifest((published.folder / "manifest.yaml").read_text())
    assert (manifest.thresholds.precision, manifest.thresholds.recall) == (0.5, 1.0)
    bare = publish(tmp_path / "best.ckpt", "rt_detr_tiny.bare", registry=tmp_path / "r")
    assert "thresholds" not in (bare.folder / "manifest.yaml").read_text()
    with pytest.raises(ValueError, match="thresholds"):
        publish(tmp_path / "best.ckpt", "rt_detr_tiny.bad", registry=tmp_path / "r", thresholds={"all": "x"})
    assert not (tmp_path / "r" / "rt_detr_tiny.bad").exists()
