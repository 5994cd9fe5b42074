"""Modules by the names that they had before folders became the layers: they import still, with a warning.

One table, no file for each: the finder is asked only for a name that Python does not find otherwise.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# old package, new package, modules (old>new where the name changed too)
_MOVES = (
    ("zoo", "zoo.contract", "batch boxes labels class_names segments preprocess photometric"),
    ("zoo", "zoo.storage", "cache durable checkpoint_io"),
    ("zoo.registry", "zoo.storage", "download>fetch"),
    ("zoo", "zoo.prediction", "postprocess masks"),
    ("zoo", "zoo.evaluation", "coco_evaluator bootstrap metric_state panoptic_quality mask_scores"),
    ("zoo", "zoo.pictures", "painting segment_pictures>segments label_places>name_places"),
    ("zoo", "zoo.training", "matcher losses criterion schedule ema module callbacks preflight transfer"),
    ("zoo.registry", "zoo.tracking", "backend lineage"),
    (
        "zoo.cli",
        "zoo.runs",
        "finetune fitting>fit training>train evaluating>evaluate starting>init_from loading>subject "
        "sharing>register recipes schema lightning report mask_report mask_data demo runs>sync console "
        "signals catalogue predicting>predict prediction_files",
    ),
    (
        "zoo.cli",
        "zoo.cli.data",
        "data_convert>convert data_download>download data_shard>shard data_show>show",
    ),
    ("zoo.cli", "datamodules.doctor", "data_gallery>gallery data_plots>plots data_report>report"),
    ("zoo.cli.data", "datamodules.doctor", "gallery plots report"),
    ("zoo.cli", "zoo.cli.models", "listing verifying"),
    (
        "datamodules",
        "datamodules.index",
        "annotation_index columns segmentation faults judge>object_rules index_builder>builder "
        "object_block object_columns scratch>growing_columns index_store>arrow stores>image_store "
        "plain_json",
    ),
    ("datamodules.formats", "datamodules.index", "source"),
    ("datamodules", "datamodules.kept", "index_cache>cache index_files>files watch"),
    ("datamodules.formats", "datamodules.kept", "keeping>large"),
    ("datamodules", "datamodules.images", "image_probe>probe decodable copies>identical"),
    ("datamodules", "datamodules.shards", "shard_files>files shard_cache>cache shard_writer>writer remote"),
    ("datamodules", "datamodules.transforms", "targets"),
    ("datamodules", "datamodules.loading", "datasets loaders samplers masks>mask_truth panoptic_truth"),
    ("datamodules", "datamodules.writers", "convert"),
    ("datamodules.doctor", "datamodules.doctor", "pictures>image_files"),
    (
        "datamodules.formats",
        "datamodules.writers",
        "writing>base write_coco>coco write_csv>csv write_voc>voc write_yolo>yolo placing>names",
    ),
    ("datamodules", "datamodules.published", "downloads unpacking"),
    (
        "datamodules.formats",
        "datamodules.reading",
        "image_tree json_stream parsing records outlines sniff>kinds",
    ),
)
MOVED = {
    f"{old}.{before}": f"{new}.{after or before}"
    for old, new, words in _MOVES
    for before, _, after in (word.partition(">") for word in words.split())
}


class _Moved(MetaPathFinder, Loader):
    """Finds a moved module: the very object that its new name gives."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = MOVED[spec.name]
        # DeprecationWarning would stay unseen in a script that is imported
        warnings.warn(f"{spec.name} is {new} now; import it from there", FutureWarning, stacklevel=2)
        module = importlib.import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # the import system has written the old spec into the module
        spec = module.__spec__
        if spec is not None:
            module.__spec__ = spec.loader_state


def install() -> None:
    """Once a process; last, so that nothing that exists is ever looked up here."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
