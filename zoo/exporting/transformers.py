"""A model as a folder of transformers, and the proof that both compute the same.

There is no second table of keys: every tensor of transformers is filled with numbers of its own, our converter of
published weights is run on them, and where each number arrives is where ours comes from.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from zoo.contract.labels import LabelMap
from zoo.detector import Detector
from zoo.exporting.facts import versions
from zoo.registry.hugging_face.card import model_card
from zoo.registry.hugging_face.comparison import LIMIT, compare, drawn_image, library, model_of, quiet
from zoo.registry.hugging_face.families import FAMILIES, Family, OtherNetworkError
from zoo.registry.hugging_face.folder import EXTRA, HOLE
from zoo.registry.hugging_face.processors import processor_of
from zoo.storage.durable import sha256_of

CERTIFICATE, CARD = "certificate.json", "README.md"
WEIGHTS = "model.safetensors"
_COMPUTED = re.compile(r".*\.(num_batches_tracked|n(um)?_points_scale)|model\.(anchors|valid_mask)")
_UNUSED = re.compile(r".*\.num_batches_tracked")  # of a norm that is frozen there


def export_transformers(
    detector: Detector, folder: Path, images: Sequence[Image.Image] | None = None
) -> dict[str, Any]:
    """Writes config.json, preprocessor_config.json, model.safetensors and README.md; returns the certificate.

    Args:
        detector: a model in PyTorch.
        folder: an empty one.
        images: RGB, on which both are compared; None: two drawn ones.

    Raises:
        OtherNetworkError: transformers has no such network; names what it lacks.
    """
    transformers = library()
    family, architecture = class_of(detector)
    config = config_of(detector, family, architecture)
    with quiet():
        built = transformers.AutoConfig.for_model(family.model_type, **config)
        model = getattr(transformers, architecture)(built).eval()
        module = importlib.import_module(type(detector.module).__module__)
        ours = detector.module.evaluation_network.state_dict()
        left_out = _behind(detector)
        state = inverted(model.state_dict(), module.from_published, ours, left_out)
        model.load_state_dict(state, strict=True)
        model.save_pretrained(folder, max_shard_size="50GB")
        settings = processor_of(detector.input)
        getattr(transformers, family.processor)(**settings).save_pretrained(folder)
    (folder / CARD).write_text(card_of(detector, architecture), encoding="utf-8")
    return certified(detector, folder, architecture, images or drawn_images())


def drawn_images() -> list[Image.Image]:
    """Two, where there are no others; one stands upright."""
    return [drawn_image(), drawn_image(96, 128)]


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
        EXTRA: {"label_map": labels.to_dict(), "input": detector.input.to_dict()},
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


def inverted(
    theirs: Mapping[str, Tensor],
    convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    ours: Mapping[str, Tensor],
    left_out: re.Pattern[str],
) -> dict[str, Tensor]:
    """Our weights under the keys and in the shapes of `theirs`: the inverse of `convert`, exact to the bit.

    Args:
        theirs: state dict of the network of transformers, which keeps what it computes itself.
        convert: of theirs to ours; it renames, packs and drops, and changes no number.
        ours: state dict of our network.
        left_out: keys of ours that transformers has no place for.

    Raises:
        ValueError: a tensor of either has no place in the other.
    """
    numbers, starts = _numbered(theirs)
    count = max(start + theirs[key].numel() for key, start in starts.items())
    values = torch.zeros(count, dtype=torch.float64)
    given = torch.zeros(count, dtype=torch.bool)
    placed = convert(numbers)
    homeless = [
        key for key in ours if key not in placed and not (left_out.fullmatch(key) or _UNUSED.fullmatch(key))
    ]
    strange = [key for key in placed if key not in ours or placed[key].shape != ours[key].shape]
    if homeless or strange:
        raise ValueError(f"transformers' network has no place for {(homeless or strange)[0]}")
    for key, where in placed.items():
        index = where.flatten().long()
        values[index] = ours[key].detach().cpu().flatten().to(torch.float64)
        given[index] = True
    state = {}
    for key, value in theirs.items():
        part = slice(starts[key], starts[key] + value.numel())
        if not bool(given[part].all()):
            if bool(given[part].any()) or not _COMPUTED.fullmatch(key):
                raise ValueError(f"transformers' {key} is nowhere in our network")
            state[key] = value
        else:
            state[key] = values[part].view(value.shape).to(value.dtype)
    return state


def _numbered(theirs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """(tensors of whole numbers that are all different, where each begins); tied tensors and copies have the same."""
    numbers: dict[str, Tensor] = {}
    starts: dict[str, int] = {}
    known: dict[object, int] = {}
    following = 0
    for key, value in theirs.items():
        copy = re.sub(r"^model\.decoder\.(?=(class|bbox)_embed\.)", "", key)
        storage = (value.data_ptr(), value.shape) if value.numel() else copy
        start = known.get(copy, known.get(storage))
        if start is None:
            start, following = following, following + value.numel()
        known[copy] = known[storage] = start
        starts[key] = start
        numbers[key] = torch.arange(start, start + value.numel(), dtype=torch.float64).view(value.shape)
    return numbers, starts


def certified(
    detector: Detector, folder: Path, architecture: str, images: Sequence[Image.Image]
) -> dict[str, Any]:
    """Loads the folder as a stranger would and compares; the certificate, whose `failures` is empty if all is equal."""
    transformers = library()
    theirs, told = model_of(architecture, None, folder=str(folder))
    with quiet():
        backend = {"backend": "pil"} if detector.input.backend == "pil" else {}
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **backend
        )
    difference = compare(detector.module, theirs, processor, images)
    failures = [
        f"{name.replace('_', ' ')}: {sorted(map(str, told[name]))[:3]}"
        for name in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if told[name]
    ]
    failures += [apart] if (apart := difference.above(LIMIT)) else []
    names = {int(head): name for head, name in theirs.config.id2label.items()}
    if names != names_of_heads(detector.label_map):
        failures.append("id2label is another label map")
    return {
        "format": 1,
        "passed": not failures,
        "failures": failures,
        "file": {
            "name": WEIGHTS, "bytes": (folder / WEIGHTS).stat().st_size, "sha256": sha256_of(folder / WEIGHTS),
        },
        "runtime": f"transformers {transformers.__version__}, {architecture}",
        "source": {"name": detector.name},
        "differences": difference.to_dict(),
        "limits": {"pixels": "the same", "logits, boxes, masks": LIMIT},
        "versions": versions(),
    }  # fmt: skip


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
    title = detector.manifest.name if detector.manifest is not None else "A detector"
    return model_card(
        title, detector.label_map, detector.input, detector.manifest,
        masks=detector.module.instances is not None, usage=usage, library="transformers",
    )  # fmt: skip
