"""How fast does `zoo data check` look at images, and what memory does it need for it?

Synthetic photographs of 640x480, JPEG of about 110 kB, from a warm page cache. In every round, in turns: a
plain loop of PIL (open, load), our probe in this process, our probe in two spawned processes. The probe tells
damage, hashes the bytes, and makes the thumbnail for leaks, which the PIL loop does not. CPU time counts
children; wall time is given too, for that is what processes buy.

    python benchmarks/data_check.py --images 3000 --rounds 5
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.images.probe import GRID, probe_all
from datamodules.index.image_store import Folder

DISTINCT = 48  # pictures; the files repeat them, for decoding does not know


def photograph(seed: int) -> bytes:
    """Large and small structure with noise: compresses about as a photograph does."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (640, 480))
    for cells in (5, 20, 80, 300):
        layer = Image.fromarray(rng.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8))
        picture = Image.blend(picture, layer.resize((640, 480), Image.Resampling.BICUBIC), 0.4)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_set(root: Path, images: int) -> list[str]:
    """A COCO folder, nine images in ten for training; the names of its files."""
    files = [photograph(seed) for seed in range(min(DISTINCT, images))]
    names = []
    for split, count in (("train", images - images // 10), ("val", images // 10)):
        (root / split).mkdir(parents=True)
        entries, objects = [], []
        for k in range(count):
            (root / split / f"{k:06}.jpg").write_bytes(files[k % len(files)])
            names.append(f"{split}/{k:06}.jpg")
            entries.append({"id": k, "file_name": f"{k:06}.jpg", "width": 640, "height": 480})
            for j in range(7):
                box = [10 * j + k % 400, 20 * j, 60, 40 + j]
                objects.append(
                    {"id": 7 * k + j, "image_id": k, "category_id": 1 + j, "bbox": box, "area": 900}
                )
        classes = [{"id": 1 + j, "name": f"class {j}"} for j in range(7)]
        (root / "annotations").mkdir(exist_ok=True)
        content = {"images": entries, "annotations": objects, "categories": classes}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return names


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """(CPU seconds of this process and its ended children, wall seconds)."""

    def spent() -> float:
        both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in both)

    cpu, wall = spent(), time.perf_counter()
    work()
    return spent() - cpu, time.perf_counter() - wall


def pil_loop(root: Path, names: list[str]) -> None:
    for name in names:
        with Image.open(root / name) as image:
            image.load()


def leak_search(train: int, val: int) -> tuple[float, float]:
    """CPU and wall of the search for near duplicates among random thumbnails."""
    from datamodules.doctor.duplicates import leaks
    from datamodules.doctor.image_files import SplitProbes

    def some(number: int, seed: int) -> SplitProbes:
        thumbnails = np.random.default_rng(seed).integers(0, 256, (number, GRID, GRID), dtype=np.uint8)
        digests = np.zeros(number, dtype="V16")
        return SplitProbes(digests, thumbnails, {})

    first, second = some(train, 1), some(val, 2)
    return measured(lambda: leaks(first, second))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--leak-train", type=int, default=118_000)
    parser.add_argument("--leak-val", type=int, default=5_000)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    # spawned workers import this file too: what needs torch is imported where it is used, as in zoo.cli
    from datamodules.doctor import examine

    if options.tiny:
        options.images, options.leak_train, options.leak_val = 40, 300, 50
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = write_set(root, options.images)
        store = Folder(str(root))
        ways: dict[str, Callable[[], object]] = {
            "PIL loop": lambda: pil_loop(root, names),
            "probe, this process": lambda: list(probe_all(store, names, 0)),
            "probe, 2 processes": lambda: list(probe_all(store, names, 2)),
            "whole check, 2 processes": lambda: examine(root, workers=2),
            "whole check, --quick": lambda: examine(root, quick=True),
        }
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, work in ways.items():
                times[way].append(measured(work))
    rows = []
    for way, pairs in times.items():
        cpu, wall = (statistics.median(pair[k] for pair in pairs) for k in (0, 1))
        base = times["PIL loop"]
        rows.append({
            "way": way,
            "cpu_ms_per_image": 1e3 * cpu / len(names),
            "images_per_second": len(names) / wall,
            "cpu_over_pil": statistics.median(a[0] / b[0] for a, b in zip(pairs, base, strict=True)),
            "wall_over_pil": statistics.median(a[1] / b[1] for a, b in zip(pairs, base, strict=True)),
        })  # fmt: skip
    cpu, wall = leak_search(options.leak_train, options.leak_val)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    search = {
        "train": options.leak_train,
        "val": options.leak_val,
        "cpu_s": cpu,
        "wall_s": wall,
        "peak_mb": memory,
    }
    for row in rows:
        speed = f"{row['cpu_ms_per_image']:7.2f} ms CPU an image  {row['images_per_second']:7.0f} images/s"
        print(
            f"{row['way']:26} {speed}  CPU {row['cpu_over_pil']:.2f}x, wall {row['wall_over_pil']:.2f}x of PIL"
        )
    print(
        f"near duplicates, {search['train']} x {search['val']}: {cpu:.1f} s CPU, {wall:.1f} s; peak {memory:.0f} MB"
    )
    if options.json:
        print(json.dumps({"rows": rows, "search": search}))


if __name__ == "__main__":
    main()
