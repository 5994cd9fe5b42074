"""A model as a folder of transformers."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from zoo.contract.labels import LabelMap
from zoo.detector import Detector
from zoo.exporting.facts import facts_of_folder
from zoo.registry.hugging_face.card import model_card
from zoo.registry.hugging_face.comparison import library, quiet
from zoo.registry.hugging_face.families import FAMILIES, Family, OtherNetworkError
from zoo.registry.hugging_face.folder import EXTRA, HOLE
from zoo.registry.hugging_face.keys import inverted
from zoo.registry.hugging_face.processors import processor_of
from zoo.runtimes.transformers import CARD_FILE, WEIGHTS_FILE
from zoo.storage.durable import written


def export_transformers(detector: Detector, folder: Path) -> None:
    """Writes config.json, preprocessor_config.json, model.safetensors and README.md.

    Args:
        detector: a model in PyTorch.
        folder: an empty one.

    Raises:
        OtherNetworkError: transformers has no such network; names what it lacks.
        OSError: the disk is full or read-only.
    """
    transformers = library()
    family, architecture = class_of(detector)
    config = config_of(detector, family, architecture)
    with quiet():
        built = transformers.AutoConfig.for_model(family.model_type, **config)
        model = getattr(transformers, architecture)(built).eval()
        module = importlib.import_module(type(detector.module).__module__)
        ours = detector.module.evaluation_network.state_dict()
        state = inverted(model.state_dict(), module.from_published, ours, _behind(detector))
        model.load_state_dict(state, strict=True)
        with written(folder / WEIGHTS_FILE):
            model.save_pretrained(folder, max_shard_size="50GB")
        settings = processor_of(detector.input)
        getattr(transformers, family.processor)(**settings).save_pretrained(folder)
    (folder / CARD_FILE).write_text(card_of(detector, architecture), encoding="utf-8")


def class_of(detector: Detector) -> tuple[Family, str]:
    """(family, class of transformers) of a detector's module.

    Raises:
        OtherNetworkError: there is none.
    """
    path = f"{type(detector.module).__module__}.{type(detector.module).__qualname__}"
    for family in FAMILIES.values():
        for architecture, (class_path, _) in family.modules.items():
            if class_path == path:
                return family, architecture
    if path.startswith("zoo.architectures.deimv2."):
        raise OtherNetworkError(
            f"{detector.name} cannot be exported: transformers' class called DEIMv2 is another network (AP .010 with "
            "weights that give .257)"
        )
    raise OtherNetworkError(f"{detector.name} cannot be exported: transformers has no network of {path}")


def config_of(detector: Detector, family: Family, architecture: str) -> dict[str, Any]:
    """What config.json says.

    Raises:
        OtherNetworkError: naming the argument that transformers has no word for.
    """
    try:
        sizes = family.config_of(detector.module.init_args)
    except OtherNetworkError as error:
        raise OtherNetworkError(f"{detector.name} cannot be exported: {error}") from error
    labels = detector.label_map
    names = names_of_heads(labels)
    return {
        **sizes,
        "architectures": [architecture],
        "id2label": names,
        "label2id": {name: head for head, name in names.items() if name != HOLE},
        EXTRA: facts_of_folder(detector).to_dict(),
    }


def names_of_heads(labels: LabelMap) -> dict[int, str]:
    """Every index of the head by name; one that no class has is a hole."""
    return {head: labels.name_of_head.get(head, HOLE) for head in range(labels.num_classes)}


def _behind(detector: Detector) -> re.Pattern[str]:
    """Keys of layers behind those that are evaluated, which transformers would run."""
    decoder = detector.module.init_args.get("decoder") or {"eval_layers": 0, "num_layers": 0}
    layers = "|".join(map(str, range(decoder["eval_layers"], decoder["num_layers"]))) or "none"
    return re.compile(
        rf"decoder\.(decoder\.(layers|lqe_layers)|dec_score_head|dec_bbox_head)\.({layers})\..+"
    )


def card_of(detector: Detector, architecture: str) -> str:
    """README.md of the folder."""
    auto = (
        "AutoModelForImageSegmentation"
        if architecture.endswith("Segmentation")
        else "AutoModelForObjectDetection"
    )
    pil = ', backend="pil"' if detector.input.backend == "pil" else ""
    usage = (
        f"from transformers import AutoImageProcessor, {auto}\n\n"
        f'processor = AutoImageProcessor.from_pretrained("FOLDER"{pil})\n'
        f'model = {auto}.from_pretrained("FOLDER")'
    )
    if (most := detector.module.init_args.get("top_k")) is not None:  # its processor takes 100 unless told
        usage += f"\n# detections: processor.post_process_object_detection(outputs, top_k={most})"
    title = detector.manifest.name if detector.manifest is not None else "A detector"
    return model_card(
        title, detector.label_map, detector.input, detector.manifest,
        masks=detector.module.instances is not None, usage=usage, library="transformers",
    )  # fmt: skip
