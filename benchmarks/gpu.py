"""What does a GPU do with it? One JSON document in at most eight minutes:
    python benchmarks/gpu.py > gpu.json
On a CPU, `--tiny` shows that every part runs, and nothing else. Each part is a process of its own with a time of its
own, so that neither an error nor a part that hangs costs the others.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # once, not in every process
import transformers
import yaml
from gpu_speed import Row, Setting, attempt, inference, training, wait
from pairs import build
from torch import Tensor
from train_step import random_batch

from zoo.contract.batch import Batch, unlabelled
from zoo.contract.photometric import Distortion
from zoo.contract.preprocess import InputContract
from zoo.runs.bench_cases import compiled_network
from zoo.runs.timing import processor_name
from zoo.verification import deformable_detr, deimv2, detr, dfine, rt_detr, rt_detrv2
from zoo.verification.cases import COMMITTED, Case, find_cases
from zoo.verification.network import padded_batch

BUILDERS: dict[str, Callable[[Case], torch.nn.Module]] = {
    "detr": detr.build,
    "deformable": deformable_detr.build,
    "rtdetr": lambda case: rt_detr.build(case, freeze_stem=False),
    "rtdetrv2": lambda case: rt_detrv2.build(case, freeze_stem=False),
    "dfine": dfine.build,
    "deimv2": deimv2.build,
}
FLOAT32_LIMIT = 1e-3  # of the largest official value, as in `zoo verify`
CAPTURED = ("detr_r50", "rt_detr_r18", "deformable_detr_r50", "rt_detrv2_s", "dfine_s")
RECIPES = Path(__file__).parents[1] / "recipes"


def machine(setting: Setting) -> Iterator[Row]:
    """The card, and what its matrix units reach in this torch."""
    row: Row = {"torch": torch.__version__, "transformers": transformers.__version__, "cpu": processor_name()}
    if setting.device.type == "cuda":
        card = torch.cuda.get_device_properties(setting.device)
        row |= {
            "gpu": card.name, "memory_gb": card.total_memory / 2**30, "cuda": torch.version.cuda,
            "capability": f"{card.major}.{card.minor}", "bf16": torch.cuda.is_bf16_supported(),
        }  # fmt: skip
    rates = {
        str(t).removeprefix("torch."): setting.matrix_rate(t) / 1e12 for t in (torch.bfloat16, torch.float32)
    }
    yield {**row, "matrix_tflops": rates}


def goldens(setting: Setting) -> Iterator[Row]:
    """The last layer's logits and boxes of every official forward case, on the device, in float32 and bf16.

    Differences are relative to the largest official value. In bf16 queries may change places, so only what the
    medians say has a meaning there.
    """
    named = os.environ.get("GOLDEN_DIR")
    root = Path(named) if named else COMMITTED
    for folder, make in BUILDERS.items():
        if not (root / folder).is_dir() or (setting.tiny and folder not in ("rtdetr", "deimv2")):
            continue
        cases = [
            c for c in find_cases(root, folder) if c.name.startswith("forward") and "train" not in c.name
        ]
        for case in cases[:1] if setting.tiny else cases:
            yield attempt({"case": case.id}, lambda c=case, m=make: against_official(c, m, setting))


def against_official(case: Case, make: Callable[[Case], torch.nn.Module], setting: Setting) -> Row:
    """Of one case."""
    network, row = make(case).float().eval().to(setting.device), {}
    batch = batch_of_case(case).to(setting.device)
    for name, precision in (("float32", nullcontext), ("bfloat16", setting.bf16)):
        with torch.no_grad(), precision():
            final = network(batch).final
        for kind, values in (("logits", final.logits), ("boxes", final.boxes)):
            key = next(k for k in (f"f64/pred_{kind}", f"f64/final/{kind}") if k in case)
            official = case[key].double()
            apart = (values.double().cpu() - official).abs() / official.abs().max()
            row |= {f"{name}_{kind}": float(apart.max()), f"{name}_{kind}_median": float(apart.median())}
    return {**row, "passed": max(row["float32_logits"], row["float32_boxes"]) <= FLOAT32_LIMIT}


def batch_of_case(case: Case) -> Batch:
    """Its images in float32: each padded, or stored as one tensor."""
    if "images" not in case:
        return padded_batch(case, torch.float32)
    images = case.images("images").float()
    return unlabelled(list(images), [(images.shape[2], images.shape[3])] * len(images))


def capture(setting: Setting) -> Iterator[Row]:
    """Whole networks as one graph without a break: evaluation, and the forward pass of a training step."""
    for name in CAPTURED[: 1 if setting.tiny else None]:
        yield attempt({"network": name}, lambda n=name: captured(n, setting))


def captured(name: str, setting: Setting) -> Row:
    """Seconds of the capture, and how far what it computes is from the network uncaptured."""
    torch._dynamo.reset()
    module, _ = build(name, setting.tiny)
    module.to(setting.device)
    side = 64 if setting.tiny else 256
    batch = random_batch((side, side), module.num_classes, padded=False).to(setting.device)
    graph, row = compiled_network(module, backend="eager"), {}
    begun = time.perf_counter()
    found, expected = graph(batch), module.predictions(batch)
    row["evaluation_seconds"] = time.perf_counter() - begun
    row["evaluation_difference"] = float((found.logits - expected.logits).abs().max())
    network = module.network.train()
    for norm in network.modules():  # batch statistics would change from one forward to the next
        if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
            norm.eval()
    begun = time.perf_counter()
    if hasattr(network, "prepare"):  # all draws are made before, on the host
        images, denoising = network.prepare(batch)
        logits = torch.compile(
            lambda: network.compute(images, denoising).final.logits, fullgraph=True, backend="eager"
        )
    else:
        forward = lambda images: network(replace(batch, images=images)).final.logits  # noqa: E731
        logits = lambda: torch.compile(forward, fullgraph=True, backend="eager")(batch.images)  # noqa: E731
    torch.manual_seed(0)
    row["training_finite"] = bool(logits().isfinite().all())
    return {**row, "training_seconds": time.perf_counter() - begun}


def images(setting: Setting) -> Iterator[Row]:
    """What the loader leaves to the device: uint8 there, then distortion and normalisation, against float batches."""
    for key in ("detr/r50_coco_500e", "rt_detr/r50_coco_72e"):
        yield attempt({"recipe": key}, lambda k=key: deferred(k, setting))


def deferred(key: str, setting: Setting) -> Row:
    """Milliseconds of a batch, and the largest difference of the device's numbers from the CPU's."""
    contract = InputContract.from_dict(
        yaml.safe_load((RECIPES / f"{key}.yaml").read_text())["data"]["init_args"]["input"]
    )
    height, width = (64, 96) if setting.tiny else contract.resized_size(480, 640)
    count = 2 if setting.tiny else 16
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
    batch = unlabelled(list(pixels), [(height, width)] * count)
    vectors = [
        Distortion(1.05, 0.8, 1.3, 0.04, bool(n % 2), (2, 0, 1)).vector((0, 0, width, height))
        for n in range(count)
    ]
    distorted = replace(batch, photometric=torch.stack(vectors))
    row: Row = {"images": count, "size": [height, width]}
    for name, given in (("normalise", batch), ("distort_and_normalise", distorted)):
        pinned = given.pin_memory() if setting.device.type == "cuda" else given
        on_device = lambda g=pinned: contract.normalize(g.to(setting.device, non_blocking=True)).images  # noqa: E731
        expected = contract.normalize(given).images
        row[f"{name}_difference"] = float((on_device().cpu() - expected).abs().max())
        row[f"{name}_ms"] = milliseconds(on_device, setting)
        row[f"{name}_ms_on_cpu"] = milliseconds(lambda g=given: contract.normalize(g).images, setting)
    ready: Tensor = contract.normalize(batch).images
    ready = ready.pin_memory() if setting.device.type == "cuda" else ready
    return {
        **row,
        "copy_of_floats_ms": milliseconds(lambda: ready.to(setting.device, non_blocking=True), setting),
    }


def milliseconds(run: Callable[[], object], setting: Setting) -> float:
    """The fastest of some runs, the device waited for."""
    times = []
    for _ in range(2 if setting.tiny else 10):
        wait(setting.device)
        begun = time.perf_counter()
        run()
        wait(setting.device)
        times.append(1000 * (time.perf_counter() - begun))
    return min(times)


# name -> (what it is, seconds that it may take, imports included); together less than eight minutes
PARTS: dict[str, tuple[Callable[[Setting], Iterator[Row]], float]] = {
    "machine": (machine, 30),
    "goldens": (goldens, 60),
    "capture": (capture, 65),
    "images": (images, 25),
    "training": (training, 140),
    "inference": (inference, 150),
}


def work(name: str, device: str, tiny: bool, to_parent: Connection) -> None:
    """In a process of its own: sends the rows of a part, then None."""
    try:
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32; speeds are of bf16
        for row in PARTS[name][0](Setting(torch.device(device), tiny)):
            to_parent.send(row)
    except Exception as error:
        to_parent.send({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"})
    to_parent.send(None)


def run_part(name: str, device: str, tiny: bool, seconds: float, start: str) -> dict[str, Any]:
    """The rows that a part gave in its time, and why there are no more if it did not end by itself.

    A process is spawned for a GPU: a forked one imports nothing again, but cannot use a GPU that this process, or
    anything that it has imported, has looked at.
    """
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context(start).Process(target=work, args=(name, device, tiny, theirs))
    begun = time.perf_counter()
    process.start()
    theirs.close()
    rows: list[Row] = []
    ended: str | None = "its process ended"
    try:
        while True:
            if not ours.poll(max(0.0, begun + seconds - time.perf_counter())):
                ended = f"stopped after {seconds:.0f} s; the rows were done by then"
                break
            row = ours.recv()
            if row is None:
                ended = None
                break
            rows.append(row)
    except EOFError:
        process.join()
        ended = f"its process ended with exit code {process.exitcode}"
    process.kill()
    process.join()
    found = {"seconds": round(time.perf_counter() - begun, 1), "rows": rows}
    return found if ended is None else {**found, "error": ended}


def main() -> None:
    """Prints the document; what goes on is told on stderr."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="on a CPU, sizes that show that it runs")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    device, start = ("cpu", "fork") if options.tiny else ("cuda", "spawn")
    document: dict[str, Any] = {"device": device, "tiny": options.tiny, "parts": {}}
    for name in options.parts:
        seconds = PARTS[name][1] * (10 if options.tiny else 1)  # nothing is measured where others may compute
        found = run_part(name, device, options.tiny, seconds, start)
        document["parts"][name] = found
        failed = sum("error" in row for row in found["rows"])
        told = f"{name}: {len(found['rows'])} rows, {failed} of them failed, {found['seconds']} s"
        print(f"{told} {found.get('error', '')}".rstrip(), file=sys.stderr, flush=True)
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
