"""What of a network trains: parts by name, the norms of what does not, and a list to show."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# Parts of every family's network, as rules of the schedule match them. The encoder goes with what makes its tokens; the
# head is all that predicts: classes (with the embedding of noised ones), boxes, their quality, masks.
_HEAD = (
    r"(class_embed|bbox_embed|bbox_attention|mask_head|"
    r"decoder\.((enc|dec|pre)_(score|bbox)_head|denoising_class_embed|decoder\.lqe_layers))\."
)
PARTS = {
    "backbone": r"^backbone\.",
    "encoder": r"^(encoder|input_proj|position|transformer\.(encoder|level_embed))(\.|$)",
    "all-but-head": rf"^(?!{_HEAD})",
}


def hold_frozen_norms(network: nn.Module) -> None:
    """Puts every batch norm whose own parameters are all frozen into evaluation: its statistics do not move.

    A part that does not train would else still change with the images that it sees. Norms without parameters, and the
    dropout of a frozen part, stay as they are.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.training:
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()


def trained_parts(network: nn.Module) -> tuple[dict[str, int], dict[str, int]]:
    """Parameters that train and that do not, by the largest parts that do so as a whole."""
    trained: dict[str, int] = {}
    frozen: dict[str, int] = {}
    for name, parameters in _parts(network, ""):
        into = trained if any(p.requires_grad for p in parameters) else frozen
        into[name] = sum(p.numel() for p in parameters)
    return trained, frozen


def _parts(module: nn.Module, before: str) -> Iterator[tuple[str, list[nn.Parameter]]]:
    for name, child in module.named_children():
        # single numbers that never train are constants, as D-FINE's `up`: part of what they belong to
        flags = {p.requires_grad for p in child.parameters() if p.requires_grad or p.numel() > 1}
        if len(flags) > 1:
            yield from _parts(child, f"{before}{name}.")
        elif flags:
            yield f"{before}{name}", list(child.parameters())
    for name, parameter in module.named_parameters(recurse=False):
        yield f"{before}{name}", [parameter]


def told(network: nn.Module) -> list[str]:
    """Lines that say what trains and what is frozen, with the number of parameters of each part."""
    trained, frozen = trained_parts(network)
    total = sum(trained.values()) + sum(frozen.values())
    lines = [f"trains      {sum(trained.values()):,} of {total:,} parameters: {_listed(trained)}"]
    return lines + ([f"frozen      {_listed(frozen)}"] if frozen else [])


def _listed(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in parts.items()) or "none"
