"""`zoo list` and `zoo info`: recipes and manifests, no torch."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from zoo.cli.models.commercial import left_out
from zoo.cli.models.commercial import show as show_left_out
from zoo.registry.manifest import METRICS_OF_MASKS
from zoo.registry.terms import ModelTerms
from zoo.runs import catalogue, recipes
from zoo.runs.console import Console
from zoo.runtimes.naming import is_exported

WIDTH = 110
SCORES = (
    "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl", *METRICS_OF_MASKS,
)  # fmt: skip


def list_models(registry: Path | None, console: Console, commercial: bool = False) -> None:
    """One row per model of the zoo, then those of the user's registry.

    Args:
        registry: of the user.
        console: prints the table.
        commercial: only models whose terms clearly allow commercial use, and why the others are left out. The JSON is
            then {models: [...], left_out: [{part, licence, commercial, needs, models}]}.
    """
    models = list(catalogue.models().values())
    registered = catalogue.registered(registry)
    every = models + registered
    if commercial:
        models, registered = (
            [e for e in entries if e.get("commercial") == "allowed"] for entries in (models, registered)
        )
    unclear = [e for e in every if e.get("commercial") != "allowed"]
    free = models + registered
    console.result({"models": free, "left_out": left_out(unclear)} if commercial else free)
    if console.as_json:
        return
    rows = [
        (e["name"], _millions(e["params"]), _score(e["published"], "AP"), _score(e["published"], "AP50"),
         _score(e["published"], "segm_AP"), _score(e["published"], "PQ"),
         _score(e["measured"], "AP") or "not yet", _recipe(e))
        for e in models
    ]  # fmt: skip
    header = ("model", "params", "published AP", "AP50", "segm AP", "PQ", "measured AP", "recipe")
    console.table(header, rows)
    if registered:
        console.say("\nin your registry:")
        own = [(e["name"], e["version"], *_own_score(e["measured"]), _aliases(e)) for e in registered]
        console.table(("model", "version", "measured AP", "on", "aliases"), own)
    if commercial:
        show_left_out(unclear, console)
    console.say("\nzoo info NAME tells more; zoo finetune NAME --data FOLDER trains it on your images")


def results_table() -> str:
    """The table of recipes/README.md: every recipe with published scores, by family, data and AP."""
    rows = []
    for entry in catalogue.models().values():
        for key in entry["recipes"]:
            about = recipes.load_heading(recipes.resolve(key)).about
            scores = about["published"]
            if not scores or catalogue.is_finetune(key):
                continue
            dataset = (entry["published"] or {}).get("dataset") or "-"
            cells = (
                f"[{key}]({key}.yaml)",
                f"`{entry['name']}`",
                _number(about["params"]),
                f"{_score(scores, 'AP')} / {_score(scores, 'AP50') or '-'}",
                _score(scores, "segm_AP") or "-",
                _score(scores, "PQ") or "-",
                dataset,
                _score(about["measured"], "AP") or "not yet",
            )
            rows.append((entry["family"], dataset, scores["AP"], "| " + " | ".join(cells) + " |"))
    return "\n".join(
        [
            "| recipe | zoo name | parameters | published AP / AP50 | of masks | PQ | on | measured AP |",
            "|---|---|---|---|---|---|---|---|",
            *(row[-1] for row in sorted(rows)),
        ]
    )


def info(name: str, registry: Path | None, console: Console) -> None:
    """All facts of one model, or of an exported file."""
    if is_exported(Path(name)):
        document = facts_of_file(Path(name))
        console.result(document)
        if not console.as_json:
            show(readable_facts(document), console)
        return
    entry = catalogue.find_registered(name, registry)
    if entry is not None:
        console.result(entry)
        if not console.as_json:
            show(readable_registered(entry), console)
        return
    entry = catalogue.with_details(catalogue.find(name, registry))
    console.result(entry)
    if not console.as_json:
        show(readable(entry), console)


def facts_of_file(path: Path) -> dict[str, Any]:
    """What an exported file says of itself, as plain values."""
    from zoo.runtimes.module import open_session

    return open_session(path).facts.to_dict()


def readable_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of an exported file without its long parts."""
    classes = facts["label_map"]["classes"]
    names = ", ".join(row["name"] for row in classes[:8]) + (", ..." if len(classes) > 8 else "")
    tensors = {
        kind: {name: f"{t['dtype']} {t['shape']}: {t['holds']}" for name, t in facts[kind].items()}
        for kind in ("inputs", "outputs")
    }
    return {
        "made of": facts["source"]["name"],
        "weights": facts["source"]["weights_sha256"],
        "network": facts["model"]["class_path"],
        "precision": facts["precision"],
        "decoder layers": facts["decoder_layers"] or "all",
        "classes": f"{len(classes)}: {names}",
        "input": facts["input"],
        **tensors,
        "licence": facts["license"],
        "terms": _terms(facts["terms"]),
        "data": facts["source"]["data"],
        "created": facts["created"],
        "made with": facts["tool_versions"],
    }


def readable(entry: dict[str, Any]) -> dict[str, Any]:
    """A model of the zoo in words: ours beside the published figure, then the rest."""
    published = entry["published"] or {}
    height, width = entry["input"]["size"]
    # the size that a 480x640 image gets
    shape = f"{height}x{width}" if entry["input"]["resize"] == "stretch" else "800x1066"
    rule = (
        f"{height}x{width}"
        if entry["input"]["resize"] == "stretch"
        else f"shorter side {height}, longer at most {width}"
    )
    facts: dict[str, Any] = {
        "name": entry["full_name"],
        "family": f"{entry['family']}, {entry.get('paper', 'no paper')}",
        "licence": entry["license"],
        "commercial": entry.get("restriction") or entry.get("commercial"),
        "terms": _terms(entry.get("terms")),
        "parameters": f"{_number(entry['params'])}" + _published(published.get("params")),
        "multiply-adds": f"{entry['macs'] / 1e9:.1f} G at {shape}" + _flops(published),
        "counted": entry.get("counted"),
        "input": rule,
        "schedule": _schedule(entry["schedule"], entry.get("unpublished", [])),
    }
    if published:
        facts["published"] = {
            "scores": _scores(published),
            "on": published.get("dataset"),
            "recall": f"{_scores(published['AR'])} (evaluated at batch 1)"
            if published.get("AR")
            else "not published",
            "speed": _speed(published),
            "training": f"{published['gpu_hours']} GPU hours"
            if "gpu_hours" in published
            else "GPU hours not published",
            "with fewer decoder layers": {
                f"{n} layers": _scores(scores) for n, scores in published.get("decoder_layers", {}).items()
            },
            "other schedules": {
                key: _scores(scores) + (f"; {scores['gpu_hours']} GPU hours" if "gpu_hours" in scores else "")
                for key, scores in entry["other_schedules"].items()
            },
            "in the paper": _scores(published.get("paper") or {}),
            "source": published.get("source"),
            "note": published.get("note"),
        }
    facts["measured"] = _scores(entry["measured"] or {}) or "not yet"
    origin = entry.get("origin")
    if origin is not None:
        facts["file"] = {
            "published": f"{origin['file']}, {published.get('file_size') or 'size not published'}",
            "converted": f"about {entry['params'] * 4 / 1e6:.0f} MB of float32 weights",
            "on this machine": entry["pulled"] or f"not yet; zoo pull {entry['name']}",
            "sources": entry["sources"],
            "note": origin["note"],
        }
        facts["trained by"] = entry["trained_by"]["code"]
        what = "differs from the recipe in" if entry["recipes"] else "what is unpublished"
        facts[what] = entry["trained_by"]["differs"]
    facts["recipes"] = entry["recipes"]
    return facts


def readable_registered(entry: dict[str, Any]) -> dict[str, Any]:
    """A model of the user's registry in words: its manifest, with scores of three digits and no lists of thresholds."""
    facts = {"licence" if key == "license" else key: value for key, value in entry.items()}
    facts["terms"] = _terms(entry["terms"])
    measured = entry["measured"]
    if measured is not None:
        intervals = {key: band for key, band in measured["interval"].items() if None not in band}
        facts["measured"] = {
            "scores": _scores(measured),
            "interval": "  ".join(f"{key} {low:.3f} to {high:.3f}" for key, (low, high) in intervals.items()),
            **{k: v for k, v in measured.items() if k not in (*SCORES, "interval", "unit")},
            "protocol": {k: v for k, v in measured["protocol"].items() if _is_short(v)},
        }
    return facts


def _terms(terms: dict[str, Any] | None) -> dict[str, str]:
    """Licence, source and date of code, weights and each data set, in words."""
    if terms is None:
        return {}
    return {
        part: f"{one.licence}, from {one.source or 'no source'}"
        + (f", {one.date}" if one.date else "")
        + f"; commercial use {one.commercial}"
        + (f"; {one.note}" if one.note else "")
        for part, one in msgspec.convert(terms, ModelTerms).parts()
    }


def show(facts: dict[str, Any], console: Console) -> None:
    """Keys and values, wrapped; nested values as indented lines."""
    for line in _lines(facts, 0):
        console.say(line)


def _lines(facts: dict[str, Any], indent: int) -> Iterator[str]:
    width = max([12, *(len(key) for key, value in facts.items() if _is_short(value))])
    for key, value in facts.items():
        if value == "" or (value is None and key != "measured"):
            continue
        if _is_short(value):
            text = "not yet" if value is None else _plain(value)
            start = " " * indent + key.ljust(width) + " "
            yield from textwrap.wrap(
                text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start),
                break_long_words=False, break_on_hyphens=False,
            ) or [start]  # fmt: skip
        elif value:
            yield " " * indent + key
            if isinstance(value, dict):
                yield from _lines(value, indent + 2)
            else:
                for item in value:
                    if isinstance(item, dict):
                        item = ", ".join(f"{k} {_plain(v)}" for k, v in item.items())
                    yield from textwrap.wrap(
                        _plain(item), WIDTH, initial_indent=" " * (indent + 2) + "- ",
                        subsequent_indent=" " * (indent + 4), break_long_words=False, break_on_hyphens=False,
                    )  # fmt: skip


def _is_short(value: Any) -> bool:
    return not isinstance(value, (dict, list, tuple))


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " to ".join(_plain(v) for v in value)
    return _number(value) if isinstance(value, int) else "-" if value is None else f"{value}"


def _number(value: int) -> str:
    return f"{value:,}".replace(",", " ")


def _published(value: str | None) -> str:
    return f"; published {value}" if value else ""


def _flops(published: dict[str, Any]) -> str:
    """The published figure in its own convention, and in ours where they differ."""
    if "gflops" not in published:
        return ""
    macs, convention = published["gmacs"], published["gflops_convention"]
    same = "" if macs in (None, published["gflops"]) else f", so {macs:g} G multiply-adds"
    return f"; published {published['gflops']} GFLOPs{same}" + (f" ({convention})" if convention else "")


def _scores(scores: dict[str, Any]) -> str:
    return "  ".join(f"{n} {_score(scores, n)}" for n in SCORES if _score_is_there(scores, n))


def _score_is_there(scores: dict[str, Any], name: str) -> bool:
    return isinstance(scores.get(name), (int, float))


def _speed(published: dict[str, Any]) -> str:
    parts = []
    if "seconds_per_image" in published:
        parts.append(f"{published['seconds_per_image']} s an image")
    if "fps" in published:
        parts.append(f"{published['fps']} FPS")
    if not parts:
        return "not published"
    more = f"; {published['fps_batch4']} FPS at batch 4" if "fps_batch4" in published else ""
    where = f" ({published['speed_device']})" if published["speed_device"] else ""
    return f"{', '.join(parts)}{where}{more}"


def _schedule(schedule: dict[str, Any] | None, unpublished: list[str]) -> str:
    if schedule is None:
        return "unpublished, so there is no recipe"
    drops = schedule["drop_epochs"]
    drop = f", a tenth after epoch {' and '.join(map(str, drops))}" if drops else ""
    epochs = schedule["epochs"]
    return (
        f"{f'{epochs} epochs' if epochs and epochs > 0 else 'as many steps as asked'}, learning rate "
        f"{schedule['learning_rate']:g}{drop}, {schedule['global_batch_size']} images a step"
        + (", moving average of the weights" if schedule["moving_average"] else "")
        + (f"; unpublished, so ours: {', '.join(unpublished)}" if unpublished else "")
    )


def _millions(params: int | None) -> str:
    return "-" if params is None else f"{params / 1e6:.1f} M"


def _recipe(entry: dict[str, Any]) -> str:
    """The first recipe, if there is one, and the data of the AP where they are not COCO."""
    keys: list[str] = entry["recipes"]
    dataset = str((entry["published"] or {}).get("dataset") or "COCO")
    return (keys[0] if keys else "none") + ("" if dataset.startswith("COCO") else f"; AP on {dataset}")


def _score(scores: dict[str, Any] | None, key: str) -> str:
    """A score between 0 and 1; published ones are in percent, whose one digit three digits hold."""
    value = None if scores is None else scores.get(key)
    if scores is None or value is None:
        return ""
    return f"{value if scores.get('unit') == 'fraction' else value / 100:.3f}"


def _aliases(entry: dict[str, Any]) -> str:
    """All of a model's, with the version where that is not the one listed."""
    of_all = entry["aliases_of_all_versions"].items()
    return ", ".join(
        f"@{name}" if version == entry["version"] else f"@{name} (version {version})"
        for name, version in of_all
    )


def _own_score(measured: dict[str, Any] | None) -> tuple[str, str]:
    """AP, and the split that it was measured on."""
    if measured is None or measured.get("AP") is None:
        return "not yet", ""
    return _score(measured, "AP"), str(measured.get("split", ""))
