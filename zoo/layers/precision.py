"""What stays in float32 while the rest of a network runs in 16 bits under autocast.

bfloat16 has 256 steps for a coordinate; boxes and sampling places of attention need more.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The precision of matrix products on `device` at present; None: that of their inputs."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def autocast_to(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[None]:
    """Matrix products inside run in `dtype`; None for the precision of their inputs, as without autocast."""
    if autocast_dtype(device) == dtype:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
