"""Why an AP is 0: each cause is put in and named, and a network that has only not learned yet gives no alarm."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import lightning.pytorch as L
import numpy as np
import pytest
from test_module import build, make_data, trainer

from datamodules.shapes import generate_shapes
from zoo.evaluation.coco_evaluator import Collected
from zoo.storage.checkpoint_io import AtomicCheckpointIO
from zoo.training import diagnosis
from zoo.training.diagnosis import Case, ZeroAP, diagnose
from zoo.training.saving import CheckpointSaver
from zoo.training.schedule import ParamRule

NAMES = {0: "cat", 1: "dog", 2: "bird", 3: "fish"}
WIDTH, HEIGHT = 320, 240


def truth(seed=0, images=24, classes=4):
    """[A, 5] objects, their labels, the row of their image; sides of 20 to 80 pixels anywhere."""
    draw = np.random.default_rng(seed)
    counts = draw.integers(1, 5, images)
    image = np.repeat(np.arange(images), counts)
    size = draw.uniform(20, 80, (len(image), 2))
    corner = draw.uniform(0, 1, (len(image), 2)) * (np.array([WIDTH, HEIGHT]) - size)
    boxes = np.concatenate([corner, size], 1)
    return boxes, draw.integers(0, classes, len(image)), image


def collected(boxes, labels, image, found, found_labels, found_image, scores=None, images=24):
    scores = np.full(len(found), 0.5) if scores is None else scores
    return Collected(
        images=np.tile([[0, HEIGHT, WIDTH]], (images, 1)) + np.arange(images)[:, None] * [[1, 0, 0]],
        detections=np.concatenate([found, scores[:, None]], 1).astype(np.float64),
        detection_labels=np.asarray(found_labels, dtype=np.int64),
        detection_image=np.asarray(found_image, dtype=np.int64),
        annotations=np.concatenate([boxes, boxes[:, 2:3] * boxes[:, 3:]], 1),
        annotation_labels=np.stack([labels, np.zeros_like(labels)], 1),
        annotation_image=image,
    )


def perfect(seed=0, classes=4, spoil=lambda boxes, labels, image: (boxes, labels, image)):
    """Detections that lie on the objects but for what `spoil` does to them, and as many below them that do not."""
    boxes, labels, image = truth(seed, classes=classes)
    draw = np.random.default_rng(seed + 1)
    found, found_labels, found_image = spoil(boxes + draw.normal(0, 1, boxes.shape), labels, image)
    noise = np.concatenate([draw.uniform(0, 200, (len(image), 2)), draw.uniform(5, 60, (len(image), 2))], 1)
    return collected(
        boxes, labels, image, np.concatenate([found, noise]), np.concatenate([found_labels, labels]),
        np.concatenate([found_image, image]), np.repeat([0.5, 0.02], len(image)),
    )  # fmt: skip


def module(**init_args):
    built = build(**init_args)
    built.label_map = SimpleNamespace(name_of_head=NAMES)
    return built


def case(found, losses=(20.0, 15.0), steps=10, dropped=(0, 40), mine=None, rate=1e-4):
    data = SimpleNamespace(dropped_object_share=lambda number: dropped)
    return Case(mine or module(), found, losses, steps, data, rate)


def rolled(by):
    return lambda boxes, labels, image: (boxes, (labels + by) % 4, image)


def of_boxes(change):
    return lambda boxes, labels, image: (change(boxes), labels, image)


SIZE = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
CAUSES = {
    "an id too high": (lambda b, c, i: (b, c + 1, i), r"labels are off by \+1 for 100% of the objects"),
    "an id too low": (lambda b, c, i: (b, c - 1, i), r"labels are off by -1"),
    "permuted": (lambda b, c, i: (b, np.array([2, 0, 3, 1])[c], i), r"permuted \(cat is found as bird, dog is found"),
    "two exchanged": (lambda b, c, i: (b, np.array([1, 0, 2, 3])[c], i), r"permuted \(cat is found as dog, dog is"),
    "detections in shares": (of_boxes(lambda b: b / SIZE), r"if the detections were not shares of the image:"),
    "detections scaled twice": (of_boxes(lambda b: b * SIZE), r"multiplied by the size of the image once too often"),
    "corners for sizes": (
        of_boxes(lambda b: np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], 1)),
        r"detections were not \(x0, y0, x1, y1\) read as",
    ),
    "a centre for a corner": (
        of_boxes(lambda b: np.concatenate([b[:, :2] + b[:, 2:] / 2, b[:, 2:]], 1)), r"the box format is mistaken",
    ),
    "rows for columns": (of_boxes(lambda b: b[:, [1, 0, 3, 2]]), r"not with y and x in each"),
    "sides exchanged": (of_boxes(lambda b: b / SIZE * SIZE[[1, 0, 3, 2]]), r"with height and width in each"),
    "ids of images": (lambda b, c, i: (b, c, (i + 3) % 24), r"of 24 images lie on the objects of another image"),
}  # fmt: skip


@pytest.mark.parametrize("name", CAUSES)
def test_what_the_detections_show(name):
    spoil, told = CAUSES[name]
    for seed in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(diagnosis, "frozen_heads", lambda module: [])
            assert_told(perfect(seed, spoil=spoil), told)


def assert_told(found, told):
    import re

    said = diagnose(case(found, mine=MODULE))
    assert re.search(told, said), said
    assert "\n" not in said


MODULE = module()


@pytest.mark.parametrize(("wrong", "told"), [
    (lambda b: np.concatenate([b[:, :2], b[:, 2:] + b[:, :2]], 1), r"annotations were .*read as \(x, y, w, h\)"),
    (lambda b: np.concatenate([b[:, :2] + b[:, 2:] / 2, b[:, 2:]], 1), r"the box format is mistaken"),
    (lambda b: b / SIZE, r"if the annotations were pixels: they are shares"),
])  # fmt: skip
def test_annotations_in_another_format(wrong, told):
    found = perfect()
    spoiled = np.concatenate([wrong(found.annotations[:, :4]), found.annotations[:, 4:]], 1)
    assert_told(found._replace(annotations=spoiled), told)


def test_no_detection_reaches_the_evaluator():
    boxes, labels, image = truth()
    found = collected(boxes, labels, image, boxes[:0], labels[:0], image[:0])
    assert_told(found, "not one detection reaches the evaluator: all scores lie below a threshold")


def test_a_frozen_head_is_named():
    mine = module()
    rules = [ParamRule(match="score_head", freeze=True), *mine.schedule.rules]
    mine.schedule = replace(mine.schedule, rules=rules)
    said = diagnose(case(random(0), mine=mine))
    assert said.startswith("the class head does not train (decoder.enc_score_head.weight): remove the rule")


def test_objects_that_the_transform_drops():
    said = diagnose(case(random(0), dropped=(38, 40), mine=MODULE))
    assert said.startswith("the training transform drops 38 of 40 objects")


def test_a_head_that_was_not_loaded():
    draw = np.random.default_rng(5)
    found = perfect(spoil=lambda b, c, i: (b, draw.integers(0, 4, len(c)), i))
    assert "too early" in diagnose(case(found, mine=MODULE))
    mine = module()
    mine.new_head = "no class of the weights has the name of one here"
    assert "the class head was not loaded (no class of the weights has the name" in diagnose(
        case(found, mine=mine)
    )


def test_after_enough_steps_it_says_that_nothing_else_shows():
    told = diagnose(case(random(0), [5.0, 4.0], 60, mine=MODULE))
    assert told == "too early: the loss falls (5 -> 4 in 60 steps), and no other cause shows; let it go on"


def test_what_was_drawn_at_random_and_does_not_train():
    mine = module()
    for name, parameter in mine.network.named_parameters():
        parameter.requires_grad = not name.startswith("backbone.")
    assert diagnose(case(random(0), [5.0, 4.0], 2, mine=mine)).startswith("too early")
    mine.from_nothing = True
    assert diagnose(case(random(0), [5.0, 4.0], 2, mine=mine)).startswith(
        "backbone was drawn at random and does not"
    )
    mine.init_args["backbone"]["weights"] = "somewhere"
    assert diagnose(case(random(0), [5.0, 4.0], 2, mine=mine)).startswith("too early")
    mine.network.encoder.requires_grad_(False)
    assert diagnose(case(random(0), [5.0, 4.0], 2, mine=mine)).startswith("encoder was drawn")


def test_a_rate_that_is_too_high_or_too_low():
    rises, stands = [20 + i for i in range(40)], [20 - 0.001 * i for i in range(60)]
    said = diagnose(case(random(0), rises, 40, mine=MODULE, rate=0.1))
    assert "the loss rises" in said
    assert "0.1 is too high for a batch of 8; try --lr 0.01" in said
    said = diagnose(case(random(0), stands, 60, mine=MODULE, rate=1e-7))
    assert "the loss stands still" in said
    assert "1e-07 is too low for a batch of 8; try --lr 1e-06" in said
    mine = module()
    mine.network.backbone.requires_grad_(False)
    mine.network.encoder.requires_grad_(False)
    said = diagnose(case(random(0), stands, 60, mine=mine))
    assert "and backbone, encoder do not train" in said
    assert said.endswith("or freeze less")


def random(seed, classes=4, one_label=None, images=24):
    """Boxes and labels as of a network that knows nothing."""
    boxes, labels, image = truth(seed, classes=classes)
    draw = np.random.default_rng(1000 + seed)
    rows = np.repeat(np.arange(images), 20)
    found = np.concatenate([draw.uniform(0, 240, (len(rows), 2)), draw.uniform(4, 200, (len(rows), 2))], 1)
    given = draw.integers(0, classes, len(rows)) if one_label is None else np.full(len(rows), one_label)
    return collected(boxes, labels, image, found, given, rows, draw.uniform(0, 0.02, len(rows)))


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_no_false_alarm_of_a_network_that_knows_nothing(classes):
    for seed in range(4):
        for one in (None, 0):
            said = diagnose(case(random(seed, classes, one), mine=MODULE))
            assert said.startswith("too early: the loss falls (20 -> 15 in 10 steps)"), (seed, said)


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_no_false_alarm_of_boxes_that_are_right_under_any_label(classes):
    for seed in range(4):
        draw = np.random.default_rng(seed)
        for labels in (lambda c, draw=draw: draw.integers(0, classes, len(c)), lambda c: np.zeros_like(c)):
            found = perfect(seed, classes, lambda b, c, i, labels=labels: (b, labels(c), i))
            assert diagnose(case(found, mine=MODULE)).startswith("too early: the loss falls"), seed


@pytest.mark.parametrize(("losses", "told"), [
    ([], "too early to tell: 3 steps"), ([5.0, 5.0], "too early to tell: loss 5 -> 5 in 3 steps"),
    ([5.0, math.nan, 4.0], "too early: the loss falls (5 -> 4 in 3 steps); let it go on"),
])  # fmt: skip
def test_it_is_early(losses, told):
    assert diagnose(case(random(0), losses, 3, mine=MODULE)) == told


def test_a_training_tells_after_its_first_second_and_fourth_validation(tmp_path):
    """All of it real, and healthy."""
    shapes = generate_shapes(tmp_path / "shapes", 16, 4, seed=0, size=64)
    said = []

    class Nothing(L.Callback):
        def on_validation_epoch_end(self, trainer, module):
            module.log("val/AP", 0.0)

    saver = CheckpointSaver(monitor="val/AP")
    saver.folder = tmp_path
    told = ZeroAP(lambda line: said.append((run.global_step, line)))
    run = trainer(
        tmp_path, enable_checkpointing=True, plugins=[AtomicCheckpointIO()], callbacks=[Nothing(), told, saver],
        max_epochs=5, limit_val_batches=1,
    )  # fmt: skip
    run.fit(build(), make_data(shapes, 8))
    assert [step for step, _ in said] == [2, 4, 8]
    for _, line in said:
        assert line.startswith("AP is 0     too early"), line
    run.validate(run.model, datamodule=run.datamodule, verbose=False)
    assert len(said) == 3
    again = ZeroAP(print)
    again.load_state_dict(told.state_dict())
    assert again.state_dict() == told.state_dict()
    assert len(told.state_dict()["losses"]) == 10
    assert all(isinstance(v, float) and math.isfinite(v) for v in told.state_dict()["losses"])


def test_two_classes_exchanged_are_no_shift_however_rare_one_is():
    """As a real detector of blood cells showed it: 795 of 795 and 24 of 36 pairs."""
    boxes, _, image = truth(images=24)
    labels = (np.arange(len(image)) % 5 > 0).astype(np.int64)
    found = collected(boxes, labels, image, boxes, 1 - labels, image)
    assert_told(found, r"classes are permuted \(cat is found as dog, dog is found as cat\)")


def told_at(ap, found, fn="fit", validations=0):
    """What is said of a validation."""
    said = []
    callback = ZeroAP(said.append)
    callback._validations = validations
    mine = module()
    mine.val_ap.evaluation = lambda: SimpleNamespace(data=found)
    callback.on_validation_end(
        SimpleNamespace(
            state=SimpleNamespace(fn=fn), sanity_checking=False, callback_metrics={"val/AP": ap}, global_step=3,
            is_global_zero=True, optimizers=[SimpleNamespace(param_groups=[{"initial_lr": 1e-3}])],
            datamodule=SimpleNamespace(dropped_object_share=lambda number: (0, 9)),
        ),
        mine,
    )  # fmt: skip
    return said


def test_a_low_ap_is_explained_by_a_mistake_alone():
    exchanged = perfect(spoil=CAUSES["two exchanged"][0])
    (line,) = told_at(0.28, exchanged)
    assert line.startswith("AP is 0.28  boxes are right but classes are permuted")
    assert told_at(0.28, perfect(spoil=lambda b, c, i: (b, np.zeros_like(c), i))) == []
    assert told_at(0.31, exchanged) == []
    assert told_at(math.nan, exchanged) == []
    assert told_at(0.0, random(0))[0].startswith("AP is 0     too early to tell: 3 steps")
    assert len(told_at(0.0, random(0), "validate")) == 1
    assert told_at(0.0, random(0), "validate", validations=2) == []
    assert told_at(0.0, random(0), "fit", validations=2) == []
