"""Weights in and out of files: a checkpoint's released network, safetensors, a ready module."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from zoo.contract.batch import Batch, unlabelled
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.registry.manifest import WEIGHTS_FILE, Manifest
from zoo.storage.checkpoint_io import read_checkpoint
from zoo.storage.durable import written
from zoo.storage.safetensors_file import read_safetensors
from zoo.training.module import DetectionModule, build_module
from zoo.training.transfer import refuse_other_copies

_RAW, _AVERAGED = "network.", "ema.network."
COUNTED = (
    "params: of the training graph, re-parametrisable branches unfused, frozen ones included; macs: "
    "torch.utils.flop_counter / 2, batch 1, evaluation, {height}x{width}, grid_sample not counted"
)


@dataclass(frozen=True)
class Released:
    """A network's weights and what is needed to use them. Keys are those of `module.network`."""

    state: dict[str, Tensor]
    model: dict[str, Any]
    label_map: LabelMap
    input: InputContract
    facts: dict[str, Any]  # the checkpoint's "zoo" block; empty for a manifest


def released_from_checkpoint(path: str | Path) -> Released:
    """The weights that a checkpoint publishes: the averaged ones if it has any, else the raw ones.

    Raises:
        ValueError: if it is no checkpoint of this project, or was saved before any data were read.
    """
    if Path(path).suffix == ".safetensors":
        raise ValueError(
            f"{path} holds weights alone, no model, classes and input; name the registered model, or give --config "
            "with --ckpt-path"
        )
    checkpoint = read_checkpoint(path)
    facts, state = checkpoint.get("zoo"), checkpoint.get("state_dict")
    if not isinstance(facts, dict) or not isinstance(state, dict) or not isinstance(facts.get("model"), dict):
        raise ValueError(
            f"{path} has no `zoo` block with model, label map and input contract: it was not written by "
            "zoo fit or zoo finetune"
        )
    if facts.get("label_map") is None or facts.get("input") is None:
        raise ValueError(f"{path} has no label map or input contract; it was saved before any data was read")
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise ValueError(f"{path} has other things than tensors in its state dict; it was changed by hand")
    prefix = _AVERAGED if any(key.startswith(_AVERAGED) for key in state) else _RAW
    network = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return Released(
        network,
        facts["model"],
        LabelMap.from_dict(facts["label_map"]),
        InputContract.from_dict(facts["input"]),
        facts,
    )


def released_from_folder(folder: Path, manifest: Manifest) -> Released:
    """The weights beside a manifest. The caller has checked their hashes."""
    plain = manifest.to_dict()
    return Released(
        read_safetensors(folder / WEIGHTS_FILE),
        plain["model"],
        manifest.labels(),
        InputContract.from_dict(plain["input"]),
        {},
    )


def ready_module(released: Released) -> DetectionModule:
    """The module with these weights, in evaluation mode; loads strictly and fetches nothing.

    Raises:
        ValueError: if the weights are of another network, naming keys.
    """
    module = build_module(released.model, backbone_weights="random")
    load_strictly(module, released.state)
    module.adopt(released.label_map, released.input)
    return module.eval()


def load_strictly(module: DetectionModule, state: Mapping[str, Tensor]) -> None:
    """Loads a network's state dict into the module, and its average if it has one.

    Raises:
        ValueError: the weights are of another network, naming keys.
    """
    refuse_other_copies(module.network, state)
    try:
        module.network.load_state_dict(dict(state), strict=True)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise ValueError(
            f"the weights are of another network than the model block: {' '.join(lines)}"
        ) from error
    if module.ema is not None:
        module.ema.restart(module.network)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a network's weights, whatever file they lie in.

    Of the tensors by name: name, dtype and shape as text, each with a line feed, then the values row-major.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name}\n{value.dtype}\n{list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file; tensors that share memory are written out each on its own.

    Raises:
        OSError: the disk is full or read-only.
    """
    plain = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}
    with written(path):
        save_file(plain, path, metadata={"format": "pt"})


def run_everything(module: DetectionModule, batch: Batch) -> None:
    """Predicts a batch of one image, with the masks of all queries where there is a mask head."""
    raw = module.predictions(batch)
    if raw.masks is not None:
        raw.masks_of_all()


def count(module: DetectionModule, contract: InputContract) -> tuple[int, int, str]:
    """(params, macs, how they were counted) of the network at the size that a 480x640 image gets.

    That is the contract's own size, or 800x1066 of DETR's 800 and 1333. Macs are those of the authors' network, as in
    every manifest.
    """
    params = sum(p.numel() for p in module.network.parameters())
    height, width = contract.resized_size(480, 640)
    image = torch.zeros(contract.channels, height, width, dtype=torch.uint8)
    learning = [p for p in module.parameters() if p.requires_grad]
    for parameter in learning:  # the counter's hooks fail on a view of one that needs a gradient
        parameter.requires_grad_(False)
    try:
        # torch 2.14 counts the CPU's fused attention as 0, other releases do not; the products of the plain kernel
        # are counted alike by all
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run_everything(module, unlabelled([image], [(height, width)]))
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
    counted, left_out = COUNTED.format(height=height, width=width), module.macs_left_out(height, width)
    if left_out:
        counted += f"; with {left_out / 1e9:.2f}e9 that the authors' network does besides"
    return params, counter.get_total_flops() // 2 + left_out, counted
