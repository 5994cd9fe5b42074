"""Which weight of a network of transformers is which of ours, found out by running our converter on numbers.

There is no second table of keys: every tensor of transformers is filled with numbers of its own, our converter of
published weights is run on them, and where each number arrives is where ours comes from.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

Convert = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]  # of their weights to ours
_COMPUTED = re.compile(r".*\.(num_batches_tracked|n(um)?_points_scale)|model\.(anchors|valid_mask)")
_UNUSED = re.compile(r".*\.num_batches_tracked")  # of a norm that is frozen there


def inverted(
    theirs: Mapping[str, Tensor],
    convert: Convert,
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


def same_blocks(theirs: Mapping[str, Tensor], convert: Convert) -> dict[str, list[str]]:
    """Each module of our network and those of theirs that hold exactly its weights, an outer one before an inner.

    Args:
        theirs: state dict of the network of transformers.
        convert: of theirs to ours, as of `inverted`.
    """
    _, starts = _numbered(theirs)
    marked = {
        key: torch.tensor(float(start)).double().expand(theirs[key].shape) for key, start in starts.items()
    }
    held: dict[str, set[int]] = defaultdict(set)
    for key, start in starts.items():
        if not _COMPUTED.fullmatch(key):
            for module in _modules_above(key):
                held[module].add(start)
    holders: dict[frozenset[int], list[str]] = defaultdict(list)
    for module, weights in held.items():
        holders[frozenset(weights)].append(module)
    ours: dict[str, set[int]] = defaultdict(set)
    for key, marks in convert(marked).items():
        if not _COMPUTED.fullmatch(key):
            edges = (
                marks.reshape(len(marks), -1)[:, 0] if marks.dim() else marks[None]
            )  # several packed in rows
            for module in _modules_above(key):
                ours[module] |= set(edges.long().tolist())
    return {module: holders.get(frozenset(weights), []) for module, weights in ours.items()}


def _modules_above(key: str) -> Iterator[str]:
    parts = key.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))
