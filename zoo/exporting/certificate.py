"""The certificate beside an exported file: what was compared, how far apart it was, and the verdict."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from zoo.evaluation.coco_ap import Evaluation
from zoo.evaluation.scores import or_null
from zoo.exporting.compare import TIMED_RUNS, Comparison
from zoo.exporting.differences import SCORED
from zoo.exporting.facts import versions
from zoo.exporting.limits import Limits
from zoo.registry.hugging_face.comparison import LARGEST_SHADE
from zoo.runtimes.facts import ExportedFacts
from zoo.storage.durable import sha256_of, write_atomically, write_json

JSON_FILE, TEXT_FILE = "certificate.json", "certificate.md"
FORMAT = 1


def paired_scores(source: Evaluation, file: Evaluation, samples: int = 200, seed: int = 0) -> dict[str, Any]:
    """AP and AP50 of both on the same images, and the 95 % interval of the difference over the same resamplings."""
    count = source.num_images
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=samples)
    mine, theirs = source.resampled(drawn), file.resampled(drawn)
    document: dict[str, Any] = {"images": count}
    for name in ("AP", "AP50"):
        difference = file.scores[name] - source.scores[name]
        moved = theirs[name] - mine[name]
        moved = moved[~np.isnan(moved)]
        ends = (
            np.quantile(moved, [0.025, 0.975]) - (moved.mean() - difference)
            if len(moved)
            else [difference] * 2
        )
        interval = [or_null(min(float(ends[0]), difference)), or_null(max(float(ends[1]), difference))]
        document[name] = {
            "source": or_null(source.scores[name]),
            "file": or_null(file.scores[name]),
            "difference": or_null(difference),
            "interval": interval,
        }
    return document


def certificate(
    files: Sequence[Path], facts: ExportedFacts, runtime: str, differences: Sequence[str], compared: Comparison,
    images: dict[str, Any], scores: dict[str, Any] | None, limits: Limits, speed: dict[str, float], hardware: str,
    kept: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """The whole certificate as plain values; `failures` is empty where the file passed.

    Args:
        files: of the export, the one to open first.
        facts: of the file.
        runtime: that computed it.
        differences: of its facts from its source.
        compared: on the images.
        images: what they were.
        scores: of `paired_scores`, and others alike; None without data.
        limits: that hold.
        speed: milliseconds of both.
        hardware: of this machine.
        kept: parts of the network in float32 where the rest is not.
    """
    found = compared.to_dict()
    return {
        "format": FORMAT,
        "passed": not (failures := judged(found, differences, scores, limits, facts.precision == "fp32")),
        "failures": failures,
        "not_compared": not_compared(found["detections"], images["data"] is not None, scores),
        "first_difference": None,
        "files": [
            {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files
        ],
        "runtime": runtime,
        "precision": facts.precision,
        "kept_in_float32": list(kept),
        "source": facts.to_dict()["source"],
        "images": {**images, "compared": compared.images},
        **found,
        "scores": scores,
        "limits": {key: value if math.isfinite(value) else None for key, value in asdict(limits).items()},
        "milliseconds": speed,
        "hardware": hardware,
        "versions": versions(),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def judged(
    found: dict[str, Any],
    differences: Sequence[str],
    scores: dict[str, Any] | None,
    limits: Limits,
    exact: bool,
) -> list[str]:
    """What is above its limit, one line each."""
    failures = list(differences)
    detections = found["detections"]
    measured = (
        ("a logit differs", found["raw"]["logits"], limits.logits),
        ("a box differs, as a share of the image,", found["raw"]["boxes"], limits.boxes),
        ("a mask's logit differs", found["masks"], limits.masks),
        ("pixels of masks are lost, as a share,", found.get("masks_lost") or 0.0, limits.pixels),
        ("a pixel of a resized image differs, in grey levels,", found.get("pixels") or 0.0, LARGEST_SHADE),
        ("the score of a detection differs", detections["score"], limits.score),
    )
    failures += [
        f"{what} by {value:.3g}; at most {most:g}" for what, value, most in measured if not value <= most
    ]
    ties, compared = found["raw"]["images_with_other_queries"], found["raw"]["images"]
    if ties > limits.tied * compared:
        failures.append(
            f"queries differ in {ties} of {compared} images whose detections do not; at most {limits.tied:.0%} of them"
        )
    total = max(detections["of_source"], detections["of_file"], 1)
    if detections["unpaired"] > limits.unpaired * 2 * total:
        failures.append(
            f"{detections['unpaired']} of {detections['of_source']} and {detections['of_file']} detections have no "
            f"partner, the first: {detections['first_unpaired'][0]}"
        )
    for name, score in (scores or {}).items():
        if not isinstance(score, dict) or score["difference"] is None:
            continue
        lost = abs(score["difference"]) if exact else -score["difference"]
        if lost > limits.ap:
            failures.append(
                f"{name} is {score['file']:.4f}, that of the source {score['source']:.4f}; at most {limits.ap:g} apart"
            )
    return failures


def not_compared(
    detections: dict[str, Any], with_data: bool, scores: dict[str, Any] | None
) -> dict[str, str]:
    """What the verdict says nothing of, and why."""
    missing = {}
    if not detections["of_source"] and not detections["of_file"]:
        missing["detections"] = f"none has a score of {SCORED:g} on these images; those of all queries were"
    if not with_data:
        missing["AP"] = "these images have no known objects; give --data FOLDER"
    elif scores is None:
        missing["AP"] = "the file says that it is of another model"
    elif scores["AP"]["difference"] is None:
        missing["AP"] = "the images have no objects of its classes"
    return missing


def write_certificate(document: dict[str, Any], folder: Path) -> None:
    """certificate.json and certificate.md in a folder."""
    write_json(folder / JSON_FILE, document, indent=2)
    write_atomically(folder / TEXT_FILE, readable(document).encode())


def readable(document: dict[str, Any]) -> str:
    """The certificate as Markdown."""
    source, found = document["source"], document["detections"]
    images, parts = document["images"], document["kept_in_float32"]
    kept = f"; in float32 stay {', '.join(parts)}" if parts else ""
    rows = [
        ("largest difference of a logit", f"{document['raw']['logits']:.2e}", document["limits"]["logits"]),
        ("of a box, as a share of the image", f"{document['raw']['boxes']:.2e}", document["limits"]["boxes"]),
        (
            "images with other queries and the same detections",
            f"{document['raw']['images_with_other_queries']} of {images['compared']}",
            document["limits"]["tied"],
        ),
        ("of a paired detection's score", f"{found['score']:.2e}", document["limits"]["score"]),
        ("of a paired detection's corner, pixels", f"{found['pixels']:.3f}", None),
        (
            "detections without a partner",
            f"{found['unpaired']} of {found['of_source']} and {found['of_file']}",
            document["limits"]["unpaired"],
        ),
    ]
    if document["masks_lost"] is not None:
        of_masks, limits = document["masks"], document["limits"]
        rows += [
            ("of a mask's logit", f"{of_masks:.2e}", limits["masks"]),
            ("share of the pixels of masks that is lost", f"{document['masks_lost']:.2e}", limits["pixels"]),
        ]
    if document["pixels"] is not None:
        told = f"{document['pixels']:.3f}"
        if document["images_of_another_size"]:
            told += (
                f", without {document['images_of_another_size']} to which its processor gives another size"
            )
        rows.append(("of a pixel after the folder's own resize, grey levels", told, LARGEST_SHADE))
    if (segments := document.get("segments")) is not None:
        close = segments["apart"] - segments["decided"]
        text = (
            f"{segments['apart']} of {segments['pixels']}, {close} where two masks are equal but for rounding"
        )
        rows.append(("pixels of another segment", text, None))
    for name, score in (document["scores"] or {}).items():
        if isinstance(score, dict) and score["difference"] is not None:
            band = score.get("interval")
            told = f" [{band[0]:+.4f}, {band[1]:+.4f}]" if band else ""
            text = f"{score['source']:.4f} to {score['file']:.4f}: {score['difference']:+.4f}{told}"
            rows.append((f"{name} on {document['scores']['images']} images", text, document["limits"]["ap"]))
    missing = document["not_compared"]
    verdict = "passed" if document["passed"] else "REFUSED"
    lines = [
        f"# {document['files'][0]['name']}: {verdict}{missing_told(document)}",
        "",
        *(f"- not compared: {what}: {why}" for what, why in missing.items()),
        *([""] if missing else []),
        f"Made of {source['name']}, weights {source['weights_sha256']}. Precision {document['precision']}, computed by "
        f"{document['runtime']}{kept}.",
        "",
        *(f"- {file['name']}: {file['bytes']} bytes, SHA-256 {file['sha256']}" for file in document["files"]),
        "",
        f"Compared on {images['compared']} images: {images['kind']}.",
        *(
            f"{title} {about['images']} images: {about['kind']}; SHA-256 {about['digest']}."
            for title, about in (("Scored on", images.get("scored")), ("Learned from", images.get("learned")))
            if about is not None and "images" in about
        ),
        "",
        "| | found | limit |",
        "|---|---|---|",
        *(
            f"| {what} | {value} | {'none' if limit is None else f'{limit:g}'} |"
            for what, value, limit in rows
        ),
        "",
        *(f"- FAILED: {failure}" for failure in document["failures"]),
        *(
            [f"- first block that differs: {document['first_difference']}"]
            if document["first_difference"]
            else []
        ),
        "",
        *search_told(document.get("search")),
        f"Milliseconds an image at batch 1, levels to detections, median of {TIMED_RUNS} runs in turns: "
        + ", ".join(f"{name} {value:.1f}" for name, value in document["milliseconds"].items())
        + f". {slower_told(document)}{document['hardware']}. "
        + ", ".join(f"{name} {number}" for name, number in document["versions"].items())
        + f". {document['created']}",
        "",
    ]
    return "\n".join(lines)


def missing_told(document: dict[str, Any]) -> str:
    """`, AP not compared`, or nothing."""
    missing = document["not_compared"]
    return f", {' and '.join(missing)} not compared" if missing else ""


def slower_told(document: dict[str, Any]) -> str:
    """A sentence where lower precision gains no time on this machine; nothing else."""
    times, runtime = document["milliseconds"], document["runtime"]
    if times[runtime] < times.get(f"{runtime} fp32", math.inf):
        return ""
    return f"{document['precision']} is not faster than fp32 here. "


def search_told(search: dict[str, Any] | None) -> list[str]:
    """Lines that tell why parts are kept, or why none helped; nothing where all could be reduced at once."""
    if not search or not search["costs"]:
        return []
    lines = [
        "| part | share of the detections that are lost with this part alone reduced |",
        "|---|---|",
        *(f"| {part} | {cost:.4f} |" for part, cost in search["costs"].items()),
        "",
    ]
    tried = (
        f"- {trial['kept']} of {len(search['costs'])} parts kept in float32: "
        + ("passed" if trial["passed"] else f"failed, {trial['failures'][0]}")
        for trial in search["tried"]
    )
    return [*lines, *tried, ""]
