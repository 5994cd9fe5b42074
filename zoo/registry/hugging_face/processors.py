"""The image processors of transformers and our input contract, both ways.

A key that would change the pixels and that our contract has no word for is refused by name, never ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zoo.contract.preprocess import InputContract

_BILINEAR = 2  # PIL's number
_CLASSES = ("DetrImageProcessor", "DeformableDetrImageProcessor", "RTDetrImageProcessor")
# what decides the pixels, beside size, mean and std, and the one value that our contract knows
_FIXED = {"do_resize": True, "do_rescale": True, "resample": _BILINEAR, "pad_size": None}
# names of the file, how annotations are read, and what comes out beside the pixels
_NO_PIXELS = (
    "image_processor_type", "feature_extractor_type", "processor_class", "format", "do_convert_annotations",
    "return_segmentation_masks", "masks_path", "annotations", "return_tensors", "data_format", "input_data_format",
    "model_input_names", "default_to_square", "disable_grouping", "device", "_valid_processor_keys",
    "do_convert_rgb", "crop_size", "image_seq_length", "transformers_version",
)  # fmt: skip
_OTHER = ("size", "image_mean", "image_std", "do_normalize", "rescale_factor", "do_pad")


class OtherPixelsError(ValueError):
    """A processor makes other pixels than any input contract; names the key."""


def contract_of(raw: Mapping[str, Any]) -> InputContract:
    """The input contract of a preprocessor_config.json, of 2022 or of today.

    Raises:
        OtherPixelsError: naming the key.
    """
    given = dict(raw)
    kind = str(given.get("image_processor_type") or given.get("feature_extractor_type") or "")
    kind = kind.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if kind not in _CLASSES or "auto_map" in given:
        raise OtherPixelsError(
            f"image_processor_type {kind or 'missing'} is none of {', '.join(_CLASSES)}; code that a repository "
            "brings is never run"
        )
    if "pad_and_return_pixel_mask" in given:  # of 2022
        given.setdefault("do_pad", given.pop("pad_and_return_pixel_mask"))
    refining = kind == "RTDetrImageProcessor"
    resize, size = _size(given, given.pop("max_size", None), refining)
    for key in sorted(given.keys() - {*_NO_PIXELS, *_OTHER, *_FIXED}):
        if given[key] not in (None, False):
            raise OtherPixelsError(f"{key} is {given[key]!r}, which this package does not know")
    for key, value in _FIXED.items():
        if given.get(key, value) != value:
            raise OtherPixelsError(f"{key} is {given[key]!r}; the input contract has only {value!r}")
    if not math.isclose(given.get("rescale_factor") or 1 / 255, 1 / 255, rel_tol=1e-6):
        raise OtherPixelsError(
            f"rescale_factor is {given['rescale_factor']!r}; the input contract divides by 255"
        )
    if resize == "shortest" and not given.get("do_pad", True):
        raise OtherPixelsError("do_pad is false; images of a batch have different sizes here, and are padded")
    normalize = given.get("do_normalize", not refining)
    mean, std = (given.get(key) for key in ("image_mean", "image_std"))
    return InputContract(
        resize=resize,
        size=size,
        mean=_channels(mean, (0.485, 0.456, 0.406)) if normalize else (),
        std=_channels(std, (0.229, 0.224, 0.225)) if normalize else (),
    )


def _channels(given: Any, default: tuple[float, ...]) -> tuple[float, ...]:
    """A number of each channel; one for all may be written once."""
    values = default if given is None else given
    return tuple(values) if isinstance(values, (list, tuple)) else (values,) * 3


def _size(given: Mapping[str, Any], longest: int | None, refining: bool) -> tuple[Any, tuple[int, int]]:
    """(resize rule, its two numbers)."""
    size = given.get("size")
    if size is None:
        size = {"height": 640, "width": 640} if refining else {"shortest_edge": 800, "longest_edge": 1333}
    if isinstance(size, int) and not refining:  # of 2022, with max_size beside it
        size = {"shortest_edge": size, "longest_edge": longest or 1333}
    if isinstance(size, Mapping) and longest is not None and not refining:
        size = {"longest_edge": longest, **size}
    if isinstance(size, Mapping):
        used = {key: value for key, value in size.items() if value is not None}
        if used.keys() == {"height", "width"}:
            return "stretch", (used["height"], used["width"])
        if used.keys() == {"shortest_edge", "longest_edge"} and not refining:
            return "shortest", (used["shortest_edge"], used["longest_edge"])
    known = "height and width" + ("" if refining else ", or shortest_edge and longest_edge")
    raise OtherPixelsError(f"size is {size!r}; this network takes {known}")


def processor_of(contract: InputContract) -> dict[str, Any]:
    """What the processor of a family is made with; its backend is not a part of the file.

    Raises:
        ValueError: a contract that does not read RGB, which processors of transformers do.
    """
    if not contract.is_rgb:
        raise ValueError(
            "processors of transformers make 8-bit RGB, and this model's input has "
            f"{contract.channels} channels and scale {list(contract.scale)}; export it to ONNX instead"
        )
    if contract.resize == "stretch":
        size = dict(zip(("height", "width"), contract.size, strict=True))
    else:
        size = dict(zip(("shortest_edge", "longest_edge"), contract.size, strict=True))
    normalize = {"image_mean": list(contract.mean), "image_std": list(contract.std)} if contract.mean else {}
    return {
        "do_resize": True,
        "size": size,
        "resample": _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": bool(contract.mean),
        **normalize,
        "do_pad": contract.resize == "shortest",
    }
