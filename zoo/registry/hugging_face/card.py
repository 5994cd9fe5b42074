"""The model card of a version: README.md with the hub's metadata, all of it from the manifest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import yaml

from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.registry.manifest import METRICS, METRICS_OF_MASKS, Manifest
from zoo.registry.terms import NOT_STATED, commercial, restriction

DATA_OF_THE_HUB = {"coco_2017": "detection-datasets/coco", "objects365": "objects365"}
_HUB_LICENCES = (
    "apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc0-1.0",
    "bsd-2-clause", "bsd-3-clause", "gpl-2.0", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "unlicense",
)  # fmt: skip
_LISTED = 100  # classes that are written out


def model_card(
    title: str,
    labels: LabelMap,
    contract: InputContract,
    manifest: Manifest | None,
    *,
    masks: bool,
    usage: str,
    library: str,
) -> str:
    """The text of README.md.

    Args:
        title: of the page.
        labels: what the head's indices mean.
        contract: how an image becomes the input.
        manifest: of the version; None of a checkpoint that is not registered, whose card says what is not known.
        masks: whether the model gives masks.
        usage: lines of Python that load it.
        library: of the metadata: `transformers` or `detr-zoo`.
    """
    metadata = yaml.safe_dump(
        card_facts(title, manifest, masks=masks, library=library), sort_keys=False, allow_unicode=True
    )
    sections = [f"# {title}", *_sections(labels, contract, manifest, masks, usage)]
    return f"---\n{metadata}---\n\n" + "\n\n".join(sections) + "\n"


def card_facts(title: str, manifest: Manifest | None, *, masks: bool, library: str) -> dict[str, Any]:
    """The metadata block."""
    task = "image-segmentation" if masks else "object-detection"
    facts: dict[str, Any] = {"library_name": library, "pipeline_tag": task}
    if manifest is None:
        return {"license": "other", "license_name": "not-stated", **facts}
    near = manifest.license.lower()
    licence = (
        {"license": near}
        if near in _HUB_LICENCES
        else {"license": "other", "license_name": _slug(manifest.license)}
    )
    facts["tags"] = ["detr", manifest.family.replace("_", "-"), "detr-zoo"]
    if manifest.data.name in DATA_OF_THE_HUB:
        facts["datasets"] = [DATA_OF_THE_HUB[manifest.data.name]]
    results = [_result(*scored, task) for scored in _scored(manifest)]
    if results:
        facts["model-index"] = [{"name": title, "results": results}]
    return {**licence, **facts}


def _scored(manifest: Manifest) -> Iterator[tuple[str, str, str, dict[str, float]]]:
    """(where from, data set, split, percent of each metric) of the published and the measured scores."""
    if manifest.published is not None:
        plain = msgspec.to_builtins(manifest.published)
        yield f"published, {plain['source']}", plain["dataset"], "", _percent(plain, 1.0)
    if manifest.measured is not None:
        plain = msgspec.to_builtins(manifest.measured)
        yield f"measured, run {plain['run']}", plain["dataset"], plain["split"], _percent(plain, 100.0)


def _percent(scores: dict[str, Any], scale: float) -> dict[str, float]:
    """Metrics in percent; COCO's -1 is no score."""
    given = {name: scores.get(name) for name in (*METRICS, *METRICS_OF_MASKS)}
    return {n: round(scale * v, 2) for n, v in given.items() if isinstance(v, (int, float)) and v >= 0}


def _result(source: str, data: str, split: str, scores: dict[str, float], task: str) -> dict[str, Any]:
    named = {"name": data, "type": _slug(data)} | ({"split": split} if split else {})
    metrics = [{"type": name.lower(), "name": f"{name} ({source})", "value": v} for name, v in scores.items()]
    return {"task": {"type": task}, "dataset": named, "metrics": metrics}


def _sections(
    labels: LabelMap, contract: InputContract, manifest: Manifest | None, masks: bool, usage: str
) -> Iterator[str]:
    yield _what(manifest, masks)
    yield f"## Use\n\n```python\n{usage}\n```"
    yield f"## Input\n\n{_input(contract)}"
    yield f"## Classes\n\n{_classes(labels)}"
    if manifest is None:
        yield "## Licence and origin\n\nNot known: it was exported from a checkpoint that is not registered."
        return
    yield f"## Licence\n\n{_licence(manifest)}"
    yield f"## Training\n\n{_training(manifest)}"
    yield f"## Scores\n\n{_scores(manifest)}"
    yield f"## Limits\n\n{_limits(labels, contract, manifest)}"


def _what(manifest: Manifest | None, masks: bool) -> str:
    kind = "Finds objects in an image, with their masks" if masks else "Finds objects in an image"
    if manifest is None:
        return f"{kind}. Written by detr-zoo."
    size = f", {manifest.params / 1e6:.1f} M parameters" if manifest.params else ""
    macs = f", {manifest.macs / 1e9:.1f} G multiply-adds" if manifest.macs else ""
    return f"{kind}. {manifest.family}{size}{macs}; `{manifest.name}:{manifest.version}` of detr-zoo."


def _input(contract: InputContract) -> str:
    first, second = contract.size
    resized = (
        f"stretched to {first}x{second} (height x width)"
        if contract.resize == "stretch"
        else f"its shorter side scaled to {first} pixels, its longer one to {second} at most"
    )
    levels = (
        f"divided by 255, less mean {list(contract.mean)}, over std {list(contract.std)}"
        if contract.mean
        else "divided by 255, no mean and std"
    )
    return f"An RGB image, {resized}, bilinear with antialias (`{contract.backend}`); {levels}."


def _classes(labels: LabelMap) -> str:
    rows = [f"{head}: {name}" for name, head in zip(labels.names, labels.head_indices, strict=True)]
    more = f" and {len(rows) - _LISTED} more" if len(rows) > _LISTED else ""
    holes = labels.num_classes - len(rows)
    without = f" {holes} indices of the head have no class." if holes else ""
    return f"{len(rows)}, by the index of the head: {_plain('; '.join(rows[:_LISTED]))}{more}.{without}"


def _licence(manifest: Manifest) -> str:
    lines = [f"Of the weights: {_plain(manifest.license)}. Commercial use is {commercial(manifest.terms)}."]
    why = restriction(manifest.terms, manifest.license)
    if why:
        lines.append(f"{_plain(why[0].upper() + why[1:])}.")
    if manifest.terms is not None:
        lines.append("")
        for part, one in manifest.terms.parts():
            told = (
                f"- {part}: {one.licence}; {one.source or 'no source'}{', ' + one.date if one.date else ''}"
            )
            lines.append(_plain(told + (f"; {one.note}" if one.note else "")))
    return "\n".join(lines)


def _training(manifest: Manifest) -> str:
    data, lineage = manifest.data, manifest.lineage
    digest = f", digest `{data.digest}`" if data.digest else ""
    lines = [f"- data: {data.name}, {data.split}{digest}", f"- by: {manifest.trained_by.code}"]
    lines += [f"- {text}" for text in manifest.trained_by.differs]
    if manifest.recipes:
        lines.append(f"- recipe: {', '.join(manifest.recipes)}")
    elif manifest.file("recipe.yaml"):
        lines.append("- recipe: recipe.yaml of the registered version")
    if lineage.parent:
        lines.append(f"- began from: {lineage.parent}")
    if lineage.run:
        commit = f", commit `{lineage.git_commit}`" if lineage.git_commit else ""
        dirty = ", with changes that are not committed" if lineage.dirty else ""
        lines.append(f"- run: `{lineage.run}`{commit}{dirty}")
    return "\n".join(_plain(line) for line in lines)


def _scores(manifest: Manifest) -> str:
    scored = list(_scored(manifest))
    if not scored:
        return "None are known."
    lines = []
    for source, data, split, scores in scored:
        values = ", ".join(f"{name} {value:.1f}" for name, value in scores.items())
        lines.append(f"- {_plain(source)}; on {_plain(' '.join((data, split)).strip())}: {values}")
    if manifest.measured is not None:
        lines.append(_evaluator(manifest))
    return "In percent.\n\n" + "\n".join(lines)


def _evaluator(manifest: Manifest) -> str:
    """How the measured scores were computed, and how sure they are."""
    measured = manifest.measured
    assert measured is not None
    spans = [
        f"{name} {100 * low:.1f} to {100 * high:.1f}"
        for name, (low, high) in (measured.interval or {}).items()
        if low is not None and high is not None
    ]
    told = "; ".join(f"{key} {value}" for key, value in (measured.protocol or {}).items())
    interval = f"95 % interval over images: {', '.join(spans)}" if spans else "no interval"
    return _plain(f"- measured on {measured.date} by COCO's rules{f' ({told})' if told else ''}; {interval}")


def _limits(labels: LabelMap, contract: InputContract, manifest: Manifest) -> str:
    lines = [
        f"- It knows the {len(labels.names)} classes above and no others; what looks unlike its training data is "
        "found worse, and the scores above say nothing of it.",
        "- A score is no probability: choose the threshold on images of your own.",
    ]
    if contract.resize == "stretch":
        lines.append("- Images are stretched, so that very wide or high ones lose their proportions.")
    if contract.resize == "shortest":
        ratio = contract.size[1] / contract.size[0]
        lines.append(
            f"- Images longer than {ratio:.2f} to 1 get a size some pixels off in transformers' processor, which "
            "rounds otherwise than the authors' code and detr-zoo."
        )
    if manifest.measured is None:
        lines.append("- This file was not evaluated by detr-zoo.")
    if commercial(manifest.terms) != "allowed" or manifest.license == NOT_STATED:
        lines.append("- Its terms do not clearly allow commercial use: see Licence.")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """One line in which nothing is markup: what others have written stays text."""
    line = " ".join(text.split())
    return re.sub(r"([\\\[\]<>|*])", r"\\\1", line)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unknown"
