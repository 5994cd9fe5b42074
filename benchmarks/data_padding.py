"""How much padding does a batch have, and how much of it does bucketing by final size save?

Padded pixels over pixels of the images, by policy and micro-batch, from final sizes alone: nothing is
decoded. DETR's published train transform (800/1333), all else as a training does it:
    python benchmarks/data_padding.py [--data FOLDER] [--images 32768] [--rounds 1] [--tiny] [--json]
FOLDER gives the mix of image sizes; without it, the mix is made up after COCO.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

from datamodules.formats.detect import read
from datamodules.loading.samplers import (
    Bucketing,
    Key,
    StepBatchSampler,
    epoch_order,
    padding_share,
)
from datamodules.transforms.presets import build_transform
from zoo.contract.preprocess import InputContract
from zoo.contract.seeds import derived_seed

BATCH_SIZES = (2, 4, 8, 16)
GLOBAL = 64  # images of a step of DETR's recipes
Size = tuple[int, int]
# share, (h, w): an approximation from memory of COCO's mix, not COCO's table
MIX: tuple[tuple[float, Size], ...] = (
    (0.36, (480, 640)), (0.14, (640, 480)), (0.22, (427, 640)), (0.09, (640, 427)), (0.05, (640, 640)),
    (0.06, (425, 640)), (0.04, (360, 640)), (0.04, (500, 375)),
)  # fmt: skip
CONTRACT = InputContract(resize="shortest", size=(800, 1333))


def image_sizes(folder: Path | None, number: int) -> list[Size]:
    """(h, w) of `number` images drawn from the mix."""
    draw = random.Random(0)
    if folder is None:
        shares, sizes = zip(*MIX, strict=True)
        return draw.choices(sizes, weights=shares, k=number)
    splits = read(folder, verify_sizes=False).splits
    return draw.choices([index.size(row) for index in splits.values() for row in range(len(index))], k=number)


def ratio(
    final_size: Callable[[Key], Size],
    number: int,
    step: int,
    batch_size: int,
    window: int | None,
    epochs: int,
) -> float:
    """Padded over useful pixels of whole epochs, as the sampler cuts them."""
    bucketing = None if window is None else Bucketing(window, final_size)
    sampler = StepBatchSampler(
        number, 0, batch_size=batch_size, accumulation=step // batch_size, bucketing=bucketing
    )
    shares = [padding_share(sampler, final_size, epoch, sampler.num_steps) for epoch in range(epochs)]
    return sum(s.padded for s in shares) / sum(s.useful for s in shares)


def sorted_ratio(
    final_size: Callable[[Key], Size],
    number: int,
    batch_size: int,
    window: int,
    key: Callable[[Size], float | Size],
) -> float:
    """The same with one plain sort in each window, for comparison."""
    sizes = [final_size((0, row)) for row in epoch_order(number, 0, 0)]
    padded = useful = 0
    for begin in range(0, number, window * batch_size):
        own = sorted(sizes[begin : begin + window * batch_size], key=key)
        for batch in (own[i : i + batch_size] for i in range(0, len(own), batch_size)):
            padded += len(batch) * max(h for h, _ in batch) * max(w for _, w in batch)
            useful += sum(h * w for h, w in batch)
    return padded / useful


def main() -> None:
    """Prints a table; with --json one object last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder that zoo reads, for its image sizes")
    parser.add_argument("--images", type=int, default=32768)
    parser.add_argument("--rounds", type=int, default=1, help="epochs")
    parser.add_argument("--tiny", action="store_true", help="sizes that show that it runs, and nothing else")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    number = 512 if options.tiny else options.images
    images = image_sizes(options.data, number)
    transform = build_transform("detr", CONTRACT)
    known: dict[Key, Size] = {}

    def final_size(key: Key) -> Size:
        if key not in known:
            known[key] = transform.final_size(images[key[1]], derived_seed(0, *key))
        return known[key]

    start = time.process_time()
    for row in range(number):
        final_size((0, row))
    each = (time.process_time() - start) / number * 1e6
    policies: list[tuple[str, Callable[[int], float]]] = [
        ("as published", lambda b: ratio(final_size, number, b, b, None, options.rounds)),
        *(
            (f"bucketing {w}", lambda b, w=w: ratio(final_size, number, b, b, w, options.rounds))
            for w in (16, 64, 256)
        ),
        (
            f"bucketing 64, steps of {GLOBAL}",
            lambda b: ratio(final_size, number, GLOBAL, b, 64, options.rounds),
        ),
        ("window 64 sorted by (h, w)", lambda b: sorted_ratio(final_size, number, b, 64, lambda s: s)),
        (
            "window 64 sorted by area",
            lambda b: sorted_ratio(final_size, number, b, 64, lambda s: s[0] * s[1]),
        ),
        (
            "window 64 sorted by aspect",
            lambda b: sorted_ratio(final_size, number, b, 64, lambda s: s[0] / s[1]),
        ),
    ]
    print(
        f"{number} images, sizes of {options.data or 'a made-up mix'}; padded pixels / pixels of the images"
    )
    print("policy".ljust(32) + "".join(f"   b = {b:2d}" for b in BATCH_SIZES))
    rows = []
    for name, policy in policies:
        values = [policy(b) for b in BATCH_SIZES]
        print(name.ljust(32) + "".join(f"{value:9.3f}" for value in values), flush=True)
        rows += [
            {"policy": name, "batch_size": b, "ratio": value}
            for b, value in zip(BATCH_SIZES, values, strict=True)
        ]
    print(f"{each:.0f} us of CPU for the final size of an image")
    if options.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
