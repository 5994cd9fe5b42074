"""The device that a model is computed on, by what the user has asked for."""

from __future__ import annotations

import torch

from zoo.detector import Detector


def check_device(name: str) -> None:
    """Raises ValueError for a device that is not here; `auto` is everywhere."""
    try:
        torch.empty(0, device="cpu" if name == "auto" else name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ValueError(f"--device {name[:40]}: {reason}; cpu, or auto, is always there") from error


def device_for(given: str, detector: Detector) -> str:
    """A device of torch; `auto` is the first GPU, or else the CPU. Exported files are computed on the CPU.

    Raises:
        ValueError: there is no such device.
    """
    if detector.runtime != "pytorch":
        return "cpu"
    check_device(given)
    if given == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return given
