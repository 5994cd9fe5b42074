"""Does a model find the same as PyTorch once it is exported, in a process that knows nothing of this package?

Each family at its published size with random weights that tell places apart, exported in each form that it has, on
real images: objects of the data are what the model itself finds best, and others, so that AP is not 0 and not 1.
    python benchmarks/exported.py --images FOLDER [--count 8] [--families detr rt_detr] [--forms onnx] [--json]
Columns: the largest differences and AP of the certificate; AP by `zoo validate` of the file; AP by pycocotools of what
onnxruntime, OpenVINO or transformers found alone; detections without a partner there. A difference ends with 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

import zoo
from zoo.contract.batch import Detections
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.detector import Detector
from zoo.exporting.differences import detection_difference
from zoo.layers.transformer import Attention
from zoo.runs import recipes
from zoo.runs.export import export
from zoo.training.module import build_module


@dataclass(frozen=True)
class Case:
    """A recipe, the size of its input here, and the forms that it has."""

    recipe: str
    size: tuple[int, int]
    forms: tuple[str, ...] = ("onnx", "openvino", "transformers")


CASES = {
    "detr": Case("detr/r50_coco_500e", (256, 426)),
    "detr_panoptic": Case("detr/r50_panoptic_coco_25e", (256, 426)),
    "deformable_detr": Case("deformable_detr/r50_coco_50e", (256, 426)),
    "rt_detr": Case("rt_detr/r18_coco_72e", (320, 320)),
    "rt_detrv2": Case("rt_detrv2/r18_coco_120e", (320, 320)),
    "dfine": Case("dfine/s_coco_132e", (320, 320)),
    "deimv2": Case("deimv2/atto_coco_500e", (320, 320), ("onnx", "openvino")),
}
OPENED = {"onnx": "model.onnx", "openvino": "model.xml", "transformers": "."}
SAME_AP = 1e-4


def made(name: str, full: bool) -> Detector:
    """A detector of random weights."""
    case = CASES[name]
    recipe = recipes.load(recipes.resolve(case.recipe))
    arguments = recipe["model"]["init_args"]
    arguments |= {key: None for key in ("ema", "panoptic") if key in arguments}
    torch.manual_seed(0)
    module = build_module(recipe["model"], backbone_weights="random").eval()
    enliven(module.network)
    contract = InputContract.from_dict(recipe["data"]["init_args"]["input"])
    classes = [f"class {n}" for n in range(module.num_classes)]
    module.adopt(
        LabelMap.contiguous(classes, range(module.num_classes)),
        contract if full else replace(contract, size=case.size),
    )
    return Detector(module, name)


@torch.no_grad()
def enliven(network: nn.Module) -> None:
    """Weights of which a signal is left at the end: places look different, and some classes are likely."""
    for name, part in network.named_modules():
        if name == "query_embed":
            part.get_parameter("weight").mul_(6.0)  # else all queries of DETR look at the whole image
        elif isinstance(part, Attention) and "decoder" in name:
            part.in_proj_weight.mul_(4.0)
        elif isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        elif name.endswith("bn3"):
            part.weight.fill_(0.2)  # else a ResNet grows by 2 a block
        elif isinstance(part, nn.Linear) and ("score_head" in name or "class_embed" in name):
            part.weight += 0.1 * torch.randn_like(part.weight)
            part.bias += torch.randn_like(part.bias) - 1.0
        elif (
            isinstance(part, nn.Linear) and "bbox" in name
        ):  # else boxes are anchors, whose overlaps are round numbers
            part.weight += 0.05 * torch.randn_like(part.weight)


def pictures(folder: Path, count: int) -> list[Path]:
    """The first images of 640x480: of one size, since padding of a batch changes what DETR finds."""
    found = []
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            if image.size == (640, 480) and image.mode == "RGB":
                found.append(path)
        if len(found) == count:
            return found
    raise SystemExit(f"{folder} has {len(found)} images of 640x480; {count} are asked for")


def data_of(detector: Detector, images: list[Path], root: Path) -> Path:
    """COCO json whose objects are the model's own best detections, and others; PNG, which all decode alike.

    Random weights find nearly the same in many places, whose ranks swap by rounding: objects are all those before the
    largest gap between scores, so that such a swap is no other AP.
    """
    (root / "val").mkdir(parents=True)
    (root / "annotations").mkdir()
    rows: list[dict[str, Any]] = []
    for number, path in enumerate(images):
        with Image.open(path) as image:
            image.convert("RGB").save(root / "val" / f"{number}.png")
        found = detector.predict(root / "val" / f"{number}.png", 0.0)
        objects = list(zip(found.source_ids, found.boxes_xyxy, strict=True))[: before_gap(found.scores)]
        # and for every third one a small object of its class that nothing is found of
        corner = 16.0 * (number + 1)
        objects += [(source_id, (corner, corner, corner + 9, corner + 9)) for source_id, _ in objects[::3]]
        for source_id, (x0, y0, x1, y1) in objects:
            width, height = max(x1 - x0, 1.0), max(y1 - y0, 1.0)
            row = {"id": len(rows) + 1, "image_id": number, "category_id": source_id, "iscrowd": 0}
            corners = [x0, y0, x0 + width, y0, x0 + width, y0 + height, x0, y0 + height]
            rows.append(
                row | {"bbox": [x0, y0, width, height], "area": width * height, "segmentation": [corners]}
            )
    content = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "height": 480, "width": 640} for n in range(len(images))
        ],
        "annotations": rows,
        "categories": [
            {"id": i, "name": n}
            for n, i in zip(detector.label_map.names, detector.label_map.source_ids, strict=True)
        ],
    }
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return root


def before_gap(scores: list[float], first: int = 20, last: int = 80) -> int:
    """How many of the best detections lie before the largest gap between scores."""
    gaps = [scores[n - 1] - scores[n] for n in range(first, min(last, len(scores)))]
    return first + gaps.index(max(gaps))


def alone(form: str, folder: Path, data: Path) -> dict[str, Any]:
    """What a process finds that cannot import this package: `{AP, found: {file: {scores, labels, boxes}}}`."""
    program = str(Path(__file__).with_name("alone.py"))
    given = [form, str(folder / OPENED[form]), str(data)]
    done = subprocess.run(
        [sys.executable, "-I", program, *given], capture_output=True, text=True, cwd=folder, check=False
    )
    if done.returncode:
        raise SystemExit(f"{form} alone failed: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def unpaired(detector: Detector, data: Path, found: dict[str, Any]) -> tuple[int, int]:
    """(detections of the source, those without a partner on either side) over all images."""
    of_source = without = 0
    for name, one in found.items():
        mine = detector.predict(data / "val" / name, 0.0).to_detections()
        theirs = Detections(
            torch.tensor(one["scores"]),
            torch.tensor(one["labels"]),
            torch.tensor(one["boxes"]).reshape(-1, 4),
        )
        limit = torch.tensor([640.0, 480.0, 640.0, 480.0])
        clipped = theirs._replace(boxes_xyxy=torch.minimum(theirs.boxes_xyxy.clamp(min=0), limit))
        apart = detection_difference(mine, clipped)
        of_source, without = of_source + apart.source, without + len(apart.alone)
    return of_source, without


def row_of(detector: Detector, form: str, data: Path, work: Path) -> dict[str, Any]:
    """One family in one form."""
    folder = work / form
    begun = time.process_time()
    certificate = export(detector, form, folder, data=data, console=zoo.Silent())  # type: ignore[arg-type]
    cost = time.process_time() - begun
    row = {
        "family": detector.name, "form": form, "passed": certificate["passed"],
        "megabytes": sum(file["bytes"] for file in certificate["files"]) / 1e6, "cpu_seconds": cost,
        "logits": certificate["raw"]["logits"], "boxes": certificate["raw"]["boxes"],
        "masks": certificate["masks"], "failures": certificate["failures"],
        "ap": certificate["scores"]["AP"] if certificate["scores"] else None,
    }  # fmt: skip
    if certificate["passed"]:
        file = folder / OPENED[form]
        answer = alone(form, folder, data)
        of_source, without = unpaired(detector, data, answer["found"])
        row |= {
            "validate": zoo.evaluate(file, data, console=zoo.Silent())["AP"], "alone": answer["AP"],
            "detections": of_source, "unpaired": without,
        }  # fmt: skip
    return row


def is_same(row: dict[str, Any]) -> bool:
    """Whether all three say the same."""
    if not row["passed"]:
        return False
    source = row["ap"]["source"]
    return row["unpaired"] == 0 and all(abs(row[key] - source) <= SAME_AP for key in ("validate", "alone"))


def main() -> int:
    """Prints a table; with --json one object last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder with images of 640x480")
    parser.add_argument("--count", type=int, default=8, help="of images")
    parser.add_argument("--families", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--forms", nargs="+", choices=list(OPENED), default=list(OPENED))
    parser.add_argument("--full", action="store_true", help="images at the published size")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.images is None:
        parser.error("give --images FOLDER")
    rows = []
    for name in options.families:
        detector = made(name, options.full)
        with tempfile.TemporaryDirectory() as made_folder:
            work = Path(made_folder)
            data = data_of(detector, pictures(options.images, options.count), work / "data")
            for form in (form for form in CASES[name].forms if form in options.forms):
                row = row_of(detector, form, data, work)
                rows.append(row | {"same": is_same(row)})
                print(told(row), flush=True)
    if options.json:
        print(json.dumps({"rows": rows}))
    return 0 if all(row["same"] for row in rows) else 1


def told(row: dict[str, Any]) -> str:
    """A row of a Markdown table."""
    size = f"{row['megabytes']:.0f} MB, {row['cpu_seconds']:.0f} CPU s"
    cells = [row["family"], row["form"], size, f"{row['logits']:.1e}", f"{row['boxes']:.1e}"]
    if row["passed"]:
        scores = (row["ap"]["source"], row["ap"]["file"], row["validate"], row["alone"])
        cells += [f"{score:.5f}" for score in scores] + [f"{row['unpaired']} of {row['detections']}"]
    else:
        cells += ["REFUSED", *row["failures"][:1]]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
