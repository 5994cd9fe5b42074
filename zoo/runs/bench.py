"""`zoo bench`: milliseconds of models from the bytes of an image to detections, and of the network alone."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException

from datamodules.images.decodable import usable_cores
from zoo.exporting.facts import versions
from zoo.pictures.speed import Point, ap_against_milliseconds
from zoo.runs import catalogue
from zoo.runs.bench_arguments import (
    MADE_UP,
    batch_sizes_of,
    device_of,
    layers_of,
    limits_of_masks,
    made_up_images,
    precisions_of,
    read_images,
    runtimes_of,
)
from zoo.runs.bench_cases import STAGES, Case, autocast, cases_of, cases_of_file, exported_for_bench
from zoo.runs.console import Console, Silent, counted
from zoo.runs.evaluate import from_model, refuse_other_labels
from zoo.runs.lightning import quiet
from zoo.runs.report import score_split
from zoo.runs.subject import load
from zoo.runs.timing import MOST_RUNS, PAUSE_SECONDS, in_turns, processor_name
from zoo.storage.durable import written

WARM_UP_RUNS = 3
TURN_SECONDS = 2.0


def bench(
    names: Sequence[str],
    *,
    batch_sizes: str = "1,8",
    precisions: str = "fp32",
    decoder_layers: str | None = None,
    runtimes: str | None = None,
    compiled: bool = False,
    device: str = "auto",
    threads: int | None = None,
    rounds: int = 5,
    images: str | None = None,
    data: str | None = None,
    output: Path = Path("mlruns", "bench"),
    registry: Path | None = None,
    console: Console,
) -> dict[str, Any]:
    """Times every model in every way that is asked for, in turns, and returns what was printed.

    Args:
        names: registered names, checkpoints, run folders or exported files.
        batch_sizes: a list such as `1,8`.
        precisions: a list such as `fp32,bf16`, of PyTorch; files are exported in fp32.
        decoder_layers: a list such as `6,3`; None: as many as the model runs.
        runtimes: a list such as `pytorch,openvino`; None: all that are installed.
        compiled: also compiled by torch.
        device: `cpu`, `cuda`, `cuda:1`; `auto`: a GPU if there is one.
        threads: of the CPU; None: as many as torch takes.
        rounds: every case has a turn in each.
        images: file, folder or address; None: made up.
        data: what to evaluate on for AP and its plot; None: neither.
        output: folder of the plot.
        registry: folder; ZOO_REGISTRY or ./mlruns/registry by default.
        console: for the user.

    Raises:
        ValueError, OSError: an argument, a model, an image or the data are not what they should be.
    """
    quiet()
    place, sizes, kinds = device_of(device), batch_sizes_of(batch_sizes), precisions_of(precisions)
    chosen = runtimes_of(runtimes, console)
    encoded = made_up_images() if images is None else read_images(images)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        cases: list[Case] = []
        for name in dict.fromkeys(names):
            detector = load(name, registry)
            ways = {"batch_sizes": sizes, "compiled": compiled, **limits_of_masks(detector, console)}
            if detector.runtime != "pytorch":
                cases += cases_of_file(detector.name, detector, ways["batch_sizes"])
                continue
            layers = layers_of(detector, decoder_layers)
            if "pytorch" in chosen:
                cases += cases_of(detector, precisions=kinds, layers=layers, device=place, **ways)
            if chosen != ["pytorch"]:
                console.say(f"{detector.name} is exported, which takes a minute")
                for count in layers:
                    for file in exported_for_bench(detector, count, chosen):
                        cases += cases_of_file(detector.name, file, ways["batch_sizes"])
        scores = {} if data is None else scores_of(cases, data)
        conditions = conditions_of(place, encoded, images, rounds)
        console.say(f"{conditions['device']}; {conditions['versions']}\n{conditions['how']}\n")
        left_out = time_all(cases, encoded, rounds, console)
    finally:
        torch.set_num_threads(before)
    timed = [case for case in cases if case.laps.stages]
    rows = [case.row() | scores.get(score_key(case), {}) for case in timed]
    published = {name: published_speed(name) for name in dict.fromkeys(case.model for case in cases)}
    say_rows(rows, published, console)
    document: dict[str, Any] = {
        "conditions": conditions, "rows": rows, "left_out": left_out, "published": published, "plot": None
    }  # fmt: skip
    if scores:
        document["plot"] = str(plot(rows, conditions["device"], output / "bench.png"))
        console.say(f"plot        {document['plot']}")
    return document


def time_all(
    cases: Sequence[Case], encoded: Sequence[bytes], rounds: int, console: Console
) -> list[dict[str, str]]:
    """Warms up and times; returns the cases that torch could not compile, each with its reason."""
    endless, left_out = itertools.cycle(encoded), []
    ready: list[Case] = []
    # each pair of model and batch size is a graph of its own
    with torch._dynamo.config.patch(recompile_limit=10_000, accumulated_recompile_limit=10_000):
        for case in cases:
            case.detector.to(case.laps.device)  # an evaluation has left it on the CPU
            try:
                for _ in range(WARM_UP_RUNS):
                    case.run(endless)
            except TorchDynamoException as error:
                reason = why_not_compiled(error)
                console.say(f"left out    {case.model}, {case.label}: {reason}")
                left_out.append({"model": case.model, "case": case.label, "reason": reason})
            else:
                ready.append(case)
            case.laps.forget()
        runs = [(functools.partial(case.run, endless), case.laps) for case in ready]
        in_turns(runs, rounds, TURN_SECONDS)
    return left_out


def why_not_compiled(error: TorchDynamoException) -> str:
    """The first line of what torch says that is a reason."""
    lines = [line.strip() for line in str(error).splitlines()]
    known = next((line for line in lines if "compiler found" in line or "Triton" in line), None)
    return (known or next((line for line in lines if line), type(error).__name__))[:200]


def scores_of(cases: Sequence[Case], data: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """AP and its interval of everything that has one of its own; batch and compiler do not change it."""
    scores: dict[tuple[Any, ...], dict[str, Any]] = {}
    for case in cases:
        if score_key(case) in scores:
            continue
        subject = from_model(case.detector, data, None)
        refuse_other_labels(subject)
        case.set_layers()
        with autocast(subject.trainer.strategy.root_device, case.precision):
            found = score_split("val", subject.trainer, subject.module, subject.data, Silent())
        scores[score_key(case)] = {
            "AP": found["AP"], "AP_interval": found["interval"]["AP"], "images": found["images"]
        }  # fmt: skip
    return scores


def score_key(case: Case) -> tuple[Any, ...]:
    """What an AP belongs to."""
    return case.model, case.detector.runtime, case.layers, case.precision


def published_speed(name: str) -> dict[str, Any] | None:
    """Milliseconds an image that the authors print and on what; None where there is no such number."""
    full = name.partition(":")[0]
    entry = next((e for e in catalogue.models().values() if e["full_name"] == full), None)
    published = catalogue.with_details(entry)["published"] if entry is not None else None
    if published is None or not {"fps", "seconds_per_image"} & set(published):
        return None
    seconds = published.get("seconds_per_image") or 1 / published["fps"]
    return {"ms": 1000 * seconds, "on": published["speed_device"]}


def conditions_of(
    device: torch.device, encoded: Sequence[bytes], images: str | None, rounds: int
) -> dict[str, Any]:
    """Machine, versions and how it was timed."""
    threads = counted(torch.get_num_threads(), "thread")
    where = f"{processor_name()}, {counted(usable_cores(), 'core')}, {threads}"
    if device.type == "cuda":
        where = f"{torch.cuda.get_device_name(device)}, {threads} of the CPU"
    kilobytes = sum(map(len, encoded)) / len(encoded) / 1000
    height, width = MADE_UP
    source = f"made-up JPEGs of {width}x{height}" if images is None else images
    return {
        "device": where,
        "threads": torch.get_num_threads(),
        "versions": ", ".join(f"{library} {number}" for library, number in versions().items()),
        "images": source,
        "how": (
            f"{counted(len(encoded), 'image')}: {source}, {kilobytes:.0f} kB in the mean. {WARM_UP_RUNS} runs of "
            f"warm-up, then {counted(rounds, 'round')} in turns, each turn after a pause of {PAUSE_SECONDS} s and one "
            f"run that does not count, for {TURN_SECONDS:g} s or {MOST_RUNS} runs. Times are of a whole batch, p99 of "
            "fewer than 100 runs is the slowest; CPU: of all threads"
        ),
    }


def say_rows(rows: Sequence[dict[str, Any]], published: dict[str, Any], console: Console) -> None:
    """A table of the times, one of the stages, and what the authors print."""
    way = ("model", "runtime", "precision", "decoder_layers", "batch_size")
    names = ("model", "runtime", "precision", "layers", "batch")
    keys = ("median_ms", "p99_ms", "cpu_ms")
    console.table(
        (*names, "network ms", "p99", "CPU", "pipeline ms", "p99", "CPU", "runs"),
        [
            (*(r[k] for k in way), *(r[what][k] for what in ("network", "pipeline") for k in keys), r["runs"])
            for r in rows
        ],
    )
    console.say(
        "\nmilliseconds of each stage, and images a second of all together; the graph of a file normalises and makes "
        "detections itself, within its network"
    )
    console.table(
        (*names, *STAGES, "images/s"),
        [(*(r[k] for k in way), *(r["stages_ms"][s] for s in STAGES), r["images_per_second"]) for r in rows],
    )
    console.say()
    for name, speed in published.items():
        told = "no published speed"
        if speed is not None:
            told = f"published {speed['ms']:.2f} ms an image; {speed['on']}"
        console.say(f"{name}: {told}")


def plot(rows: Sequence[dict[str, Any]], device: str, path: Path) -> Path:
    """AP against the whole pipeline's milliseconds an image, of every row."""
    points = [
        Point(
            r["model"],
            f"{r['runtime']} {r['precision']}"
            + ("" if r["decoder_layers"] is None else f", {r['decoder_layers']} layers")
            + f", batch {r['batch_size']}",
            r["pipeline"]["median_ms"] / r["batch_size"],
            r["AP"],
            None if None in r["AP_interval"] else tuple(r["AP_interval"]),
        )
        for r in rows
        if r["AP"] is not None
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path):
        ap_against_milliseconds(points, path, f"an image, bytes to detections, {device}")
    return path
