"""COCO's panoptic layout: panoptic_<split>.json, a folder of PNG id maps of that name, and the images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from datamodules.formats import coco
from datamodules.formats.panoptic_file import (
    Category,
    PanopticAnnotation,
    PanopticFile,
    SegmentInfo,
    annotation_files,
    colors_of,
    image_folder,
    load,
)
from datamodules.images.files import ImageFolder
from datamodules.images.id_maps import PngFolder, annotation_id
from datamodules.index import AnnotationIndex, Fault, IndexBuilder, shown_path
from datamodules.index.source import Source, image_overlaps
from datamodules.reading.checked_image import add_checked_image
from datamodules.reading.reader import Evidence, Reader, Signs, claimed
from zoo.contract.labels import LabelMap


@dataclass(frozen=True)
class PanopticSource(Source):
    """A `Source` that also knows things and stuff, colours, and the folder of PNG files of each split."""

    is_thing: Mapping[int, bool] = field(default_factory=dict)
    colors: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    pngs: Mapping[str, PngFolder] = field(default_factory=dict)

    def panoptic_label_map(
        self, labels: Literal["contiguous", "category_id"], num_classes: int | None = None
    ) -> LabelMap:
        """The label map with things and colours.

        Args:
            labels: head index = position, or = category id with its holes.
            num_classes: width of a head on category ids; None for the highest id + 1.

        Raises:
            ValueError: if a width is given for contiguous labels.
        """
        if labels == "contiguous" and num_classes is not None:
            raise ValueError(
                f"num_classes {num_classes} with labels: contiguous; there the width is the number of classes: "
                "leave num_classes out, or set labels: category_id"
            )
        ids = list(self.classes)
        names = list(self.classes.values())
        plain = (
            LabelMap.contiguous(names, ids)
            if labels == "contiguous"
            else LabelMap.category_id(names, ids, num_classes)
        )
        known = all(i in self.colors for i in ids)
        return replace(
            plain,
            is_thing=tuple(self.is_thing[i] for i in ids),
            colors=tuple(self.colors[i] for i in ids) if known else None,
        )


def read(root: Path, *, verify_sizes: bool = True) -> PanopticSource:
    """A folder in COCO's panoptic layout.

    Args:
        root: the folder.
        verify_sizes: also decode every PNG and compare it with the json, which takes milliseconds each.

    Raises:
        ValueError: if there is no panoptic json, or one cannot be parsed.
    """
    files = annotation_files(root)
    if not files:
        raise ValueError(
            f"{root} has no panoptic_<split>.json with a folder of PNG files of that name beside it, neither in "
            "annotations/ nor in the folder itself"
        )
    return assemble(root, files, verify=verify_sizes)


def assemble(root: Path, files: Mapping[str, Path], *, verify: bool) -> PanopticSource:
    """All splits under one class list."""
    loaded = {split: load(file) for split, file in files.items()}
    notes: list[Fault] = []
    categories: dict[int, Category] = {}
    for split, content in loaded.items():
        notes += _differences(shown_path(files[split], root), categories, content.categories)
        categories |= {c.id: c for c in content.categories if c.id not in categories}
    unknown = [c.id for c in categories.values() if c.isthing is None]
    if unknown:
        raise ValueError(
            f"{next(iter(files.values()))}: categories {unknown[:4]} do not say isthing (1 or 0); add it to each"
        )
    classes = {i: categories[i].name for i in sorted(categories)}
    splits, pngs = {}, {}
    for split, content in loaded.items():
        splits[split], pngs[split] = read_split(root, files[split], content, classes)
    source = PanopticSource(
        "coco_panoptic",
        root,
        classes,
        splits,
        (*notes, *image_overlaps(root, splits)),
        is_thing={i: bool(categories[i].isthing) for i in classes},
        colors=colors_of(categories, files),
        pngs=pngs,
    )
    if not verify:
        return source
    label_map = source.panoptic_label_map("category_id")
    checked = [f for s, index in splits.items() for f in png_faults(root, index, pngs[s], label_map)]
    return replace(source, notes=(*source.notes, *checked))


def read_split(
    root: Path, file: Path, content: PanopticFile, classes: Mapping[int, str]
) -> tuple[AnnotationIndex, PngFolder]:
    """One json as an index, and the folder of its PNG files; annotation ids are made of the ids of the segments."""
    builder = IndexBuilder(root, classes)
    images = ImageFolder(image_folder(root, file, [i.file_name for i in content.images]))
    folder = file.with_suffix("")
    pngs = ImageFolder(folder)
    others: dict[int, str] = {}
    segmented = _by_image(content, builder, file)
    for image in content.images:
        annotation = segmented.get(image.id)
        if annotation is None:
            builder.exclude_image(image.id)
            message = f"the image has no entry in annotations of {file.name} and is left out; segment it or remove it"
            builder.fault("error", "no_segmentation", image.file_name, image.id, message)
            continue
        if pngs.find(annotation.file_name)[0] is None:
            builder.exclude_image(image.id)
            message = f"there is no such file; image {image.file_name} is left out; put the PNG there"
            builder.fault("error", "missing_png", folder / annotation.file_name, image.id, message)
            continue
        declared = (image.height, image.width) if image.height and image.width else None
        add_checked_image(builder, images, image.file_name, image.id, declared, False)  # type: ignore[arg-type]
        if annotation.file_name != Path(image.file_name).stem + ".png":
            others[image.id] = annotation.file_name
    shown = shown_path(file, root)
    for number, annotation in enumerate(segmented.values(), start=1):
        for segment in annotation.segments_info:
            _add_segment(builder, annotation.image_id, number, segment, shown)
    return builder.build(), PngFolder(str(folder), others)


def read_instances(root: Path, file: Path, source: PanopticSource, split: str) -> AnnotationIndex:
    """The objects of COCO's instance json for the images of a panoptic split, in the order of its rows.

    Raises:
        ValueError: if the file is missing, or does not list every image.
    """
    if not file.is_file():
        raise ValueError(
            f"{file} is missing, and box and mask AP are to be those of its objects; put it there, or set "
            "ap_objects: panoptic to measure that of the segments of things"
        )
    panoptic = source.splits[split]
    wanted = set(panoptic.image_ids.tolist())
    content = coco.load(file)
    classes = {i: name for i, name in source.classes.items() if source.is_thing[i]}
    folder = image_folder(root, file, [str(i.file_name) for i in content.images if i.id in wanted])
    index = coco.read_split(root, file, folder, classes, content=content, verify_sizes=False, only=wanted)
    row_of = {image_id: row for row, image_id in enumerate(index.image_ids.tolist())}
    absent = sorted(wanted - set(row_of))
    if absent:
        raise ValueError(
            f"{file} does not list images {absent[:4]} ({len(absent)} in all) of the panoptic data; use the files "
            "of one release"
        )
    return index.take([row_of[i] for i in panoptic.image_ids.tolist()])


def _by_image(content: PanopticFile, builder: IndexBuilder, file: Path) -> dict[int, PanopticAnnotation]:
    listed = {image.id for image in content.images}
    segmented: dict[int, PanopticAnnotation] = {}
    for annotation in content.annotations:
        if annotation.image_id not in listed:
            message = (
                f"{annotation.file_name} is for image id {annotation.image_id}, which is not listed; it is left "
                "out; list the image or remove the annotation"
            )
            builder.fault("error", "unknown_image", file, annotation.image_id, message)
        elif annotation.image_id in segmented:
            message = (
                f"image id {annotation.image_id} has more than one entry in annotations; the first, "
                f"{segmented[annotation.image_id].file_name}, is taken; remove the others"
            )
            builder.fault("error", "duplicate_segmentation", file, annotation.image_id, message)
        else:
            segmented[annotation.image_id] = annotation
    return segmented


def _add_segment(builder: IndexBuilder, image_id: int, number: int, segment: SegmentInfo, shown: str) -> None:
    before = len(builder.faults)
    builder.add_object(
        image_id,
        segment.bbox,
        segment.category_id,
        annotation_id(number, segment.id),
        area=segment.area,
        crowd=bool(segment.iscrowd),
        file=shown,
    )
    # a fault names a segment by its own id
    builder.faults[before:] = [replace(f, id=segment.id) for f in builder.faults[before:]]


def png_faults(root: Path, index: AnnotationIndex, pngs: PngFolder, label_map: LabelMap) -> Iterable[Fault]:
    """Reads every PNG; a fault for each that cannot be read, has another size, or disagrees with the json."""
    from datamodules.loading.panoptic_truth import (
        read_segmentation,  # imports torch, which other formats need not
    )

    for row in range(len(index)):
        path = pngs.path(index, row)
        file, image_id = shown_path(path, root), index.image_id(row)
        try:
            found = read_segmentation(path, index, row, label_map)
        except ValueError as error:
            yield Fault("error", "bad_png", file, image_id, str(error))
            continue
        two_channels = not bool((found.ids >= 256 * 256).any()) and any(not s.area for s in found.segments)
        hint = (
            "; the PNG has two channels only: is it category and instance instead of ids?"
            if two_channels
            else ""
        )
        for line in found.faults():
            message = (
                f"{line}{hint}; correct the PNG or segments_info, or leave such segments out with skip_broken"
            )
            yield Fault("error", "segments_disagree", file, image_id, message)
        areas = index.objects(row).areas.tolist()
        wrong = [s for s, area in zip(found.segments, areas, strict=True) if s.area and s.area != area]
        for segment in wrong:
            message = (
                f"segments_info says another area than the {segment.area} pixels of the PNG; evaluation of boxes "
                "takes it to tell small from large; write the file again"
            )
            yield Fault("warning", "wrong_area", file, segment.id, message)


def _differences(file: str, known: Mapping[int, Category], found: Iterable[Category]) -> Iterable[Fault]:
    for category in found:
        first = known.get(category.id, category)
        if known and (
            category.id not in known or (first.name, first.isthing) != (category.name, category.isthing)
        ):
            message = (
                f"category {category.id} {category.name!r} is not as in the other splits; give all splits one "
                "class list"
            )
            yield Fault("error", "class_list", file, category.id, message)


def _look(root: Path, before: Sequence[Evidence]) -> Signs:
    # COCO's own folder has instances and panoptic segments
    return Signs([] if claimed(before, "coco") else list(annotation_files(root).values()), True)


FORMAT = Reader(
    name="coco_panoptic",
    look=_look,
    read=read,
    title="COCO panoptic",
    places="annotations/panoptic_{train,val}.json, a folder of PNG files beside each, images",
)
