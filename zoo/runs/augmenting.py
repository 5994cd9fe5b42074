"""Own augmentations and repeated images of a fine-tuning: read from a file, tried on some images, and told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.augmentations.block import Entry, spelled
from datamodules.base import DetectionDataModule
from zoo.runs.console import counted
from zoo.storage.plain_yaml import described, read_yaml

TRIED = 24  # images that the operations are tried on before a training

Given = str | Path | Sequence[Any]  # a file, or the list itself


def block_of(given: Given) -> list[Any]:
    """The list for `data.augmentations`.

    Raises:
        ValueError: a file that holds no list, alone or under `augmentations`.
        FileNotFoundError: there is no such file.
    """
    if not isinstance(given, (str, Path)):
        return list(given)
    path = Path(given).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"--augmentations {str(given)!r:.80}: there is no such file")
    found = read_yaml(path)
    if isinstance(found, dict) and set(found) == {"augmentations"}:
        found = found["augmentations"]
    if not isinstance(found, list):
        raise ValueError(
            f"{path} holds {described(found)}; it is a list of operations, as in "
            "[albumentations.RandomRain: {p: 0.2}, train_transform]"
        )
    return found


def notes_on(data: DetectionDataModule) -> list[str]:
    """What the recipe's own operations do to the first images, and what `balance` repeats.

    Raises:
        ValueError: an operation fails, or does what no training can use; names it and the image.
    """
    notes = [] if data.augmentations is None else _tried(data)
    if data.balance is not None:
        label_map, repeats = data.label_map, data.repeats
        if repeats is None:
            notes.append(f"balance {data.balance:g}: no class is in so few images; nothing is repeated")
        else:
            what = "images" if data.tile_items is None else "tiles and whole images"
            notes += repeats.lines(label_map.names, label_map.source_ids, what)
    return notes


def _tried(data: DetectionDataModule) -> list[str]:
    assert data.augmentations is not None
    dataset = data.training_dataset()
    got: dict[Entry, int] = defaultdict(int)
    left: dict[Entry, int] = defaultdict(int)

    def watch(entry: Entry, before: int, after: int) -> None:
        got[entry] += before
        left[entry] += after

    rows = np.linspace(0, len(dataset) - 1, min(TRIED, len(dataset)), dtype=np.int64).tolist()
    for row in rows:
        dataset.watched((data.strongest_epoch(), row), watch)
    lines = [f"augmentations: {spelled(data.augmentations.entries)}; then the resize of the input"]
    dropping = [
        f"{entry.name} {got[entry] - left[entry]} of {got[entry]}"
        for entry in got
        if left[entry] < got[entry]
    ]
    if dropping:
        lines.append(
            f"objects dropped in {counted(len(rows), 'image')} for want of area: {', '.join(dropping)}"
        )
    return lines
