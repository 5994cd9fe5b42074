"""The state dict in a file of weights that others have made."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read_published(path: Path) -> dict[str, Any]:
    """The state dict in an authors' file: safetensors or a pickle of plain tensors, whatever its name.

    Raises:
        UnsafeCheckpointError: the pickle holds code; nothing of it was executed.
        ValueError: neither, or damaged.
    """
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{":  # eight bytes of length, then the JSON header
        from zoo.storage.safetensors_file import read_safetensors

        return read_safetensors(path)
    from zoo.storage.checkpoint_io import read_checkpoint

    return published_state(read_checkpoint(path))


def published_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The state dict to release of an authors' checkpoint: averaged weights if it has them.

    A file of Hugging Face is the state dict itself.

    Raises:
        ValueError: naming the keys found, if no layout fits.
    """
    from torch import Tensor

    if checkpoint and all(isinstance(value, Tensor) for value in checkpoint.values()):
        return checkpoint
    ema = checkpoint.get("ema")
    state = ema.get("module") if isinstance(ema, dict) else checkpoint.get("model")
    if not isinstance(state, dict) or not state:
        raise ValueError(
            f"the file has neither ema.module nor model; its keys are {sorted(map(str, checkpoint))[:10]}"
        )
    return state
