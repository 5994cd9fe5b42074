"""Cases of official numbers: `<folder>/<case>.npz` with a `<case>.json` that explains it; comparing with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.contract.batch import Targets
from zoo.training.schedule import Schedule

COMMITTED = Path(__file__).parent / "official"


@dataclass(frozen=True)
class Case:
    """One case: arrays that an official repository computed, and what they are."""

    root: Path
    folder: str
    name: str

    @property
    def id(self) -> str:
        """`<folder>/<case>`."""
        return f"{self.folder}/{self.name}"

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The json: source, notes, config."""
        facts: dict[str, Any] = json.loads((self.root / self.folder / f"{self.name}.json").read_text())
        return facts

    @cached_property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """The npz; an array is read when it is asked for."""
        file: Mapping[str, np.ndarray] = np.load(
            self.root / self.folder / f"{self.name}.npz", allow_pickle=False
        )
        return file

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(np.array(self.arrays[name]))

    def strings(self, name: str) -> list[str]:
        """An array of names."""
        return [str(s) for s in self.arrays[name]]

    def targets(self, prefix: str = "") -> Targets:
        """Targets stored as concatenation with counts; masks, where there are any, padded to the largest image."""
        counts = tuple(int(n) for n in self[f"{prefix}targets/count"])
        masks = None
        if f"{prefix}targets/masks/0" in self:
            each = [self.image_masks(f"{prefix}targets/masks", i) for i in range(len(counts))]
            height, width = (max(m.shape[axis] for m in each) for axis in (1, 2))
            masks = torch.cat([F.pad(m, (0, width - m.shape[2], 0, height - m.shape[1])) for m in each])
        return Targets(self[f"{prefix}targets/labels"], self[f"{prefix}targets/boxes"], counts, masks)

    def images(self, name: str) -> Tensor:
        """Images stored as int8 thirty-seconds, float64 (exact)."""
        return self[name].double() / 32

    def sixteenths(self, name: str) -> Tensor:
        """Logits stored as int8 sixteenths, float64 (exact)."""
        return self[name].double() / 16

    def image_masks(self, name: str, image: int) -> Tensor:
        """Bit-packed masks `<name>/<image>` with their `<name>_shape/<image>`."""
        return self.bits(f"{name}/{image}", f"{name}_shape/{image}")

    def bits(self, name: str, shape_name: str | None = None) -> Tensor:
        """A bit-packed boolean array; its shape is the array `shape_name`, by default `<name>_shape`."""
        shape = self.arrays[shape_name or f"{name}_shape"]
        unpacked = np.unpackbits(self.arrays[name], axis=-1)[..., : shape[-1]]
        return torch.from_numpy(unpacked.reshape(shape).astype(bool))

    def weights(self, prefix: str = "w/") -> dict[str, Tensor]:
        """A state dict under its official keys: float64 (exact), integer buffers as they are."""
        return read_weights(self.arrays, prefix)

    def shared_weights(self, name: str) -> dict[str, Tensor]:
        """The weights in a file of `shared/`, beside the folder of this case, or in that folder."""
        places = (self.root / folder / f"{name}.npz" for folder in ("shared", self.folder))
        path = next((p for p in places if p.is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"{self.id} needs {name}.npz, in shared/ or {self.folder}/ of {self.root}"
            )
        return read_weights(np.load(path, allow_pickle=False), "")


N = TypeVar("N", bound=nn.Module)


def with_weights(make: Callable[[], N], state: Mapping[str, Tensor]) -> N:
    """A network that holds copies of these float64 weights and nothing else, loaded strictly.

    It is made on the meta device, without values: drawing random ones would take longer than the rest.
    """
    with torch.device("meta"):
        network = make()
    copies = {name: value.clone() for name, value in state.items()}
    network.double().load_state_dict(copies, strict=True, assign=True)
    return network


def read_weights(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    """Weights stored as integers times a power of two; a tied tensor is stored once and returned under each key."""

    def array(name: str) -> np.ndarray:
        return np.asarray(arrays[prefix + name])

    names = [n[len(prefix) :] for n in arrays if n.startswith(prefix)]
    scale = dict(zip(array("::scale_keys").tolist(), array("::scale_values").tolist(), strict=True))
    state = {}
    for name in names:
        if name.endswith("::raw"):
            state[name.removesuffix("::raw")] = torch.from_numpy(array(name))
        elif "::" not in name:
            state[name] = torch.from_numpy(array(name)).double().mul_(scale[name])
    if prefix + "::same_as_keys" in arrays:
        ties = zip(array("::same_as_keys").tolist(), array("::same_as_values").tolist(), strict=True)
        for key, same in ties:
            if key:
                state[key] = state[same]
    return state


def find_cases(root: Path, folder: str) -> list[Case]:
    """All cases of a folder.

    Raises:
        FileNotFoundError: there is none; a proof that compares nothing must not pass.
    """
    names = [path.stem for path in sorted((root / folder).glob("*.npz"))]
    cases = [Case(root, folder, name) for name in names if not name.startswith("weights_")]
    if not cases:
        raise FileNotFoundError(f"no official numbers in {root}: expected {folder} with .npz files")
    return cases


@dataclass(frozen=True)
class Comparison:
    """One quantity against its official value; `difference` is relative to the largest official value."""

    what: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Within the tolerance; NaN never is."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class FamilyCases:
    """What a family compares with official numbers: the value `CASES` of `zoo/verification/<family>.py`.

    Attributes:
        folder: that of its cases, in a directory of official numbers.
        kinds: {beginning of a case's name: (what the case is about, the function that compares it)}.
        recipes: {name of an official structure: the recipe that builds the same network}.
        compare_structure: the facts of such a structure against a network and its schedule.
        copied: cases of other families whose code the official repository copied: (family, names).
        left_out: {beginning of a case's name: why it is not compared}.
    """

    folder: str
    kinds: Mapping[str, tuple[str, Callable[[Case], list[Comparison]]]]
    recipes: Mapping[str, str]
    compare_structure: Callable[[Mapping[str, Any], Any, Schedule], list[Comparison]]
    copied: Sequence[tuple[FamilyCases, Sequence[str]]] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    def why_left_out(self, case: Case) -> str | None:
        """Why a case is not compared; None if it is."""
        return next((why for start, why in self.left_out.items() if case.name.startswith(start)), None)

    def kind_of(self, case: Case) -> str:
        """The key of `kinds`.

        Raises:
            KeyError: no function compares this kind of case.
        """
        for beginning in self.kinds:
            if case.name.startswith(beginning):
                return beginning
        raise KeyError(f"no comparison for the case {case.id}; known kinds: {', '.join(self.kinds)}")

    def about(self, case: Case) -> str:
        """What a case is about, e.g. matching and losses."""
        return self.kinds[self.kind_of(case)][0]

    def compare(self, case: Case) -> list[Comparison]:
        """Ours against the official numbers of a case."""
        return self.kinds[self.kind_of(case)][1](case)


def compare(what: str, ours: Tensor, official: Tensor, tolerance: float) -> Comparison:
    """Largest absolute difference over the largest official absolute value; different shapes never pass."""
    if ours.shape != official.shape:
        return Comparison(
            f"{what} (shape {list(ours.shape)} against {list(official.shape)})", np.inf, tolerance
        )
    if official.numel() == 0:
        return Comparison(what, 0.0, tolerance)
    ours, official = ours.detach().double(), official.double()
    largest = official.abs().max().clamp(min=1e-30)
    difference = (ours - official).abs().max()
    return Comparison(what, float(difference if difference == 0 else difference / largest), tolerance)


def compare_exact(what: str, ours: Any, official: Any) -> Comparison:
    """Equality of plain values or tensors."""
    equal = torch.equal(ours, official) if isinstance(ours, Tensor) else ours == official
    return Comparison(what, 0.0 if equal else np.inf, 0.0)


def compare_summary(
    case: Case, prefix: str, ours: Mapping[str, Tensor], tolerance: float
) -> list[Comparison]:
    """Many named tensors against their stored norms and sampled values.

    The difference is relative to the largest value of the whole list, as in the stored noise floor.
    """
    names = case.strings(f"{prefix}/names")
    missing = [n for n in names if n not in ours]
    extra = sorted(ours.keys() - set(names))
    results = [
        compare_exact(
            f"{prefix} names (missing {missing[:3]}, extra {extra[:3]})", [missing, extra], [[], []]
        )
    ]
    if missing or extra:
        return results
    counts = case[f"{prefix}/sample_count"].tolist()
    most = max(counts)
    sampled = torch.cat([sample(ours[n].detach().double(), most) for n in names])
    l2 = torch.stack([ours[n].detach().double().norm() for n in names])
    results.append(compare(f"{prefix} sampled values", sampled, case[f"{prefix}/sample_values"], tolerance))
    results.append(compare(f"{prefix} norms", l2, case[f"{prefix}/l2"], tolerance))
    return results


def compare_listed(case: Case, prefix: str, ours: Sequence[Tensor], tolerance: float) -> list[Comparison]:
    """Tensors in the stored order of their names, as `compare_summary` does."""
    names = case.strings(f"{prefix}/names")
    return compare_summary(case, prefix, dict(zip(names, ours, strict=True)), tolerance)


def sample(tensor: Tensor, most: int) -> Tensor:
    """Values at evenly spaced flat positions, all of them when there are no more than `most`."""
    flat = tensor.flatten()
    if flat.numel() <= most:
        return flat
    positions = np.unique(np.trunc(np.linspace(0, flat.numel() - 1, most)).astype(np.int64))
    return flat[torch.from_numpy(positions)]
