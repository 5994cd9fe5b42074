"""What `zoo bench` is asked for on the command line, checked, and the images that it runs on."""

from __future__ import annotations

import importlib.util
import io
import itertools
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from zoo.detector import Detector
from zoo.runs.bench_cases import PRECISIONS, RUNTIMES
from zoo.runs.console import Console
from zoo.runs.evaluate import parse_layers
from zoo.runs.predict import open_source

MOST_IMAGES = 16
NEEDED: dict[str, tuple[str, ...]] = {
    "pytorch": (), "onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino"),
}  # fmt: skip
MADE_UP = (480, 640)  # (h, w), the commonest size of COCO's images


def device_of(text: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1` as a device that is there.

    Raises:
        ValueError: it is not, or is of another kind.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["cpu", *(f"cuda:{n}" for n in range(gpus))]
    if text == "auto":
        return torch.device("cuda:0" if gpus else "cpu")
    name = "cuda:0" if text == "cuda" else text
    if name not in there:
        raise ValueError(f"--device {text!r:.40}: there is {', '.join(there)}")
    return torch.device(name)


def batch_sizes_of(text: str) -> list[int]:
    """`1,8` as numbers.

    Raises:
        ValueError: one of them is no number of images.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and part.isascii() and 1 <= int(part) <= 1024 for part in parts):
        raise ValueError(f"--batch-sizes {text!r:.60}: give numbers of images from 1 to 1024, as in 1,8")
    return list(dict.fromkeys(int(part) for part in parts))


def precisions_of(text: str) -> list[str]:
    """`fp32,bf16` as names.

    Raises:
        ValueError: one of them is unknown.
    """
    return _some_of("--precision", text, PRECISIONS)


def runtimes_of(text: str | None, console: Console) -> list[str]:
    """`pytorch,openvino` as names; None for all that can be used here, and a line says what cannot.

    Raises:
        ValueError: one of them is unknown.
    """
    if text is None:
        usable = []
        for runtime, libraries in NEEDED.items():
            missing = [name for name in libraries if importlib.util.find_spec(name) is None]
            if not missing:
                usable.append(runtime)
            else:
                what = f"without {RUNTIMES[runtime]}, which needs {', '.join(missing)}"
                console.say(f"{what}: pip install 'detr-zoo[export]'")
        return usable
    return _some_of("--runtimes", text, RUNTIMES)


def _some_of(option: str, text: str, known: Collection[str]) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(known):
        raise ValueError(f"{option} {text!r:.60}: give some of {','.join(known)}")
    return list(dict.fromkeys(names))


def layers_of(detector: Detector, text: str | None) -> Sequence[int | None]:
    """Numbers of decoder layers to time; [None] of an architecture that always runs all.

    Raises:
        ValueError: the architecture cannot leave any out, or the decoder has not that many.
    """
    module = detector.module
    if text is not None:
        return list(dict.fromkeys(parse_layers(text, module)))
    if module.decoder_layers is None:
        return [None]
    count = module.set_decoder_layers(module.decoder_layers)
    module.set_decoder_layers(count)
    return [count]


def limits_of_masks(detector: Detector, console: Console) -> dict[str, Any]:
    """What a model with masks changes of the ways: they are made one image at a time, by a function of no graph."""
    if detector.module.instances is None:
        return {}
    console.say(
        f"{detector.name}: masks are made one image at a time, so it is timed at batch 1, not compiled"
    )
    return {"batch_sizes": [1], "compiled": False}


def made_up_images() -> list[bytes]:
    """JPEGs of about the bytes of COCO's: large spots under a little noise."""
    generator = np.random.default_rng(0)
    height, width = MADE_UP
    encoded = []
    for _ in range(MOST_IMAGES):
        spots = Image.fromarray(generator.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        pixels = np.asarray(spots.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = (pixels + generator.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    return encoded


def read_images(source: str) -> list[bytes]:
    """The first images of a file, folder or address, as they are encoded."""
    found = itertools.islice(open_source(source), MOST_IMAGES)
    return [i.content if isinstance(i.content, bytes) else i.content.read_bytes() for i in found]
