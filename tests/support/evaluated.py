"""Detections and annotations that are hard to evaluate, and evaluations of them."""

import contextlib
import io

import numpy as np
import torch
from pycocotools.cocoeval import COCOeval

from zoo.contract.batch import Annotations, Batch, Detections, Targets
from zoo.contract.labels import LabelMap
from zoo.evaluation.coco_ap import CocoAP, Evaluation
from zoo.evaluation.coco_evaluator import Collected

LABELS = LabelMap(("cup", "dog", "owl", "bus"), (7, 3, 90, 12), (0, 1, 2, 3), 4)
BOX, FAR = (10, 10, 20, 20), (200, 200, 20, 20)  # x, y, width, height


def found(label, box, score):
    """A detection for `one_image`."""
    x, y, w, h = box
    return (label, x, y, x + w, y + h, score)


def annotated(label, box, crowd=0):
    """An object for `one_image`."""
    return (label, *box, box[2] * box[3], crowd)


def one_image(image_id, detections, annotations, size=(480, 640)):
    """Rows of (head index, x0, y0, x1, y1, score) and (head index, x, y, w, h, area, crowd)."""
    found = torch.tensor(detections, dtype=torch.float64).reshape(-1, 6)
    facts = torch.tensor(annotations, dtype=torch.float64).reshape(-1, 7)
    batch = Batch(
        images=torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        padding=torch.zeros(1, 4, 4, dtype=torch.bool),
        targets=Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (0,)),
        image_ids=(image_id,),
        original_sizes=(size,),
        annotations=Annotations(
            facts[:, 1:5], facts[:, 5], facts[:, 0].long(), facts[:, 6].bool(), (len(facts),)
        ),
    )
    return [Detections(found[:, 5], found[:, 0].long(), found[:, 1:5])], batch


def hard_images(seed=0, count=24):
    """Crowds, tied scores, areas that differ from boxes, empty images, undetected images, over 100
    detections of one class, class 3 never annotated, ids in no order."""
    rng = np.random.default_rng(seed)
    images = []
    for number, image_id in enumerate(rng.permutation(1000)[:count].tolist()):
        objects = 0 if number == 2 else int(rng.integers(1, 9))
        corner, extent = rng.uniform(0, 300, (objects, 2)), rng.uniform(3, 200, (objects, 2))
        labels = rng.integers(0, 3, objects)
        boxes = np.hstack([corner, extent])
        area = extent.prod(axis=1) * rng.uniform(0.3, 1, objects)
        facts = np.column_stack([labels, boxes, area, rng.random(objects) < 0.15])
        copies = 0 if number == 3 else 40 if number == 4 else 3
        source = np.repeat(np.arange(objects), copies)
        moved = boxes[source] + rng.normal(0, 8, (len(source), 4))
        wrong = np.column_stack([rng.uniform(0, 300, (4, 2)), rng.uniform(5, 90, (4, 2))])
        found = np.vstack([moved, wrong[: 0 if number == 3 else 4]])
        found[:, 2:] = found[:, :2] + np.abs(found[:, 2:])
        found_labels = np.concatenate([labels[source], rng.integers(0, 4, len(found) - len(source))])
        scores = rng.integers(1, 12, len(found)) / 12  # ties within and across images
        rows = np.column_stack([found_labels, found, scores])
        images.append(one_image(image_id, rows[np.argsort(-scores, kind="stable")].tolist(), facts.tolist()))
    return images


def filled(images, backend="hotcoco"):
    metric = CocoAP(backend)
    for detections, batch in images:
        metric.update(detections, batch)
    return metric


def matched_by_pycocotools(truth, results):
    """The records of pycocotools of every image and class at IoU 0.5, objects of all sizes; of COCOs without index."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        results.createIndex()
        run = COCOeval(truth, results, "bbox")
        run.params.iouThrs, run.params.areaRng, run.params.areaRngLbl = np.array([0.5]), [[0, 1e10]], ["all"]
        run.evaluate()
    return [record for record in run.evalImgs if record is not None]


def from_coco(truth, results):
    """The evaluation of a COCO data set whose category ids are head indices, and of results on it."""
    row = {image["id"]: k for k, image in enumerate(truth["images"])}
    found = sorted(results, key=lambda r: row[r["image_id"]])
    objects = sorted(truth["annotations"], key=lambda a: row[a["image_id"]])
    return Evaluation(
        Collected(
            np.array([(i["id"], i["height"], i["width"]) for i in truth["images"]], dtype=np.int64),
            np.array([(*r["bbox"], r["score"]) for r in found], dtype=np.float64).reshape(-1, 5),
            np.array([r["category_id"] for r in found], dtype=np.int64),
            np.array([row[r["image_id"]] for r in found], dtype=np.int64),
            np.array([(*a["bbox"], a["area"]) for a in objects], dtype=np.float64).reshape(-1, 5),
            np.array([(a["category_id"], a["iscrowd"]) for a in objects], dtype=np.int64).reshape(-1, 2),
            np.array([row[a["image_id"]] for a in objects], dtype=np.int64),
        )
    )
