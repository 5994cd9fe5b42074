"""Training images as the network will see them: some images of a folder, each in several epochs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.base import DetectionDataModule
from datamodules.shards.reader import place_of
from zoo.contract.batch import collate
from zoo.pictures.detections import training_gallery
from zoo.runs import augmenting, building, mask_data, recipes, schema
from zoo.runs.finetune import DATA_KEEPS
from zoo.runs.show import chosen

DEFAULT_RECIPE = "rt_detr/finetune"


@dataclass(frozen=True)
class Augmented:
    """A picture of training images.

    Attributes:
        picture: a row for each image, a column for each epoch.
        files: images that are shown, of the first epoch; of a training in tiles those that they are tiles of.
        total: images of the training split, or tiles and whole images of an epoch.
        epochs: the first and the last that are shown.
        notes: what the recipe's own operations do, and what is repeated.
    """

    picture: Image.Image
    files: list[str]
    total: int
    epochs: tuple[int, int]
    notes: list[str]


def show_augmented(
    folder: str | Path,
    *,
    config: recipes.Given = DEFAULT_RECIPE,
    augmentations: augmenting.Given | None = None,
    count: int = 4,
    epoch: int = 0,
    epochs: int = 4,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Augmented:
    """Images after augmentation, resize and normalisation, which is undone for the eye, with their boxes and masks.

    They are the very pixels that a training by the recipe gets in these epochs with this seed.

    Args:
        folder: the data set; shards also by their address.
        config: recipe by name or path, also that of a run folder.
        augmentations: instead of the recipe's own operations: a list, or the YAML file of one.
        count: of images, those with objects first.
        epoch: the first, from 0.
        epochs: how many.
        seed: of the training; None is the recipe's.
        overrides: dotted keys of the recipe and their values.

    Raises:
        ValueError: the data or the recipe are at fault, or an operation cannot be used.
    """
    recipe = recipes.read(config)
    data = _data(recipe, folder, augmentations, seed, overrides or {})
    pictures = data.training_dataset().pictures
    numbers = chosen(pictures.index, count, data.seed)
    if data.tile_items is not None:  # tiles and whole images, of which an epoch may have others than the next
        numbers = sorted(np.random.default_rng(data.seed).permutation(len(pictures))[:count].tolist())
    shown = range(epoch, epoch + epochs)
    files = {(n, e): pictures.index.files[pictures.row(e, n)] for n in numbers for e in shown}
    samples = [data.augmented(n, e) for n, e in files]
    names = [f"{Path(file).name}, epoch {e}" for (_, e), file in files.items()]
    picture = training_gallery(
        data.input.normalize(collate(samples)), data.label_map, data.input, len(samples), epochs, names
    )
    first = [files[n, epoch] for n in numbers]
    return Augmented(picture, first, len(pictures), (shown[0], shown[-1]), augmenting.notes_on(data))


def _data(
    recipe: recipes.Recipe, folder: str | Path, augmentations: augmenting.Given | None, seed: int | None,
    overrides: Mapping[str, Any],
) -> DetectionDataModule:  # fmt: skip
    """The recipe's data module with its images taken from the folder."""
    place, given = place_of(folder), recipe["data"]["init_args"]
    common: dict[str, Any] = {k: v for k, v in given.items() if k in (*mask_data.KEPT, *DATA_KEEPS)}
    common["num_workers"] = 0
    if seed is not None:
        common["seed"] = seed
    if augmentations is not None:
        common["augmentations"] = augmenting.block_of(augmentations)
    learns_masks = schema.module_class(recipe).learns_masks
    block = {"class_path": mask_data.OUTLINES, "init_args": {"root": place, **common}}
    if learns_masks or mask_data.is_panoptic(place):
        block = mask_data.data_block(place, common)
    changed = {**recipe, "data": block}
    recipes.apply_overrides(changed, overrides)
    data = building.Recipe(changed).datamodule()
    data.setup("fit")
    whole = changed["model"]["init_args"]["schedule"]["global_batch_size"]
    data.plan_steps(min(whole, data.images_of_epoch), 1, 0)
    return data
