"""What does an annotation index cost, against pycocotools and json.load?

    python benchmarks/data_index.py                                   # 1/10 of Objects365, with pycocotools and json
    python benchmarks/data_index.py --images 1700000 --boxes 25000000 --alone --rounds 1      # Objects365's size

Writes an annotation file like Objects365's (seeded, annotations in random order, empty image files) below
`--folder`, reads it as `CocoDataModule` does, and measures each step in a process of its own: conversion (CPU time,
anonymous memory sampled every 10 ms), opening, pickling, time a row, and the private memory of a forked and of a
spawned worker that reads half of all images. pycocotools and json.load do the same, and everything that
pycocotools reads is compared with the index.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_index_source import write_source

THEIRS = ("pycocotools", "json")
STEPS = (
    "convert",
    *THEIRS,
    *(f"{name}-memory" for name in ("convert", *THEIRS)),
    "open",
    "workers",
    "compare",
)


# ---------------------------------------------------------------------- measuring


def memory(field: str) -> float:
    """A line of /proc/self/smaps_rollup in MB."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


class Peak:
    """The highest anonymous memory while it is open, sampled every 10 ms.

    The sampling takes CPU time of its own, so times are taken in other runs.
    """

    def __enter__(self) -> Peak:
        self.mb = self.start_mb = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.01):
            self.mb = max(self.mb, self._now())

    @staticmethod
    def _now() -> float:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
        raise KeyError("RssAnon")


def chosen_rows(images: int) -> list[int]:
    """Half of the images in random order."""
    import numpy as np

    return np.random.default_rng(1).permutation(images)[: images // 2].tolist()


def read_half(read: Callable[[int], Any], rows: list[int]) -> dict[str, float]:
    """Reads rows; the private memory that takes, and the CPU time of one."""
    before, started = memory("Private_Dirty"), time.process_time()
    for row in rows:
        read(row)
    spent = time.process_time() - started
    return {"private_mb": memory("Private_Dirty") - before, "row_us": spent / max(1, len(rows)) * 1e6}


def in_worker(kind: str, read: Callable[[int], Any], rows: list[int]) -> dict[str, float]:
    with multiprocessing.get_context(kind).Pool(1) as pool:
        return pool.apply(read_half, (read, rows))


# ---------------------------------------------------------------------- ours


def source(root: Path) -> Any:
    """As `CocoDataModule` reads the layout, without Lightning around it."""
    from datamodules.formats import coco
    from datamodules.kept.large import keep_layout

    file, folder = root / "annotations" / "instances_train2017.json", root / "train2017"

    def build(scratch: Any) -> Any:
        return coco.assemble(
            "coco",
            root,
            {"train": file},
            {"train": folder},
            {"train": coco.load(file, scratch)},
            verify_sizes=False,
        )

    return keep_layout(("benchmark", root), [file], [folder], build)


class ReadRow:
    """All of a row of an index."""

    def __init__(self, index: Any) -> None:
        self.index = index

    def __call__(self, row: int) -> None:
        """Reads it."""
        self.index.objects(row)
        self.index.size(row)
        self.index.files[row]


def convert(root: Path) -> dict[str, Any]:
    import datamodules.formats.coco
    import datamodules.kept.large  # noqa: F401

    started, wall = time.process_time(), time.perf_counter()
    source(root)
    return {"cpu_s": time.process_time() - started, "wall_s": time.perf_counter() - wall}


def convert_memory(root: Path) -> dict[str, Any]:
    import datamodules.formats.coco
    import datamodules.kept.large  # noqa: F401

    with Peak() as peak:
        found = source(root)
    index = found.splits["train"]
    stored = Path(index.columns.reopen[1])
    return {
        "imports_anonymous_mb": peak.start_mb,
        "peak_anonymous_mb": peak.mb,
        "ru_maxrss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "stored_mb": stored.stat().st_size / 1e6,
        "images": len(index),
        "boxes": index.num_objects,
        "faults": len(found.faults),
    }


def open_(root: Path) -> dict[str, Any]:
    started = time.perf_counter()
    import datamodules.formats.coco
    import datamodules.kept.large  # noqa: F401

    imported = time.perf_counter()
    source(root)
    return {"open_ms": (time.perf_counter() - imported) * 1e3, "import_ms": (imported - started) * 1e3}


def workers(root: Path) -> dict[str, Any]:
    index = source(root).splits["train"]
    rows = chosen_rows(len(index))
    read = ReadRow(index)
    forked, spawned = in_worker("fork", read, rows), in_worker("spawn", read, rows)
    return {
        "pickled_bytes": len(pickle.dumps(index.columns)),
        "forked_mb": forked["private_mb"],
        "spawned_mb": spawned["private_mb"],
        "row_us": forked["row_us"],
    }


# ---------------------------------------------------------------------- theirs


class ReadCoco:
    """An image and its annotations from pycocotools."""

    def __init__(self, coco: Any) -> None:
        self.coco, self.ids = coco, list(coco.imgs)

    def __call__(self, row: int) -> None:
        """Reads them."""
        own = self.ids[row]
        self.coco.loadAnns(self.coco.getAnnIds(imgIds=[own]))
        self.coco.loadImgs([own])


class ReadJson:
    """An image and its annotations from the plain values of the file."""

    def __init__(self, images: list[Any], of_image: dict[int, list[Any]]) -> None:
        self.images, self.of_image = images, of_image

    def __call__(self, row: int) -> None:
        """Reads them."""
        image = self.images[row]
        [(a["bbox"], a["category_id"], a["area"], a["iscrowd"]) for a in self.of_image.get(image["id"], ())]


def open_coco(file: Path) -> Any:
    from pycocotools.coco import COCO

    return COCO(str(file))


def open_json(file: Path) -> ReadJson:
    content = json.loads(file.read_bytes())
    of_image: dict[int, list[Any]] = {}
    for annotation in content["annotations"]:
        of_image.setdefault(annotation["image_id"], []).append(annotation)
    return ReadJson(content["images"], of_image)


def theirs(root: Path, kind: str) -> dict[str, Any]:
    import pycocotools.coco  # noqa: F401

    started = time.process_time()
    _theirs(root, kind)
    return {"cpu_s": time.process_time() - started}


def _theirs(root: Path, kind: str) -> Any:
    file = root / "annotations" / "instances_train2017.json"
    return ReadCoco(open_coco(file)) if kind == "pycocotools" else open_json(file)


def theirs_memory(root: Path, kind: str) -> dict[str, Any]:
    with Peak() as peak:
        read: Any = _theirs(root, kind)
    count = len(read.ids) if kind == "pycocotools" else len(read.images)
    forked = in_worker_by_global(read, chosen_rows(count))
    return {
        "peak_anonymous_mb": peak.mb,
        "forked_mb": forked["private_mb"],
        "row_us": forked["row_us"],
    }


_INHERITED: list[Any] = []


def _read_inherited() -> dict[str, float]:
    return read_half(*_INHERITED)


def in_worker_by_global(read: Any, rows: list[int]) -> dict[str, float]:
    """A forked worker that inherits the objects, as a DataLoader's does, instead of a pickled copy."""
    _INHERITED[:] = [read, rows]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_read_inherited)


def compare(root: Path) -> dict[str, Any]:
    """Everything that pycocotools reads, image by image, against the index."""
    index = source(root).splits["train"]
    coco = open_coco(root / "annotations" / "instances_train2017.json")
    assert index.image_ids.tolist() == list(coco.imgs), "image ids or their order"
    annotation_ids, offsets = index.annotation_ids, index.offsets
    objects = outlines = 0
    for row, (image_id, image) in enumerate(coco.imgs.items()):
        assert index.files[row] == f"train2017/{image['file_name']}", image_id
        assert index.size(row) == (image["height"], image["width"]), image_id
        expected = coco.imgToAnns.get(image_id, [])
        own, found = index.objects(row), index.segmentations(row)
        assert annotation_ids[offsets[row] : offsets[row + 1]].tolist() == [a["id"] for a in expected], (
            image_id
        )
        assert own.boxes_xywh.tolist() == [a["bbox"] for a in expected], image_id
        assert own.source_ids.tolist() == [a["category_id"] for a in expected], image_id
        assert own.areas.tolist() == [a["area"] for a in expected], image_id
        assert own.crowd.tolist() == [bool(a["iscrowd"]) for a in expected], image_id
        for outline, annotation in zip(found, expected, strict=True):
            assert (outline and outline.to_coco()) == annotation.get("segmentation"), annotation["id"]
            outlines += outline is not None
        objects += len(expected)
    return {"images": len(coco.imgs), "boxes": objects, "outlines": outlines, "mismatches": 0}


# ---------------------------------------------------------------------- the table


def step(name: str, root: Path, cache: Path) -> dict[str, Any]:
    """One step in a process of its own."""
    environment = {**os.environ, "ZOO_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--step", name, "--folder", str(root)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if ended.returncode:
        raise SystemExit(f"{name} failed:\n{ended.stderr}")
    return json.loads(ended.stdout.splitlines()[-1])


def median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=170_000)
    parser.add_argument("--boxes", type=int, default=2_500_000)
    parser.add_argument("--outlined", type=float, default=0.0, help="share of boxes with an outline")
    parser.add_argument("--alone", action="store_true", help="without pycocotools and json.load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="an empty folder on a real disk, or one that was written before"
    )
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run: dict[str, Callable[[Path], dict[str, Any]]] = {
            "convert": convert,
            "convert-memory": convert_memory,
            "open": open_,
            "workers": workers,
            "pycocotools": lambda root: theirs(root, "pycocotools"),
            "json": lambda root: theirs(root, "json"),
            "pycocotools-memory": lambda root: theirs_memory(root, "pycocotools"),
            "json-memory": lambda root: theirs_memory(root, "json"),
            "compare": compare,
        }
        print(json.dumps(run[options.step](options.folder)))
        return
    if options.tiny:
        options.images, options.boxes, options.outlined = 2_000, 150_000, 0.1
    folder = options.folder or Path(tempfile.mkdtemp(prefix="data_index-"))
    try:
        report(measure(options, folder), options)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    root, cache = folder / "set", folder / "cache"
    if not root.exists():
        write_source(root, options.images, options.boxes, options.outlined, seed=0)
    file = root / "annotations" / "instances_train2017.json"
    rounds: dict[str, list[dict[str, Any]]] = {"convert": [], "pycocotools": [], "json": []}
    for _ in range(options.rounds):  # in turns
        for name, found in rounds.items():
            if name == "convert":
                shutil.rmtree(cache, ignore_errors=True)
            if name == "convert" or not options.alone:
                found.append(step(name, root, cache))
    result: dict[str, Any] = {"json_mb": file.stat().st_size / 1e6}
    result |= {name: median(found) for name, found in rounds.items() if found}
    shutil.rmtree(cache, ignore_errors=True)
    result["convert"] |= step("convert-memory", root, cache)
    result["open"] = median([step("open", root, cache) for _ in range(max(3, options.rounds))])
    result["workers"] = step("workers", root, cache)
    if not options.alone:
        result["compare"] = step("compare", root, cache)
        for name in THEIRS:
            result[name] |= step(f"{name}-memory", root, cache)
            ratios = [b["cpu_s"] / a["cpu_s"] for a, b in zip(rounds["convert"], rounds[name], strict=True)]
            result[f"ratio_cpu_{name}"] = statistics.median(ratios)
            result[f"ratio_worker_{name}"] = result[name]["forked_mb"] / max(
                result["workers"]["forked_mb"], 0.1
            )
    return result


def report(result: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps({"rows": [result]}))
        return
    for name, values in result.items():
        shown = values if isinstance(values, dict) else {"": values}
        print(f"{name}: " + ", ".join(f"{key} {value:,.1f}".strip() for key, value in shown.items()))


if __name__ == "__main__":
    main()
