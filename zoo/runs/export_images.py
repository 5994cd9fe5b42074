"""The images of an export: what it is compared and scored on, and others that reduced precision learns from."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from datamodules.base import DetectionDataModule
from datamodules.images.decoding import decode
from datamodules.index import AnnotationIndex
from datamodules.loading.datasets import EvaluationDataset
from datamodules.loading.loaders import EvaluationLoader
from datamodules.splits import held_out
from zoo.contract.batch import Batch, unlabelled
from zoo.contract.preprocess import InputContract, image_to_tensor
from zoo.detector import Detector
from zoo.prediction.image_input import read_rgb
from zoo.prediction.masks import sizes_without_padding
from zoo.runs.bench_arguments import made_up_images
from zoo.runs.evaluate import folder_data

COMPARED = 16  # images, of which raw outputs and detections are compared
AT_ONCE = 2  # of them: batches of one are not enough, large ones of DETR's images take gigabytes
CALIBRATED = 64  # images of which int8 learns ranges
LEARNED_SHARE, SEED = 0.2, 0  # of the images of data with one split, and of every draw here


@dataclass
class ExportImages:
    """Images for one certificate.

    Attributes:
        contract: of the exported file's input.
        data: whose val split is scored; None: images are made up.
        learned: index of the images that reduced precision learns from, none of them scored; None where there is
            nothing to learn, or images are made up.
        facts: for the certificate.
    """

    contract: InputContract
    data: DetectionDataModule | None
    learned: AnnotationIndex | None
    facts: dict[str, Any]

    def compared(self) -> Iterator[Batch]:
        """The first images that are scored, or made-up ones, a few at a time."""
        if self.data is None:
            return made_up_batches(self.contract)
        return itertools.islice(_parts(self.data.val_dataloader()), -(-COMPARED // AT_ONCE))

    def pictures(self) -> Iterator[Image.Image]:
        """The images of `compared` before any resize."""
        if self.data is None:
            yield from made_up_pictures()[:COMPARED]
            return
        index = self.data.read().splits["val"]
        for row in range(min(COMPARED, len(index))):
            yield decode(index.images, index.files[row], index.image_id(row), index.size(row))

    def calibration(self) -> Iterator[Batch]:
        """Single images that reduced precision learns from, without padding."""
        if self.learned is None or self.data is None:
            batches = made_up_batches(self.contract)
        else:
            images = EvaluationDataset(self.learned, self.data.label_map, self.contract)
            batches = _parts(EvaluationLoader(images, AT_ONCE, 0))
        singles = (batch.part(image, image + 1) for batch in batches for image in range(len(batch)))
        return (cropped(batch) for batch in singles)


def export_images(
    detector: Detector, data: str | Path | None, contract: InputContract, learns: bool
) -> ExportImages:
    """The images of an export or of its repetition.

    Args:
        detector: that is exported.
        data: folder or address; None: images are made up.
        contract: of the exported file's input.
        learns: whether the precision is learned from images, which then are not scored.

    Raises:
        ValueError, OSError: the data cannot be read, or have too few images.
    """
    if data is None:
        told = {"kind": f"{COMPARED} made up, large spots under noise; AP needs --data", "data": None}
        return ExportImages(
            contract, None, None, told | ({"learned": {"kind": "the same"}} if learns else {})
        )
    loaded = folder_data(data, contract, detector.module)
    loaded.setup("validate")
    scored, learned, rule = loaded.read().splits["val"], None, "all of its val split"
    if learns:
        scored, learned, rule, source = divided(loaded, str(data))
        loaded.replace_split("val", scored)
    facts = {
        "kind": f"the first of those scored of {data}",
        "data": loaded.digest(),
        "scored": {"kind": rule, "images": len(scored), "digest": digest_of(scored)},
    }
    if learned is not None:
        facts["learned"] = {"kind": source, "images": len(learned), "digest": digest_of(learned)}
    return ExportImages(contract, loaded, learned, facts)


def divided(data: DetectionDataModule, place: str) -> tuple[AnnotationIndex, AnnotationIndex, str, str]:
    """(scored images, learned images, what they are each): training images are learned from, where there are some."""
    splits = data.read().splits
    train, val = splits["train"], splits["val"]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(SEED)).tolist()
    rows = list(itertools.islice(unscored(order, train, val), CALIBRATED))
    if rows:
        told = f"{len(rows)} of {len(train)} images of its train split, drawn with seed {SEED}, none of them scored"
        return val, train.take(sorted(rows)), "all of its val split", told
    if len(val) < 2:
        raise ValueError(f"{place} has {len(val)} image; some are learned from and others scored: give more")
    kept, out = held_out(val, LEARNED_SHARE, SEED)
    told = f"the rest: of its only split {LEARNED_SHARE:.0%}, drawn with seed {SEED}, at most {CALIBRATED}"
    return kept, out.take(range(min(len(out), CALIBRATED))), "four fifths of its only split", told


def unscored(rows: list[int], train: AnnotationIndex, val: AnnotationIndex) -> Iterator[int]:
    """The rows of training images that are not scored too, under the same name or as an equal file."""
    names = {str(val.path(row)) for row in range(len(val))}
    sizes: dict[int, list[int]] = {}
    if train.store is None and val.store is None:
        for row in range(len(val)):
            sizes.setdefault(val.path(row).stat().st_size, []).append(row)
    for row in rows:
        path = train.path(row)
        alike = sizes.get(path.stat().st_size, []) if train.store is None else []
        same = str(path) in names or any(path.read_bytes() == val.path(other).read_bytes() for other in alike)
        if not same:
            yield row


def digest_of(index: AnnotationIndex) -> str:
    """sha256 over file names and annotations."""
    digest = hashlib.sha256()
    index.update_digest(digest)
    return digest.hexdigest()


def made_up_batches(contract: InputContract) -> Iterator[Batch]:
    """Images that need no data, as the data path gives them; some stand upright."""
    for first in range(0, COMPARED, AT_ONCE):
        some = made_up_pictures()[first : first + AT_ONCE]
        resized = [contract.resize_image(in_channels(picture, contract)) for picture in some]
        yield unlabelled(resized, [(picture.height, picture.width) for picture in some])


def in_channels(picture: Image.Image, contract: InputContract) -> Image.Image | Tensor:
    """The picture, or for a contract that reads no RGB levels of its channels: those of RGB, again and again."""
    if contract.is_rgb:
        return picture
    rgb = image_to_tensor(picture)
    return rgb[[number % 3 for number in range(contract.channels)]].contiguous()


@functools.cache
def made_up_pictures() -> tuple[Image.Image, ...]:
    """Images that need no data; some stand upright."""
    pictures = [
        picture for encoded in made_up_images() if isinstance(picture := read_rgb(encoded), Image.Image)
    ]
    upright = Image.Transpose.ROTATE_90
    return tuple(p.transpose(upright) if number % 4 == 3 else p for number, p in enumerate(pictures))


def _parts(loader: EvaluationLoader) -> Iterator[Batch]:
    """Batches in parts of a few images."""
    for batch in loader:
        for first in range(0, len(batch), AT_ONCE):
            yield batch.part(first, min(first + AT_ONCE, len(batch)))


def cropped(batch: Batch) -> Batch:
    """A batch of one without the padding that others of its batch asked for."""
    height, width = sizes_without_padding(batch)[0]
    return replace(
        batch,
        images=batch.images[..., :height, :width].contiguous(),
        padding=batch.padding[:, :height, :width],
    )
