"""The image of a request as a browser can show it, for the page, which reads neither other servers nor every format."""

from __future__ import annotations

import base64
import io

from torch import Tensor

from zoo.contract.preprocess import InputContract
from zoo.pictures.painting import canvas, seen_rgb
from zoo.prediction.image_input import read_input, size_of

_LONGEST = 2048  # pixels of the longer side; enough for a screen
_QUALITY = 90


def picture_of(content: bytes, contract: InputContract) -> str:
    """A data URI of the upright image as JPEG, reduced where it is large.

    Args:
        content: an image that was read before.
        contract: of the model; of other channels than RGB three are shown.
    """
    image = read_input(content, contract)
    longest = min(_LONGEST, max(size_of(image)))
    picture, _ = canvas(seen_rgb(image) if isinstance(image, Tensor) else image, longest)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
