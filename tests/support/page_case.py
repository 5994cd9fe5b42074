"""What the tests of the page share: a browser, models whose detections are known, images that show where these are."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from mask_case import INPUT as MASK_INPUT
from mask_case import LABELS as MASK_LABELS
from mask_case import mask_module, scripted
from PIL import Image
from registry_case import INPUT
from served_case import Running, running, tiny_detector, tiny_module

from zoo.contract.batch import Detections
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.detector import Detector
from zoo.registry.manifest import Thresholds
from zoo.serving.limits import Limits

ODD = "it's; <b>odd</b>"  # a name of a class that shells, forms and browsers may misread
LABELS = LabelMap.contiguous(["disc", ODD, "no"], [7, 3, 12])
# (head, score, box as shares of the image); the last two overlap nothing and are below the model's own thresholds
KNOWN = [
    (0, 0.9, (0.05, 0.1, 0.2, 0.6)),
    (1, 0.6, (0.6, 0.3, 0.9, 0.9)),
    (2, 0.35, (0.3, 0.2, 0.45, 0.4)),
    (1, 0.45, (0.3, 0.6, 0.4, 0.8)),
    (0, 0.1, (0.7, 0.05, 0.8, 0.2)),
]
OWN = Thresholds(chosen_for="best F1", split="val", all=0.5, classes={"no": 0.3})
MOST_PIXELS = 5_000_000  # of an image
INK, PAPER = (200, 30, 30), (120, 125, 130)


def known_detector(name: str = "known") -> Detector:
    """Detects `KNOWN` in every image."""
    module = tiny_module()
    module.adopt(LABELS, InputContract.from_dict(INPUT))
    scores = torch.tensor([score for _, score, _ in KNOWN])
    heads = torch.tensor([head for head, _, _ in KNOWN])
    shares = torch.tensor([box for _, _, box in KNOWN])
    order = scores.argsort(descending=True)

    def detect(batch):
        sizes = [torch.tensor([w, h, w, h]) for h, w in batch.original_sizes]
        return [Detections(scores[order], heads[order], (shares * size)[order]) for size in sizes]

    module.detect = detect
    return Detector(module, name, thresholds=OWN)


def panoptic_detector() -> Detector:
    """Cat on the left, dog on the right, sky above; see `scripted`."""
    module = mask_module()
    module.adopt(MASK_LABELS, InputContract.from_dict(MASK_INPUT))
    module.predictions = scripted
    return Detector(module, "panoptic")


@contextlib.contextmanager
def page_server(keys: tuple[str, ...] = ()) -> Iterator[Running]:
    """The known model, the panoptic one, and a network with random weights."""
    models = {"known": [known_detector()], "panoptic": [panoptic_detector()], "tiny": [tiny_detector()]}
    with running(models, Limits(max_pixels=MOST_PIXELS), keys) as server:
        yield server


def photo(width: int, height: int, kind: str = "PNG", orientation: int = 1, tag: str = "exif") -> bytes:
    """Paper with ink where `KNOWN` says that there is something.

    Args:
        width: of the upright image.
        height: likewise.
        kind: of the file.
        orientation: of EXIF; the stored image is turned so that a viewer shows the upright one.
        tag: what tells the orientation, `exif` or `xmp`.
    """
    pixels = np.full((height, width, 3), PAPER, np.uint8)
    for _, _, (x0, y0, x1, y1) in KNOWN:
        pixels[round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)] = INK
    image, turned = Image.fromarray(pixels), STORED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    given = {} if orientation == 1 else {"exif": exif} if tag == "exif" else {"xmp": xmp}
    buffer = io.BytesIO()
    (image if turned is None else image.transpose(turned)).save(buffer, kind, quality=95, **given)
    return buffer.getvalue()


STORED = {  # how an upright image is stored with each orientation
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@contextlib.contextmanager
def chromium():
    """A browser; the test is skipped, with the reason, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright; pip install -e '.[test]'")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no chromium here; on Debian: apt-get install chromium fonts-liberation")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path)
        yield browser
        browser.close()


class Visit:
    """A page that was opened, what it asked for, and what it complained of."""

    def __init__(self, browser, url: str, **options) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page = self.context.new_page()
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda line: self.complaints.append(line.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.set_default_timeout(20_000)
        self.url = url
        self.page.goto(url)

    def __enter__(self):
        return self

    def again(self):
        """As if it were opened for the first time."""
        self.page.unroute_all()
        self.page.goto(self.url)
        self.requests.clear()
        self.complaints.clear()
        return self

    def __exit__(self, *error):
        self.context.close()

    def ready(self):
        self.page.locator("#model:not([disabled])").wait_for()
        return self

    def choose(self, model):
        self.page.select_option("#model", model)

    def upload(self, content: bytes, name: str = "photo.png"):
        """Gives an image and waits for what is found, or for why there is nothing."""
        self.page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})
        self.settled()

    def settled(self):
        self.page.locator("#stage[aria-busy=false]").wait_for()

    def asked(self) -> int:
        return sum(url.endswith("/v1/detect") for url in self.requests)

    def table(self) -> list[list[str]]:
        return [row.locator("th, td").all_inner_texts() for row in self.page.locator("#rows tr").all()]

    def boxes(self) -> int:
        return self.page.locator("#boxes .line").count()

    def pixels(self) -> np.ndarray:
        """[h, w, 3] of the image on the screen, in its device's pixels; names are left out, which lie on it."""
        self.page.evaluate("document.getElementById('names').style.visibility = 'hidden'")
        shot = self.page.locator("#image").screenshot()
        self.page.evaluate("document.getElementById('names').style.visibility = ''")
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)


def is_near(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Where a colour is, but for what JPEG and smoothing do to it."""
    return np.abs(pixels - np.array(colour)).max(axis=-1) <= 24


def lines_of(pixels: np.ndarray, share: tuple[float, ...], colour: tuple[int, int, int]) -> list[float]:
    """Left, top, right and bottom of what is drawn in a colour around a place, in pixels of the screen.

    Each is the middle of the line's thickness, looked for along the middle row and the middle column of the place.
    """
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = (share * np.array([width, height, width, height])).tolist()
    row = np.flatnonzero(is_near(pixels[int((y0 + y1) / 2)], colour))
    column = np.flatnonzero(is_near(pixels[:, int((x0 + x1) / 2)], colour))
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2

    def near(found, low):
        assert len(found), f"nothing is drawn in {colour} around {share}"
        edge = found.max() if low else found.min()
        return float(found[np.abs(found - edge) < 12].mean()) + 0.5

    return [
        near(row[row < middle_x], True),
        near(column[column < middle_y], True),
        near(row[row > middle_x], False),
        near(column[column > middle_y], False),
    ]
