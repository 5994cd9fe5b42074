"""Evaluation in tiles: each image as its views, one after the other, of which its detections are merged."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Dataset, Sampler

from datamodules.index import AnnotationIndex
from datamodules.loading.pictures import LastImage, cropped
from datamodules.loading.truth import Truth
from datamodules.tiling.cutting import cut_annotations, cut_targets
from datamodules.transforms.targets import resized_targets
from zoo.contract.batch import Piece, Sample
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract

ViewKey = tuple[int, int]  # (image row, number of the view)


class ViewBatchSampler(Sampler[list[ViewKey]]):
    """The views of every image of a rank in order: a batch holds views of one image, all of one size."""

    def __init__(self, index: AnnotationIndex, input: InputContract, rows: range, batch_size: int) -> None:
        self._batches: list[tuple[int, int, int]] = []  # row, first view, views
        for row in rows:
            first = 0
            for views in input.view_batches(*index.size(row), batch_size):
                self._batches.append((row, first, len(views)))
                first += len(views)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[ViewKey]]:
        for row, first, views in self._batches:
            yield [(row, view) for view in range(first, first + views)]


class TiledEvaluationDataset(Dataset[Sample]):
    """Views after the input contract's resize. Each has the annotations of its tile, the last also the image's.

    Args:
        index: of the split.
        label_map: of the data.
        input: its `tiles` are not None.
        truth: reads the ground truth.
        visible: share of an object's area below which a tile has it as a crowd.
    """

    def __init__(
        self, index: AnnotationIndex, label_map: LabelMap, input: InputContract, truth: Truth, visible: float
    ) -> None:
        self.index = index
        self._label_map = label_map
        self._input = input
        self._truth = truth
        self._visible = visible
        self._decoded = LastImage(index)

    def __len__(self) -> int:
        return len(self.index)

    def batches(self, batch_size: int, world_size: int, rank: int) -> ViewBatchSampler:
        """What a rank evaluates together: whole images are shared out, so each is merged where it was seen."""
        return ViewBatchSampler(self.index, self._input, range(rank, len(self.index), world_size), batch_size)

    def __getitem__(self, key: ViewKey) -> Sample:
        row, number = key
        size, tiles = self.index.size(row), self._input.tiles
        assert tiles is not None
        views = tiles.views(*size)
        tile = views[number]
        known = self._truth.evaluated(self.index, row, self._label_map)
        cut = cut_targets(known.targets, tile, self._visible).targets
        image = self._input.resize_image(cropped(self._decoded.read(row, self._input), tile))
        labels, boxes = resized_targets(cut, tile.size, (image.shape[1], image.shape[2]), min_size=0.0)
        last = number == len(views) - 1
        return Sample(
            image,
            labels,
            boxes,
            self.index.image_id(row),
            tile.size,
            annotations=cut_annotations(known.annotations, tile, self._visible),
            piece=Piece(tile, len(views), size, known.annotations if last else None),
        )
