"""A model for images of other channels than RGB, or of other values than 8 bits: what its recipe says of it."""

from __future__ import annotations

from typing import Any


def suit_channels(recipe: dict[str, Any]) -> list[str]:
    """Makes the network and the normalisation those of `data.input.channels`; returns notes for the user.

    Raises:
        ValueError: the model has no first convolution that can be adapted, or says another number itself.
    """
    contract, arguments = recipe["data"]["init_args"]["input"], recipe["model"]["init_args"]
    channels, backbone = contract.get("channels", 3), arguments.get("backbone")
    own = 3 if backbone is None else backbone.get("channels", 3)
    if not isinstance(channels, int) or (channels == 3 == own):
        return _scale_note(contract)
    if backbone is None:
        raise ValueError(
            f"data.input.channels is {channels}, and this model has no backbone that takes other than 3"
        )
    notes = _scale_note(contract)
    if own != channels:
        backbone["channels"] = channels
        notes.append(
            f"input.channels {channels}: the first convolution gives each the sum of its RGB kernels over {channels}"
        )
    for key in ("mean", "std"):
        given = contract.get(key) or []
        if len(given) == 3 != channels:
            contract[key] = [round(sum(given) / 3, 6)] * channels
            notes.append(f"input.{key} of each channel is {contract[key][0]:g}, the mean of those of RGB")
    return notes


def _scale_note(contract: dict[str, Any]) -> list[str]:
    pairs = contract.get("scale") or []
    return [f"input: values {pairs} of the channels become black and white"] if pairs else []
