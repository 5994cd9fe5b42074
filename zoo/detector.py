"""A trained model that takes images and gives named boxes."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, cast, overload

import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from zoo.contract.batch import RLE, Batch, Detections, Predictions, unlabelled
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.contract.segments import PanopticSegmentation, Segment
from zoo.contract.tiles import Tiles, parse_tiles
from zoo.pictures.detections import paint_detections
from zoo.pictures.segments import paint_panoptic
from zoo.prediction.image_input import ImageInput, read_input, read_rgb, size_of
from zoo.prediction.masks import sizes_without_padding
from zoo.prediction.postprocess import best_classes
from zoo.prediction.tiles.merge import CREDIBLE
from zoo.prediction.tiles.views import detect_in_tiles
from zoo.registry.manifest import Manifest, Thresholds
from zoo.registry.pull import Pulled
from zoo.registry.weights import Released, ready_module, released_from_checkpoint, released_from_folder
from zoo.runtimes.module import ExportedNetwork, exported_module, open_session
from zoo.training.module import DetectionModule

DEFAULT_THRESHOLD = 0.3  # of a detection
NO_TILES = "none"
GivenTiles = int | str | tuple[int, int] | Tiles
_TILES_AT_ONCE = 8  # on a GPU; a CPU is as fast with one


@dataclass(frozen=True)
class Prediction:
    """Detections of one image above a threshold, best first; lists of the same length.

    Boxes are (x0, y0, x1, y1) in pixels of the image, clipped to it. `source_ids` are the class ids
    of the data that the model was trained on (COCO's 1..90 for a COCO model), `labels` their names.

    Attributes:
        masks: of the detections, as COCO's compressed run lengths {"size": [h, w], "counts": str}; None of a
            model without masks.
        panoptic: one segment for every pixel, ids from 1; 0 is no segment. None of a model without a panoptic
            rule. Chosen from all queries with `panoptic_threshold`, so it does not depend on the detections.
        panoptic_threshold: the score above which a query may be a segment.
        tiles: how the image was cut; None if it was looked at as a whole.
        views: tiles, and the whole image.
        class_thresholds: of classes that have another threshold than `threshold`, by their names.
        file: the image, if it was given by its path; a notebook shows it with what was found.
    """

    scores: list[float]
    labels: list[str]
    source_ids: list[int]
    boxes_xyxy: list[tuple[float, float, float, float]]
    size: tuple[int, int]  # (height, width)
    threshold: float
    model: str
    label_map: LabelMap
    masks: list[dict[str, Any]] | None = None
    panoptic: PanopticSegmentation | None = None
    panoptic_threshold: float | None = None
    tiles: Tiles | None = None
    views: int = 1
    file: str | None = field(default=None, compare=False)
    class_thresholds: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.scores)

    def only(self, classes: Collection[str] | None = None, most: int | None = None) -> Prediction:
        """The best `most` detections of these classes; None for all of them. Segments stay as they are."""
        kept = [row for row, label in enumerate(self.labels) if classes is None or label in classes][:most]
        return replace(
            self,
            scores=[self.scores[row] for row in kept],
            labels=[self.labels[row] for row in kept],
            source_ids=[self.source_ids[row] for row in kept],
            boxes_xyxy=[self.boxes_xyxy[row] for row in kept],
            masks=None if self.masks is None else [self.masks[row] for row in kept],
        )

    def to_dict(self, *, with_png: bool = False) -> dict[str, Any]:
        """Plain values for a prediction file, with the label map that the ids belong to.

        Args:
            with_png: also the id map of segments: a PNG in base64, for whoever gets no file beside it.
        """
        rows = zip(self.labels, self.source_ids, self.scores, self.boxes_xyxy, strict=True)
        detections: list[dict[str, Any]] = [
            {"label": label, "source_id": source_id, "score": score, "box_xyxy": list(box)}
            for label, source_id, score, box in rows
        ]
        for detection, mask in zip(detections, self.masks or (), strict=False):
            detection["mask"] = mask
        document: dict[str, Any] = {
            "model": self.model,
            "height": self.size[0],
            "width": self.size[1],
            "threshold": self.threshold,
            "detections": detections,
            "label_map": self.label_map.to_dict(),
        }
        if self.tiles is not None:
            cut = {"size": list(self.tiles.size), "overlap": self.tiles.overlap, "views": self.views}
            document["tiles"] = cut
        if self.class_thresholds:
            document["class_thresholds"] = dict(self.class_thresholds)
        if self.panoptic is not None:
            document["panoptic"] = {"threshold": self.panoptic_threshold, "segments": self._segments()}
            if with_png:
                png, _ = self.panoptic.to_coco(self.label_map, 1, "")
                document["panoptic"]["png"] = base64.b64encode(png).decode("ascii")
        return document

    def _segments(self) -> list[dict[str, Any]]:
        """What each segment is; where it is tells the id map, which is a PNG and not JSON."""
        assert self.panoptic is not None
        names, source = self.label_map.name_of_head, self.label_map.source_of_head
        return [
            {
                "id": s.id,
                "label": names[s.label],
                "source_id": source[s.label],
                "is_thing": s.is_thing,
                "area": s.area,
                "score": s.score,
            }
            for s in self.panoptic.segments
        ]

    def binary_masks(self) -> Tensor:
        """[n, h, w] bool masks of the detections.

        Raises:
            ValueError: the model predicts none.
        """
        if self.masks is None:
            raise ValueError(f"{self.model} predicts no masks; use a model with a mask head")
        decoded = [torch.from_numpy(coco_mask.decode(mask)).bool() for mask in self.masks]
        return torch.stack(decoded) if decoded else torch.zeros(0, *self.size, dtype=torch.bool)

    def to_detections(self) -> Detections:
        """The same as tensors, labels as head indices, for drawing."""
        head = self.label_map.head_of_source
        return Detections(
            torch.tensor(self.scores),
            torch.tensor([head[i] for i in self.source_ids], dtype=torch.int64),
            torch.tensor(self.boxes_xyxy).reshape(-1, 4),
            None if self.masks is None else tuple(self.masks),
        )

    def paint(
        self, image: ImageInput, *, allow_private: bool = False, longest: int | None = None
    ) -> Image.Image:
        """The image that was predicted on, with its segments, else with its detections and their masks.

        Args:
            image: as of `Detector.predict`.
            allow_private: likewise.
            longest: longer side of the picture; None keeps the image's own, enlarged where too small to read on.
        """
        rgb = read_rgb(image, allow_private)
        if self.panoptic is not None:
            return paint_panoptic(rgb, self.panoptic, self.label_map, longest)
        lowest = min([self.threshold, *self.class_thresholds.values()])
        return paint_detections(rgb, self.to_detections(), self.label_map, lowest, longest)

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows; its text where there is no file to read the image from."""
        if self.file is None or not os.path.isfile(self.file):
            return None
        buffer = io.BytesIO()
        self.paint(self.file).save(buffer, "PNG")
        return buffer.getvalue()


class ReadyImage(NamedTuple):
    """An image as `Detector.predict_together` takes it.

    Attributes:
        resized: [C, H, W] uint8, as the network takes it; the image itself of a model that cuts it into tiles.
        size: (h, w) of the image.
    """

    resized: Image.Image | Tensor
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of `resized`; images of one shape may share a batch."""
        return tuple(self.resized.shape) if isinstance(self.resized, Tensor) else size_of(self.resized)


class Detector:
    """A module in evaluation mode with the label map and input contract it was trained with.

    Attributes:
        manifest: of a model of a registry; None for a checkpoint or an exported file.
        thresholds: from which detections are shown by default: the manifest's, the run's or the exported file's; None:
            `DEFAULT_THRESHOLD` holds.
    """

    def __init__(
        self,
        module: DetectionModule,
        name: str,
        manifest: Manifest | None = None,
        thresholds: Thresholds | None = None,
    ) -> None:
        if module.label_map is None or module.input is None:
            raise ValueError(f"{name} has no label map or input contract; load it with zoo.load")
        self.module = module.eval()
        self.name = name
        self.label_map: LabelMap = module.label_map
        self.input: InputContract = module.input
        self.manifest = manifest
        if thresholds is None and manifest is not None and isinstance(manifest.thresholds, Thresholds):
            thresholds = manifest.thresholds
        self.thresholds = thresholds

    @property
    def default_threshold(self) -> float:
        """From which detections are shown, but those of classes in `thresholds.classes`."""
        return DEFAULT_THRESHOLD if self.thresholds is None else self.thresholds.all

    @property
    def runtime(self) -> str:
        """What computes the network: `pytorch`, or for an exported file `onnxruntime`, `openvino` or `transformers`."""
        return self.module.runtime

    @classmethod
    def from_released(cls, released: Released, name: str, thresholds: Thresholds | None = None) -> Detector:
        """With weights that were read before."""
        return cls(ready_module(released), name, thresholds=thresholds)

    @classmethod
    def from_pulled(cls, pulled: Pulled) -> Detector:
        """With the files of a pulled version."""
        name = f"{pulled.manifest.name}:{pulled.manifest.version}"
        released = released_from_folder(pulled.folder, pulled.manifest)
        return cls(ready_module(released), name, pulled.manifest)

    @classmethod
    def from_exported(cls, path: str | Path) -> Detector:
        """With an exported file, which another runtime than PyTorch computes.

        Raises:
            ValueError: it is damaged, no export of the zoo, or its runtime is not installed.
        """
        session = open_session(Path(path))
        return cls(exported_module(session), str(path), thresholds=session.facts.thresholds)

    @classmethod
    def from_checkpoint(cls, path: str | Path, thresholds: Thresholds | None = None) -> Detector:
        """With the released weights of a training checkpoint, registered or not."""
        return cls.from_released(released_from_checkpoint(path), str(path), thresholds)

    def to(self, device: torch.device | str) -> Detector:
        """Moves the module; returns itself."""
        self.module.to(device)
        return self

    @overload
    def predict(
        self,
        image: ImageInput,
        threshold: float | None = None,
        *,
        tiles: GivenTiles | None = None,
        tile_overlap: float | None = None,
        allow_private: bool = False,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        image: list[ImageInput] | tuple[ImageInput, ...],
        threshold: float | None = None,
        *,
        tiles: GivenTiles | None = None,
        tile_overlap: float | None = None,
        allow_private: bool = False,
    ) -> list[Prediction]: ...

    def predict(
        self,
        image: ImageInput | list[ImageInput] | tuple[ImageInput, ...],
        threshold: float | None = None,
        *,
        tiles: GivenTiles | None = None,
        tile_overlap: float | None = None,
        allow_private: bool = False,
    ) -> Prediction | list[Prediction]:
        """Detections with a score of at least `threshold`, with masks and segments where the model has them.

        Each image is alone in its batch, so that no padding changes what is found.

        Args:
            image: path, http(s) address or data URI; encoded bytes; PIL image; numpy array of uint8 [h, w, 3] in
                RGB order (OpenCV's BGR is turned by `image[:, :, ::-1]`) or grey [h, w]; tensor of uint8 RGB
                [3, h, w]; of a model for other channels or with a scale, arrays [h, w, C] and tensors [C, h, w] of
                any numbers. A list of these gives a list of predictions.
            threshold: in [0, 1]. None is what `thresholds` say, by class where they do, or else 0.3; and for
                panoptic segments the threshold of the model's own rule, which is higher (0.85 in the published
                models). A number holds for all.
            tiles: side in pixels of the image, or (height, width): the image is cut into tiles, each and the whole
                image are looked at, and what is found is merged over the seams. None: as the model was trained;
                `none`: not at all.
            tile_overlap: of tiles of another size than the model's, as a share of their side; None is 0.2.
            allow_private: whether addresses may be of this machine, of its network, and with any port.

        Raises:
            FileNotFoundError: no such file.
            ConnectionError: an address that does not answer.
            ValueError: not an image, an array of another shape or type, a threshold outside [0, 1], tiles that are
                none or of a model that predicts masks.
        """
        cut = self.tiles_of(tiles, tile_overlap)
        lowest, own = self._lowest(threshold)
        if isinstance(image, (list, tuple)):
            given = NO_TILES if cut is None else cut
            return [self.predict(one, threshold, tiles=given, allow_private=allow_private) for one in image]
        rgb = read_input(image, self.input, allow_private)
        if cut is None:
            (found,) = self._together([self._resized(rgb)], [threshold])
        else:
            found = self._in_tiles(rgb, cut, lowest, own)
        if self.input.is_rgb and isinstance(image, (str, os.PathLike)) and os.path.isfile(image):
            return replace(found, file=os.path.abspath(image))
        return found

    def ready(self, image: ImageInput) -> ReadyImage:
        """Reads and resizes an image for `predict_together`; no work of the network, so that any thread may.

        Raises:
            FileNotFoundError, ConnectionError, ValueError: as `predict`.
        """
        rgb = read_input(image, self.input)
        return ReadyImage(rgb, size_of(rgb)) if self.input.tiles is not None else self._resized(rgb)

    @property
    def takes_several(self) -> bool:
        """Whether `predict_together` computes several images of one size at once: neither masks nor tiles."""
        if self.module.instances is not None or self.input.tiles is not None:
            return False
        network = self.module.network
        return not isinstance(network, ExportedNetwork) or network.takes_any_number

    def predict_together(
        self, images: Sequence[ReadyImage], thresholds: Sequence[float | None]
    ) -> list[Prediction]:
        """As `predict` of each image with its threshold, but for the last digits: sums of a batch have another order.

        Args:
            images: all resized to one size, so that there is no padding; one if not `takes_several`.
            thresholds: of each, as of `predict`.

        Raises:
            ValueError: several images that cannot share a batch; a threshold outside [0, 1].
        """
        if len({image.shape for image in images}) > 1:
            raise ValueError("images of several sizes share no batch: padding would change what is found")
        if len(images) > 1 and not self.takes_several:
            raise ValueError(f"{self.name} takes one image at a time")
        if self.input.tiles is not None:
            (image,), (threshold,) = images, thresholds
            return [self._in_tiles(image.resized, self.input.tiles, *self._lowest(threshold))]
        return self._together(images, thresholds)

    def _lowest(self, threshold: float | None) -> tuple[float, Mapping[str, float]]:
        """The lowest score that is shown, and that of classes that have their own."""
        lowest = self.default_threshold if threshold is None else threshold
        if isinstance(lowest, bool) or not isinstance(lowest, Real) or not 0 <= lowest <= 1:
            raise ValueError(f"threshold is {threshold!r}; scores are numbers between 0 and 1")
        return lowest, self.own_thresholds(threshold)

    def own_thresholds(self, threshold: float | None) -> Mapping[str, float]:
        """Of classes that have their own, by names; a threshold that is given holds for all."""
        return {} if threshold is not None or self.thresholds is None else self.thresholds.classes

    def _resized(self, rgb: Image.Image | Tensor) -> ReadyImage:
        return ReadyImage(self.input.resize_image(rgb), size_of(rgb))

    def tiles_of(self, given: GivenTiles | None, overlap: float | None = None) -> Tiles | None:
        """The tiles that `predict` cuts an image into, by its arguments and the model; None for none.

        Raises:
            ValueError: they are no tiles, or the model predicts masks.
        """
        tiles = self.input.tiles if given is None else given
        if tiles is None or tiles == NO_TILES:
            if overlap is not None:
                raise ValueError("tile_overlap belongs to tiles, and there are none; give their side too")
            return None
        if not isinstance(tiles, Tiles):
            tiles = parse_tiles(tiles, overlap)
        elif overlap is not None:
            tiles = replace(tiles, overlap=overlap)
        refuse_masks_in_tiles(self.module, self.name)
        return tiles

    def _in_tiles(
        self, rgb: Image.Image | Tensor, tiles: Tiles, usual: float, own: Mapping[str, float]
    ) -> Prediction:
        device = self.module.device
        at_once = _TILES_AT_ONCE if device.type != "cpu" and self.runtime == "pytorch" else 1
        detections, views = detect_in_tiles(
            rgb, self.input.with_tiles(tiles), lambda batch: self.module.detect(batch.to(device)), at_once=at_once,
            lowest=CREDIBLE * min([usual, *own.values()]),
        )  # fmt: skip
        return replace(self._named(detections, usual, own, size_of(rgb)), tiles=tiles, views=views)

    def _together(self, images: Sequence[ReadyImage], thresholds: Sequence[float | None]) -> list[Prediction]:
        """Of images whose resized sizes are equal; of one if there are masks."""
        resized = [cast(Tensor, image.resized) for image in images]
        batch = unlabelled(resized, [image.size for image in images]).to(self.module.device)
        if self.module.instances is not None:
            return [self._with_masks(batch, *thresholds)]
        rows = zip(self.module.detect(batch), images, thresholds, strict=True)
        return [self._named(found, *self._lowest(threshold), image.size) for found, image, threshold in rows]

    def _with_masks(self, batch: Batch, threshold: float | None) -> Prediction:
        assert self.module.instances is not None
        usual, own = self._lowest(threshold)
        predictions = self.module.predictions(batch)
        sizes = sizes_without_padding(batch)
        above = queries_above(predictions, min([usual, *own.values()]))
        detections = self.module.instances(above, sizes, batch.original_sizes)[0]
        found = self._named(detections, usual, own, batch.original_sizes[0])
        rule = self.module.panoptic
        if rule is None:
            return found
        rule = rule if threshold is None else replace(rule, score_threshold=threshold)
        segments = rule(predictions, sizes, batch.original_sizes, self.label_map.things)[0]
        return replace(
            found,
            panoptic=counted_from_one(segments, self.label_map),
            panoptic_threshold=rule.score_threshold,
        )

    def _named(
        self, detections: Detections, threshold: float, own: Mapping[str, float], size: tuple[int, int]
    ) -> Prediction:
        """Names and source ids; a head index that no class has (a hole of raw ids) is left out."""
        scores, heads, boxes = (t.detach().cpu() for t in detections[:3])
        limit = boxes.new_tensor([size[1], size[0], size[1], size[0]])
        boxes = torch.minimum(boxes.clamp(min=0), limit)
        source, names = self.label_map.source_of_head, self.label_map.name_of_head
        rows = [
            (row, score, head, tuple(box))
            for row, (score, head, box) in enumerate(
                zip(scores.tolist(), heads.tolist(), boxes.tolist(), strict=True)
            )
            if head in source and score >= own.get(names[head], threshold)
        ]
        masks = detections.masks
        return Prediction(
            scores=[score for _, score, _, _ in rows],
            labels=[names[head] for _, _, head, _ in rows],
            source_ids=[source[head] for _, _, head, _ in rows],
            boxes_xyxy=[box for _, _, _, box in rows],
            size=size,
            threshold=threshold,
            model=self.name,
            label_map=self.label_map,
            masks=None if masks is None else [_plain(masks[row]) for row, _, _, _ in rows],
            class_thresholds=own,
        )


def refuse_masks_in_tiles(module: DetectionModule, name: str) -> None:
    """Raises ValueError for a model with masks: only boxes are merged over seams."""
    if module.instances is not None:
        raise ValueError(
            f"{name} predicts masks, and over the seams of tiles only boxes are merged; leave tiles out (none), or "
            "take a model without masks"
        )


def queries_above(predictions: Predictions, threshold: float) -> Predictions:
    """Of one image, the queries whose best class but the last, "no object", scores that much.

    Masks of the others, at the size of the image, would be made to be thrown away.
    """
    scores, _, order = best_classes(predictions.logits)
    kept = order[0, scores[0] >= threshold].sort().values
    masks = predictions.masks
    assert masks is not None

    def of_kept(image: Tensor, query: Tensor) -> Tensor:
        return masks(image, kept[query])

    return predictions._replace(
        logits=predictions.logits[:, kept], boxes=predictions.boxes[:, kept], masks=of_kept
    )


def counted_from_one(found: PanopticSegmentation, label_map: LabelMap) -> PanopticSegmentation:
    """The same with ids 1, 2, ..., so that 0 is void and nothing else, as readers of COCO's format expect.

    A segment of a head index that no class has (a hole of raw ids) becomes void.
    """
    ids = torch.zeros_like(found.ids)
    segments: list[Segment] = []
    for segment in found.segments:
        if segment.label in label_map.source_of_head:
            number = len(segments) + 1
            ids[found.ids == segment.id] = number
            segments.append(segment._replace(id=number))
    return PanopticSegmentation(ids, tuple(segments))


def _plain(mask: RLE) -> dict[str, Any]:
    """Run lengths as text, which JSON can hold and pycocotools reads."""
    return {"size": [int(side) for side in mask["size"]], "counts": mask["counts"].decode("ascii")}
