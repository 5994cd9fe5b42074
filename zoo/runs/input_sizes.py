"""Sizes of input that a data set gives a network, known from the annotations alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from datamodules.base import DetectionDataModule
from datamodules.transforms.draws import DETR_CROP, DETR_SIDES
from zoo.contract.input_limits import InputLimits, Size
from zoo.contract.preprocess import InputContract, shortest_side_size
from zoo.training.module import DetectionModule


def input_sizes(
    data: DetectionDataModule, recipe_data: Mapping[str, Any], splits: Iterable[str]
) -> set[Size]:
    """(h, w) of what the images of some splits become, each alone in its batch: padding only adds to it.

    Args:
        data: read already.
        recipe_data: the arguments of `data` in the recipe.
        splits: names; those that the data lack are left out. `train` is as its transform makes it.
    """
    contract, read = data.input, data.read().splits
    if contract.resize == "stretch":
        return {contract.size}
    sizes: set[Size] = set()
    for name in splits:
        if name not in read or not len(read[name]):
            continue
        unique = [(int(h), int(w)) for h, w in np.unique(read[name].sizes, axis=0) if h > 0 and w > 0]
        if contract.tiles is not None:
            most = contract.tiles.size
            unique += [(min(h, most[0]), min(w, most[1])) for h, w in unique]
        if name == "train" and recipe_data.get("train_transform") == "detr":
            sizes |= smallest_drawn(contract, unique)
        else:
            sizes |= {contract.resized_size(*size) for size in unique}
    return sizes


def refuse_sizes(module: DetectionModule, data: DetectionDataModule, recipe: Mapping[str, Any]) -> None:
    """Raises ValueError where a split has images that the network of a recipe does not take."""
    limits = module.limits_of(module.init_args)
    sizes = input_sizes(data, recipe["data"]["init_args"], ("train", "val", "test"))
    name = str(recipe.get("about", {}).get("name", "the model"))
    advice = f"use a larger --data.input.size or fewer --model.{module.queries_key}"
    limits.refuse_any(sizes, name, advice)


def smallest_drawn(contract: InputContract, sizes: Iterable[Size]) -> set[Size]:
    """The smallest that DETR's transform makes of images: its shortest side, of the image or of a crop."""
    shapes = {*sizes, DETR_CROP, DETR_CROP[::-1]}
    return {shortest_side_size(*size, DETR_SIDES[0], contract.size[1]) for size in shapes}


def most_places(limits: InputLimits, sizes: Iterable[Size]) -> int | None:
    """The most queries that every one of these inputs can give; None if any number can."""
    fewest = limits.fewest(sizes)
    return None if limits.queries is None or fewest is None else limits.places(fewest)
