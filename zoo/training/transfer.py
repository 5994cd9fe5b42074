"""Starting from other weights: what is copied, what starts new, and a report of both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.contract.class_names import Match, match_classes
from zoo.contract.labels import LabelMap
from zoo.layers.backbone import of_channels
from zoo.training.module import DetectionModule

Head = Literal["keep", "new", "by_class_name"]


@dataclass
class LoadReport:
    """Tensors by what was done with them, and classes whose rows were carried over or start new.

    `matches` says for each class that was carried over which class of the weights it is, and how it was found.
    """

    copied: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    reinitialised: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    new_classes: list[str] = field(default_factory=list)
    matches: dict[str, Match] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [f"copied {len(self.copied)} tensors"]
        if self.classes or self.new_classes:
            lines += self._class_lines()
        lines += [f"adapted {what}" for what in self.adapted]
        if self.reinitialised:
            lines.append(f"re-initialised {len(self.reinitialised)}: {', '.join(self.reinitialised)}")
        if self.left_out:
            lines.append(f"left out {len(self.left_out)}: {', '.join(self.left_out)}")
        return lines

    def _class_lines(self) -> list[str]:
        total = len(self.classes) + len(self.new_classes)
        aliases = [f"{name} from {m.source}" for name, m in self.matches.items() if m.how == "alias"]
        by_alias = f"; {len(aliases)} by alias: {', '.join(aliases)}" if aliases else ""
        lines = [
            f"class rows carried over for {len(self.classes)} of {total} classes by name or alias{by_alias}"
        ]
        if self.new_classes:
            lines.append(
                f"class rows that start new, for the weights do not know them: {', '.join(self.new_classes)}"
            )
        return lines


def load_weights(
    module: DetectionModule,
    state: Mapping[str, Tensor],
    head: Head,
    source_map: LabelMap | None = None,
    target_map: LabelMap | None = None,
) -> LoadReport:
    """Loads a network's state dict, treating the tensors whose rows are classes as `head` says.

    Args:
        module: its network receives the weights, and its average starts again from them.
        state: under the keys of `network`. It may lack all of the module's `added_tensors`, which then start new: the
            weights of a detector start one with masks.
        head: `keep` all rows (strict), start the class tensors `new`, or copy the rows of classes
            that both maps name, in the same or in known other words (`by_class_name`).
        source_map: of the weights; needed for `by_class_name`.
        target_map: of the new data; likewise.

    Raises:
        ValueError: a key or shape does not fit; names it.
    """
    if head == "by_class_name" and (source_map is None or target_map is None):
        raise ValueError("head: by_class_name needs the label maps of the weights and of the data")
    own = module.network.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    added = {n for n in own if module.added_tensors and re.search(module.added_tensors, n)}
    if added.isdisjoint(state):
        missing = [n for n in missing if n not in added]
    else:
        added = set()
    if missing or unknown:
        raise ValueError(
            f"weights of another network: {len(missing)} keys missing (first: {missing[:3]}), "
            f"{len(unknown)} not known (first: {unknown[:3]})"
        )
    refuse_other_copies(module.network, state)
    report = LoadReport()
    loaded = {}
    for name, value in own.items():
        if name in added:
            loaded[name] = value
            report.reinitialised.append(name)
        elif re.search(module.class_tensors, name) and head != "keep":
            loaded[name] = value.clone()
            if head == "by_class_name":
                assert source_map is not None
                assert target_map is not None
                report.matches = copy_rows(loaded[name], state[name], source_map, target_map)
                report.classes = list(report.matches)
                report.new_classes = [n for n in target_map.names if n not in report.matches]
            report.reinitialised.append(name)
        elif _is_of_rgb(state[name], value):
            loaded[name] = of_channels(state[name], value.shape[1])
            report.adapted.append(f"{name} from 3 to {value.shape[1]} channels")
        elif state[name].shape != value.shape:
            raise ValueError(
                f"{name} is {list(state[name].shape)} in the weights and {list(value.shape)} here; a head for "
                "other classes needs head: new or by_class_name"
            )
        else:
            loaded[name] = state[name]
            report.copied.append(name)
    module.network.load_state_dict(loaded)
    if module.ema is not None:
        module.ema.restart(module.network)
    return report


def _is_of_rgb(given: Tensor, own: Tensor) -> bool:
    """Whether these are the kernels for RGB of a first convolution that has other channels here."""
    alike = (
        given.ndim == own.ndim == 4 and given.shape[0] == own.shape[0] and given.shape[2:] == own.shape[2:]
    )
    return alike and given.shape[1] == 3 != own.shape[1]


def refuse_other_copies(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Compares what a state dict has for the names of one and the same tensor of `network`; loading takes the last.

    Raises:
        ValueError: they differ, so the weights are of a network with a tensor for each.
    """
    first: dict[int, str] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if other in state and name in state and not torch.equal(state[other], state[name]):
            raise ValueError(f"{other} and {name} differ in the weights and are one tensor here")


@torch.no_grad()
def copy_rows(target: Tensor, source: Tensor, source_map: LabelMap, target_map: LabelMap) -> dict[str, Match]:
    """Copies the class rows that both maps name, in place; returns which, by target name in head order.

    A row after the classes (DETR's no-object, the padding of RT-DETR's denoising labels) means the same
    whatever the classes are, and is copied too.
    """
    from_row = {name: head for head, name in source_map.name_of_head.items()}
    matches = match_classes(source_map.names, target_map.names)
    for head, name in target_map.name_of_head.items():
        if name in matches:
            target[head] = source[from_row[matches[name].source]].to(target.dtype)
    if len(target) > target_map.num_classes and len(source) > source_map.num_classes:
        target[-1] = source[-1].to(target.dtype)
    return matches
