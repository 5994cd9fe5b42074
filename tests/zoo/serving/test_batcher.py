"""Images of several requests share a batch if they have one size, and a lonely one does not wait."""

import asyncio
import threading
import time

import pytest
import torch
from registry_case import INPUT, LABELS, tiny_module

from zoo.contract.preprocess import InputContract
from zoo.detector import Detector
from zoo.serving.batcher import Batcher


class Fake:
    """A detector that notes its batches; `gate` keeps it busy, and it has no answer for `broken`."""

    def __init__(self, takes_several=True):
        self.takes_several = takes_several
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()

    def predict_together(self, images, thresholds):
        self.batches.append([image.name for image in images])
        assert self.gate.wait(10)
        if any(image.name == "broken" for image in images):
            raise RuntimeError("no memory")
        return [f"{image.name} {threshold}" for image, threshold in zip(images, thresholds, strict=True)]


class Picture:
    def __init__(self, name, shape=(3, 8, 8)):
        self.name = name
        self.shape = shape


def run(work, detectors, most=4, wait=0.0, **told):
    async def all_of_it():
        batcher = Batcher(detectors, most, wait, **told)
        batcher.start()
        try:
            return await work(batcher)
        finally:
            batcher.stop()

    return asyncio.run(all_of_it())


async def while_busy(batcher, detector, *pictures):
    """Submits while the model computes another image, so that all wait together."""
    detector.gate.clear()
    first = batcher.submit(Picture("first"), None)
    while not detector.batches:
        await asyncio.sleep(0.001)
    answers = [batcher.submit(picture, 0.5) for picture in pictures]
    detector.gate.set()
    await first
    return answers


def test_what_gathers_while_the_model_computes_is_the_next_batch():
    detector = Fake()

    async def work(batcher):
        answers = await while_busy(batcher, detector, *(Picture(name) for name in "abcdef"))
        return await asyncio.gather(*answers)

    told = []
    found = run(work, [detector], computed=lambda images, seconds: told.append(images))
    assert found == [f"{name} 0.5" for name in "abcdef"]
    assert detector.batches == [["first"], ["a", "b", "c", "d"], ["e", "f"]]
    assert told == [1, 4, 2]


def test_only_one_size_shares_a_batch_and_the_oldest_comes_first():
    detector = Fake()

    async def work(batcher):
        pictures = [Picture("a"), Picture("B", (3, 9, 9)), Picture("c"), Picture("D", (3, 9, 9))]
        return await asyncio.gather(*await while_busy(batcher, detector, *pictures))

    assert run(work, [detector]) == ["a 0.5", "B 0.5", "c 0.5", "D 0.5"]
    assert detector.batches == [["first"], ["a", "c"], ["B", "D"]]


def test_a_model_that_takes_one_at_a_time_gets_one():
    detector = Fake(takes_several=False)

    async def work(batcher):
        return await asyncio.gather(*await while_busy(batcher, detector, Picture("a"), Picture("b")))

    run(work, [detector])
    assert detector.batches == [["first"], ["a"], ["b"]]


def test_what_one_image_breaks_is_its_own_fault():
    detector = Fake()

    async def work(batcher):
        pictures = [Picture("a"), Picture("broken"), Picture("c")]
        answers = await while_busy(batcher, detector, *pictures)
        found = await asyncio.gather(*answers, return_exceptions=True)
        return [*found, await batcher.submit(Picture("later"), None), batcher.works]

    a, broken, c, later, works = run(work, [detector])
    assert (a, c, later, works) == ("a 0.5", "c 0.5", "later None", True)
    assert isinstance(broken, RuntimeError)


def test_an_image_that_nobody_waits_for_is_not_computed():
    detector = Fake()

    async def work(batcher):
        a, gone, c = await while_busy(batcher, detector, Picture("a"), Picture("gone"), Picture("c"))
        gone.cancel()
        return await asyncio.gather(a, c)

    # cancelled after the gate opened: only what had not begun is dropped
    detector.takes_several = False
    run(work, [detector])
    assert detector.batches == [["first"], ["a"], ["c"]]


def test_a_lonely_image_does_not_wait_and_one_waits_for_another_that_is_coming():
    detector = Fake()

    async def work(batcher):
        begun = time.monotonic()
        await batcher.submit(Picture("alone"), None)
        alone = time.monotonic() - begun
        with batcher.coming():
            early = batcher.submit(Picture("early"), None)
            await asyncio.sleep(0.05)
            late = batcher.submit(Picture("late"), None)
        await asyncio.gather(early, late)
        return alone

    assert run(work, [detector], wait=30.0) < 30.0
    assert detector.batches == [["alone"], ["early", "late"]]


def test_an_image_that_is_given_up_while_its_batch_waits_is_not_computed():
    detector = Fake()

    async def work(batcher):
        with batcher.coming():
            gone = batcher.submit(Picture("gone"), None)
            await asyncio.sleep(0.05)
            gone.cancel()
            late = batcher.submit(Picture("late"), None)
        return await late

    assert run(work, [detector], wait=30.0) == "late None"
    assert detector.batches == [["late"]]


def test_a_batch_does_not_wait_longer_than_it_may():
    detector = Fake()

    async def work(batcher):
        with batcher.coming():  # and never comes
            return await batcher.submit(Picture("a"), None)

    assert run(work, [detector], wait=0.02) == "a None"


def test_two_copies_compute_at_the_same_time():
    detectors = [Fake(), Fake()]

    async def work(batcher):
        for detector in detectors:
            detector.gate.clear()
        answers = [batcher.submit(Picture(name), None) for name in "ab"]
        while not all(detector.batches for detector in detectors):
            await asyncio.sleep(0.001)
        for detector in detectors:
            detector.gate.set()
        return await asyncio.gather(*answers)

    assert run(work, detectors, most=1) == ["a None", "b None"]


@pytest.fixture(scope="module")
def detector():
    module = tiny_module()
    module.adopt(LABELS, InputContract.from_dict(INPUT))
    return Detector(module, "tiny")


def test_together_is_what_predict_finds_alone(detector):
    images = [torch.randint(0, 256, (3, 30 + n, 50), dtype=torch.uint8) for n in range(3)]
    thresholds = [0, None, 0.02]
    together = detector.predict_together([detector.ready(image) for image in images], thresholds)
    for found, image, threshold in zip(together, images, thresholds, strict=True):
        alone = detector.predict(image, threshold)
        assert found.labels == alone.labels
        assert found.size == alone.size
        assert found.threshold == alone.threshold
        assert found.scores == pytest.approx(alone.scores, abs=1e-5)
        assert torch.allclose(torch.tensor(found.boxes_xyxy), torch.tensor(alone.boxes_xyxy), atol=1e-2)


def test_images_of_several_sizes_are_refused(detector):
    a, b = (detector.ready(torch.zeros(3, 8, 8, dtype=torch.uint8)) for _ in range(2))
    with pytest.raises(ValueError, match="padding"):
        detector.predict_together(
            [a, b._replace(resized=torch.zeros(3, 32, 64, dtype=torch.uint8))], [None, None]
        )
