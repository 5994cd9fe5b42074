"""Runs an export on a folder of images and knows nothing of this package: what a stranger would write.

Called by exported.py: python -I alone.py FORM PATH DATA, which prints `{AP, found}` as JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.transforms.v2.functional import resize

NAMES = ("scores", "labels", "boxes")
Found = dict[str, Any]  # arrays by the names above
Run = Callable[[Image.Image], Found]


def size_of(contract: dict[str, Any], height: int, width: int) -> list[int]:
    """[h, w] that the metadata's rule gives an image."""
    first, second = contract["size"]
    if contract["resize"] == "stretch":
        return [first, second]
    short, long = min(height, width), max(height, width)
    shortest = min(first, round(second * short / long))
    other = int(shortest * long / short)
    return [shortest, other] if height < width else [other, shortest]


def inputs_of(facts: dict[str, Any], picture: Image.Image) -> Found:
    """What the metadata says that the graph takes."""
    height, width = picture.height, picture.width
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    images = resize(pixels, size_of(facts["input"], height, width), antialias=True)[None].numpy()
    found = {"images": images, "sizes": np.array([[height, width]], dtype=np.int64)}
    if "padding" in facts["inputs"]:
        found["padding"] = np.zeros(images[:, 0].shape, dtype=bool)
    return found


def onnx(path: str) -> tuple[dict[str, Any], Run]:
    """(metadata, what runs an image)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map["detr_zoo"])

    def run(picture: Image.Image) -> Found:
        values = session.run(list(NAMES), inputs_of(facts, picture))
        return {name: value[0] for name, value in zip(NAMES, values, strict=True)}

    return facts, run


def openvino(path: str) -> tuple[dict[str, Any], Run]:
    """(metadata, what runs an image)."""
    from openvino import Core

    model = Core().read_model(path)
    facts = json.loads(model.get_rt_info(["detr_zoo"]).astype(str))
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = Core().compile_model(model, "CPU", options)

    def run(picture: Image.Image) -> Found:
        found = compiled(inputs_of(facts, picture))
        return {name: np.array(found[name])[0] for name in NAMES}

    return facts, run


def transformers(path: str) -> tuple[dict[str, Any], Run]:
    """(metadata, what runs an image)."""
    from transformers import AutoImageProcessor, AutoModelForImageSegmentation, AutoModelForObjectDetection

    config = json.loads((Path(path) / "config.json").read_text())
    masks = "Segmentation" in config["architectures"][0]
    auto = AutoModelForImageSegmentation if masks else AutoModelForObjectDetection
    model, processor = auto.from_pretrained(path).eval(), AutoImageProcessor.from_pretrained(path)
    # as the folder's card says: a number of detections is told with every call
    rule = {key: n for key, n in config["detr_zoo"]["model"]["init_args"].items() if key == "top_k"}

    @torch.no_grad()
    def run(picture: Image.Image) -> Found:
        raw = model(**processor(images=picture, return_tensors="pt"))
        sizes = [(picture.height, picture.width)]
        (found,) = processor.post_process_object_detection(raw, threshold=-1.0, target_sizes=sizes, **rule)
        return {name: found[name].numpy() for name in NAMES}

    return config["detr_zoo"], run


def main() -> None:
    """One line of JSON."""
    form, path, folder = sys.argv[1:]
    torch.set_num_threads(1)
    facts, run = {"onnx": onnx, "openvino": openvino, "transformers": transformers}[form](path)
    data = Path(folder)
    truth_file = data / "annotations" / "instances_val.json"
    ids = {entry["head_index"]: entry["source_id"] for entry in facts["label_map"]["classes"]}
    found, results = {}, []
    for image in json.loads(truth_file.read_text())["images"]:
        with Image.open(data / "val" / image["file_name"]) as picture:
            one = {name: value.tolist() for name, value in run(picture.convert("RGB")).items()}
        found[image["file_name"]] = one
        for score, label, (x0, y0, x1, y1) in zip(*(one[name] for name in NAMES), strict=True):
            if label in ids:
                box = [x0, y0, x1 - x0, y1 - y0]
                row = {"image_id": image["id"], "category_id": ids[label], "bbox": box, "score": score}
                results.append(row)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_file))
        evaluated = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    assert "zoo" not in sys.modules
    print(json.dumps({"AP": float(evaluated.stats[0]), "found": found}))


if __name__ == "__main__":
    main()
