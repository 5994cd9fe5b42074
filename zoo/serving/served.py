"""One model of a server: its copies, its queue, and what is known of it."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from zoo.detector import Detector
from zoo.registry.manifest import Manifest
from zoo.registry.weights import weights_digest
from zoo.runs.subject import is_written_as_path
from zoo.runtimes.module import ExportedNetwork
from zoo.serving.batcher import Batcher


class Served:
    """A model that requests may name.

    Attributes:
        id: its name in requests and answers; never a path.
        detectors: copies, one for each worker.
        card: its entry in `/v1/models`.
        batcher: its queue; set when the server starts.
    """

    batcher: Batcher

    def __init__(self, id_: str, detectors: Sequence[Detector]) -> None:
        self.id = id_
        self.detectors = detectors
        self.detector = detectors[0]
        for detector in detectors:
            if detector.manifest is None:  # else NAME:version
                detector.name = self.id
        self.card = card_of(self.id, self.detector)

    @property
    def version(self) -> dict[str, Any]:
        """What an answer says of the model: id, version and hash."""
        return {name: self.card[name] for name in ("id", "version", "hash")}


def id_of(given: str) -> str:
    """How requests call `NAME`, `ID=PLACE`, a file or a folder.

    >>> id_of("birds@champion"), id_of("exports/birds.onnx"), id_of("a=exports/model.onnx"), id_of("exports/birds/")
    ('birds@champion', 'birds', 'a', 'birds')
    """
    name, equals, place = given.partition("=")
    if equals and name and os.sep not in name and place:
        return name
    return Path(os.path.abspath(given)).stem if is_written_as_path(given) else given


def place_of(given: str) -> str:
    """What is loaded of `NAME`, `ID=PLACE`, a file or a folder."""
    name, equals, place = given.partition("=")
    return place if equals and name and os.sep not in name and place else given


def card_of(id_: str, detector: Detector) -> dict[str, Any]:
    """The entry of a model in `/v1/models`: OpenAI's four keys, and what is known of it."""
    manifest, module = detector.manifest, detector.module
    network = module.evaluation_network
    facts = network.session.facts if isinstance(network, ExportedNetwork) else None
    digest = weights_digest(network.state_dict()) if facts is None else facts.source.weights_sha256
    known = manifest or facts
    thresholds = detector.thresholds
    panoptic = None if module.panoptic is None else module.panoptic.score_threshold
    return {
        "id": id_,
        "object": "model",
        "created": 0 if known is None else seconds_of(known.created),
        "owned_by": "detr-zoo",
        "name": id_ if manifest is None else f"{manifest.name}:{manifest.version}",
        "version": None if manifest is None else manifest.version,
        "hash": f"sha256:{digest}",
        "licence": None if known is None else known.license,
        "kind": "panoptic"
        if panoptic is not None
        else "instance"
        if module.instances is not None
        else "detection",
        "label_map": list(detector.label_map.names),
        "input": detector.input.to_dict(),
        "threshold": {
            "default": detector.default_threshold,
            "classes": {} if thresholds is None else dict(thresholds.classes),
            "panoptic": panoptic,
        },
        "scores": scores_of(manifest),
        "runtime": detector.runtime,
    }


def scores_of(manifest: Manifest | None) -> dict[str, Any]:
    """Those that the authors publish, and those that were measured here, with their intervals."""
    published = None if manifest is None else manifest.published
    measured = None if manifest is None else manifest.measured
    return {
        "published": None if published is None else msgspec.to_builtins(published),
        "measured": [] if measured is None else [msgspec.to_builtins(measured)],
    }


def seconds_of(created: str) -> int:
    """Since 1970, of a manifest's date or time; 0 of what is none."""
    try:
        when = datetime.datetime.fromisoformat(created.replace("Z", "+00:00"))
    except ValueError:
        return 0
    utc = when if when.tzinfo is not None else when.replace(tzinfo=datetime.timezone.utc)
    return int(utc.timestamp())
