"""Folders of transformers that `zoo export` wrote, computed by transformers: its processor, network and detections."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo.registry.hugging_face.backbones import with_backbone_config
from zoo.registry.hugging_face.comparison import library, model_of, quiet
from zoo.registry.hugging_face.folder import (
    CONFIG_FILE,
    EXTRA,
    PROCESSOR_FILE,
    family_of,
    read_json,
    settings_of,
)
from zoo.registry.hugging_face.keys import same_blocks
from zoo.registry.manifest import InputBlock, LabelMapBlock, refuse_unknown_classes
from zoo.runtimes.facts import DETECTIONS, RAW, parse_facts
from zoo.runtimes.onnx import Arrays

WEIGHTS_FILE, CARD_FILE = "model.safetensors", "README.md"
FILES = (WEIGHTS_FILE, CONFIG_FILE, PROCESSOR_FILE, CARD_FILE)
_BLOCK, _NORMALISED = "block.", "block.normalised images"


class TransformersSession:
    """A folder's network and processor on the CPU, as a stranger loads them; nothing that it brings is run.

    Attributes:
        facts: of the folder; label map and input are what its own files say, whatever else was noted at the export.
        name: of the runtime.
        path: the folder.
    """

    name = "transformers"

    def __init__(self, path: Path) -> None:
        transformers = library()
        self.path = path
        shown = str(path)
        raw = read_json(path / CONFIG_FILE, shown)
        _, architecture = family_of(raw, f"{shown}, {CONFIG_FILE}")
        extra = raw.get(EXTRA)
        if not isinstance(extra, dict) or "format" not in extra:
            raise ValueError(
                f"{path} was not written by zoo export as it is now; zoo pull hf:{path.absolute()} makes it a model "
                "like any other"
            )
        if not (path / WEIGHTS_FILE).is_file():
            raise FileNotFoundError(f"{path} has no {WEIGHTS_FILE}")
        facts = parse_facts(json.dumps(extra), f"{shown}, {CONFIG_FILE}")
        labels, contract = settings_of(path, raw, shown)
        try:
            refuse_unknown_classes(facts.thresholds, labels)
        except ValueError as error:
            raise ValueError(f"{shown}, {CONFIG_FILE}: {error} or id2label") from error
        self.facts = msgspec.structs.replace(
            facts,
            label_map=msgspec.convert(labels.to_dict(), LabelMapBlock),
            input=msgspec.convert(contract.to_dict(), InputBlock),
        )
        # Deformable DETR's number of detections, which its processor is told with every call
        self.rule = {key: value for key, value in facts.model.init_args.items() if key == "top_k"}
        with quiet():  # read from its file, transformers would ask the hub for a backbone that it names
            config = transformers.AutoConfig.for_model(**with_backbone_config(raw))
        self.model, told = model_of(architecture, config, folder=str(path))
        for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if told[fault]:
                keys = ", ".join(sorted(map(str, told[fault]))[:3])
                raise ValueError(f"{path}, {WEIGHTS_FILE}: {fault.replace('_', ' ')}: {keys}")
        pil = {"backend": "pil"} if contract.backend == "pil" else {}
        with quiet():
            self.processor = transformers.AutoImageProcessor.from_pretrained(
                path, local_files_only=True, trust_remote_code=False, **pil
            )

    def prepared(self, image: Image.Image) -> Tensor:
        """[3, h, w] float32: an image as the folder's own processor resizes and normalises it."""
        pixels: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    def run(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Outputs by name for inputs by name."""
        return self._computed(inputs, [*self.facts.outputs], {})

    def inner_names(self) -> list[str]:
        """Of blocks that have a partner of the same weights in our network, each named as ours."""
        return [_NORMALISED, *self._partners]

    def inner(self, names: Sequence[str]) -> Callable[[Arrays], dict[str, np.ndarray[Any, Any]]]:
        """A function as `run` for raw outputs, and for the blocks of `inner_names`."""
        partners = self._partners if any(name.startswith(_BLOCK) for name in names) else {}
        wanted = {name: partners[name] for name in names if name in partners}
        return lambda inputs: self._computed(inputs, names, wanted)

    @functools.cached_property
    def _partners(self) -> dict[str, str]:
        """Name of a block of ours -> name of theirs."""
        package = self.facts.model.class_path.rpartition(".")[0]
        convert = importlib.import_module(package).from_published
        found = same_blocks(self.model.state_dict(), convert)
        return {
            f"{_BLOCK}{ours}": theirs[0]
            for ours, theirs in found.items()
            if theirs and all(inner.startswith(theirs[0]) for inner in theirs)  # else there are copies
        }

    @torch.no_grad()
    def _computed(
        self, inputs: Arrays, names: Sequence[str], blocks: dict[str, str]
    ) -> dict[str, np.ndarray[Any, Any]]:
        pixels, mask = self._normalised(inputs)
        found: dict[str, Tensor] = {_NORMALISED: pixels}

        def note(name: str, output: Any) -> None:
            output = getattr(output, "last_hidden_state", output)
            first = output[0] if isinstance(output, (tuple, list)) else output
            if isinstance(first, Tensor):
                found[name] = first

        handles = [
            self.model.get_submodule(theirs).register_forward_hook(
                lambda _, __, output, name=ours: note(name, output)
            )
            for ours, theirs in blocks.items()
        ]
        try:
            raw = self.model(pixel_values=pixels, pixel_mask=mask)
        finally:
            for handle in handles:
                handle.remove()
        found |= {name: raw[name] for name in (*RAW, "masks") if name in raw}
        if "pred_masks" in raw:
            found["masks"] = raw["pred_masks"]
        if "sizes" in inputs:
            sizes = torch.from_numpy(np.asarray(inputs["sizes"]))
            detections = self.processor.post_process_object_detection(
                raw, threshold=-1.0, target_sizes=sizes, **self.rule
            )
            best = torch.stack([one["scores"] for one in detections]).sort(
                dim=1, descending=True, stable=True
            )
            for name in DETECTIONS:
                rows = zip(detections, best.indices, strict=True)
                found[name] = torch.stack([one[name][order] for one, order in rows])
        return {name: found[name].numpy() for name in names if name in found}

    def _normalised(self, inputs: Arrays) -> tuple[Tensor, Tensor]:
        """([B, 3, H, W] with zeros on padding, [B, H, W] with 1 on pixels) by the folder's processor."""
        images = np.asarray(inputs["images"])
        padding = np.asarray(inputs.get("padding", np.zeros(images[:, 0].shape, dtype=bool)))
        pixels = torch.zeros(images.shape)
        for image, padded, into in zip(images, padding, pixels, strict=True):
            height, width = int((~padded[:, 0]).sum()), int((~padded[0]).sum())
            own = self.processor(
                images=image[:, :height, :width], do_resize=False, do_pad=False, return_tensors="pt",
                input_data_format="channels_first",
            )  # fmt: skip
            into[:, :height, :width] = own["pixel_values"][0]
        return pixels, torch.from_numpy((~padding).astype(np.int64))
