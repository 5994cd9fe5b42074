"""Seeds that depend on the facts they are made from and on nothing else: no order, no process, no machine."""

from __future__ import annotations

import hashlib

import torch


def derived_seed(*facts: int) -> int:
    """A seed in [0, 2**63) that differs between different facts."""
    key = hashlib.blake2b("/".join(map(str, facts)).encode(), digest_size=8).digest()
    return int.from_bytes(key, "little") >> 1


def derived_generator(*facts: int) -> torch.Generator:
    """CPU generator at the seed of `facts`."""
    return torch.Generator().manual_seed(derived_seed(*facts))
