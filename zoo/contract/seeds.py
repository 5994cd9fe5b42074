"""Seeds that depend only on the numbers they are made from, not on order, process or machine."""

from __future__ import annotations

import hashlib

import torch


def derived_seed(*facts: int) -> int:
    """A seed in [0, 2**63), different for different numbers."""
    key = hashlib.blake2b("/".join(map(str, facts)).encode(), digest_size=8).digest()
    return int.from_bytes(key, "little") >> 1


def derived_generator(*facts: int) -> torch.Generator:
    """CPU generator at the seed of `facts`."""
    return torch.Generator().manual_seed(derived_seed(*facts))
