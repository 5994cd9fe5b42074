"""`zoo fit --replay`: a step that was not finite is run again, and tells where that begins."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.contract.seeds import derived_seed
from zoo.runs.console import Console
from zoo.runs.trainer_options import autocast
from zoo.storage.checkpoint_io import read_checkpoint
from zoo.training.module import DetectionModule, build_module, required_step
from zoo.training.non_finite import bad_gradients, batch_of, not_finite


def replay(file: str | Path, console: Console | None = None) -> dict[str, Any]:
    """Runs the micro-batches of a saved step again, forwards and backwards; trains nothing.

    Returns:
        `reproduced`: whether anything is not finite here; `inputs`, `weights`: names of what was so before the step;
        `module`: the first whose output is not finite; `losses`: names of terms; `gradient_of`: the first module,
        backwards, whose output's gradient is not; `parameters`: those with such a gradient; `images`: ids.

    Raises:
        OSError, ValueError: the file cannot be read, or holds no step.
    """
    console = console or Console()
    content = read_checkpoint(Path(file).expanduser())
    try:
        step, facts = content["non_finite"], content["zoo"]
        module = build_module(facts["model"], backbone_weights="random")
        module.adopt(LabelMap.from_dict(facts["label_map"]), InputContract.from_dict(facts["input"]))
        module.load_state_dict(content["state_dict"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{file} is no saved step; a run writes them as non-finite-step=N.pt") from error
    device = torch.device("cuda" if step["device"] == "cuda" and torch.cuda.is_available() else "cpu")
    module.to(device)
    if str(step["precision"]).startswith("64"):
        module.double()
    module.train()
    module.schedule.freeze(module.network.named_parameters())
    found: dict[str, Any] = {
        "reproduced": False,
        "weights": not_finite(module.network.state_dict()),
        "images": [],
    }
    with _watched(module.network) as (forward, backward):
        for part in step["parts"]:
            _run(module, part, step, device, found)
            found.setdefault("module", next(iter(forward), None))
            found["gradient_of"] = next(iter(backward), None)
    found["parameters"] = bad_gradients(module.network)
    keys = ("weights", "inputs", "module", "losses", "gradient_of", "parameters")
    found["reproduced"] = any(found.get(key) for key in keys) or "error" in found
    _tell(found, step, device, console)
    return found


def _run(
    module: DetectionModule, part: Mapping[str, Any], step: Mapping[str, Any], device: torch.device,
    found: dict[str, Any],
) -> None:  # fmt: skip
    """One micro-batch, with the dropout that it had."""
    batch = batch_of(part["batch"]).to(device)
    facts = required_step(batch)
    torch.manual_seed(derived_seed(facts.seed, facts.index, part["index"], step["rank"]))
    if batch.images.is_floating_point() and not bool(batch.images.isfinite().all()):
        found["inputs"] = ["images"]
    if not bool(batch.targets.boxes.isfinite().all()):
        found["inputs"] = [*found.get("inputs", []), "boxes"]
    try:
        with autocast(step["precision"], device.type):
            losses = module.losses(batch)
    except FloatingPointError as error:
        found["error"] = str(error)
        found["images"] += batch.image_ids
        return
    bad = not_finite(losses)
    if bad:
        found["losses"] = sorted({*found.get("losses", []), *bad})
        found["images"] += batch.image_ids
    torch.stack([value.sum() for value in losses.values()]).sum().backward()


@contextlib.contextmanager
def _watched(network: nn.Module) -> Iterator[tuple[list[str], list[str]]]:
    """Names of modules in the order in which their outputs, and the gradients of these, were not finite."""
    forward: list[str] = []
    backward: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if not bool(tensor.isfinite().all()):
                    forward.append(name)
                elif tensor.requires_grad:
                    tensor.register_hook(lambda gradient: _note(gradient, name, backward))

        return hook

    hooks = [m.register_forward_hook(look(name or "network")) for name, m in network.named_modules()]
    try:
        yield forward, backward
    finally:
        for hook in hooks:
            hook.remove()


def _note(gradient: Tensor, name: str, names: list[str]) -> None:
    if not bool(gradient.isfinite().all()):
        names.append(name)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a module returns."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _tell(found: Mapping[str, Any], step: Mapping[str, Any], device: torch.device, console: Console) -> None:
    if not found["reproduced"]:
        console.say(
            f"finite      everything, here on {device.type}; the run was on {step['device']} in precision "
            f"{step['precision']}"
        )
        return
    lines = {
        "weights": ("weights", "were not finite before the step"),
        "inputs": ("input", "is not finite in the batch"),
        "module": ("module", "is the first whose output is not finite"),
        "losses": ("loss", "is not finite"),
        "gradient_of": (
            "gradient",
            "is the first module, backwards, whose output gets a gradient that is not finite",
        ),
        "parameters": ("parameters", "get a gradient that is not finite"),
    }
    for key, (word, what) in lines.items():
        names = found.get(key)
        if names:
            shown = (
                names
                if isinstance(names, str)
                else ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            )
            console.say(f"{word:<12}{shown} {what}")
    if "error" in found:
        console.say(f"{'matching':<12}{found['error']}")
    if found["images"]:
        console.say(f"{'images':<12}{', '.join(map(str, found['images']))}")
