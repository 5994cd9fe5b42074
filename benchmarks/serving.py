"""How many images a second does `zoo serve` answer, how long does each wait, and is every answer right?

    python benchmarks/serving.py MODEL --images FOLDER --clients 8,64 --requests 5000 --batch-sizes 8,1

Starts `zoo serve`, asks it over loopback with open connections, and checks each answer against `Detector.predict`, as
`zoo predict` finds it: the same label for each box, scores within 1e-4 and boxes within .05 pixels; a detection may be
missing only within 1e-4 of the threshold. `loop` is `Detector.predict` on the same files, one after the other.
`--hostile` sends the requests of tests/support/hostile_requests.py instead and prints what each got.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import zoo
from datamodules.images.files import list_images

SCORE, BOX = 1e-4, 0.05  # by which an answer may differ, for sums of a batch have another order
WARM = 1000  # requests, after which memory should stay


@dataclass
class Load:
    """What came back."""

    seconds: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    score: float = 0.0  # largest difference
    box: float = 0.0


@dataclass(frozen=True)
class Door:
    """Where a server takes images, how they are written, and where its answer has the detections."""

    path: str
    body: Callable[[str, float], dict[str, Any]]
    detections: Callable[[Any], list[Any]]


OURS = Door(
    "/v1/detect",
    lambda image, threshold: {"image": image, "threshold": threshold},
    lambda found: found["detections"],
)
MLFLOW = Door(
    "/invocations",
    lambda image, threshold: {
        "dataframe_split": {"columns": ["image"], "data": [[image]]},
        "params": {"threshold": threshold},
    },
    lambda found: found["predictions"][0]["detections"],
)


@contextlib.contextmanager
def mlflow_serving(model: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["mlflow", "models", "serve", "-m", model, "--env-manager", "local", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True, start_new_session=True) as process:
        try:
            while True:
                with (
                    contextlib.suppress(OSError),
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5),
                ):
                    break
                if process.poll() is not None:
                    raise SystemExit("mlflow models serve did not start")
                time.sleep(0.5)
            yield process, port
        finally:
            os.killpg(process.pid, signal.SIGTERM)


@contextlib.contextmanager
def serving(model: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-m", "zoo", "serve", f"served={model}", "--port", "0", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        port = 0
        for line in process.stdout:
            if found := re.search(r"^serving +http://127.0.0.1:(\d+) ", line):
                port = int(found[1])
                break
            print(line, end="", file=sys.stderr)
        if not port:
            raise SystemExit("zoo serve did not start")
        threading.Thread(target=lambda: [None for _ in process.stdout], daemon=True).start()
        try:
            yield process, port
        finally:
            process.send_signal(signal.SIGTERM)
            if process.wait(60) != 0:
                raise SystemExit(f"zoo serve ended with {process.returncode}")


def difference(found: list[Any], expected: list[Any], threshold: float) -> tuple[float, float] | None:
    """Largest of scores and boxes; None if the detections are others."""
    left, score, box = list(found), 0.0, 0.0
    for one in expected:

        def apart(other: Any, one: Any = one) -> float:
            return max(abs(a - b) for a, b in zip(one["box_xyxy"], other["box_xyxy"], strict=True))

        near = [other for other in left if other["label"] == one["label"] and apart(other) < BOX
                and abs(other["score"] - one["score"]) < SCORE]  # fmt: skip
        if not near:
            if one["score"] - threshold < SCORE:
                continue
            return None
        best = min(near, key=apart)
        left.remove(best)
        score, box = max(score, abs(best["score"] - one["score"])), max(box, apart(best))
    return None if any(one["score"] - threshold >= SCORE for one in left) else (score, box)


def client(
    port: int,
    door: Door,
    bodies: list[bytes],
    expected: list[Any],
    numbers: Iterator[int],
    threshold: float,
    load: Load,
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    for number in numbers:
        which = number % len(bodies)
        begun = time.perf_counter()
        try:
            connection.request("POST", door.path, bodies[which], {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            load.lost.append(repr(error))
            connection.close()
            continue
        load.seconds.append(time.perf_counter() - begun)
        if answer.status != 200:
            load.lost.append(f"{answer.status} {content[:100]!r}")
            continue
        apart = difference(door.detections(json.loads(content)), expected[which], threshold)
        if apart is None:
            load.wrong.append(f"image {which}: {content[:200]!r}")
        else:
            load.score, load.box = max(load.score, apart[0]), max(load.box, apart[1])


class Shared:
    """An iterator that several threads may read."""

    def __init__(self, count: int) -> None:
        self._rest = iter(range(count))
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        with self._lock:
            return next(self._rest)


def of_group(leader: int) -> list[str]:
    """/proc folders of a process and those that it has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[2]) == leader:
                found.append(str(stat.parent))
    return found


def resident(folders: list[str]) -> float:
    """MB in memory."""
    texts = [Path(folder, "status").read_text() for folder in folders]
    return sum(int(found[1]) for text in texts if (found := re.search(r"VmRSS:\s+(\d+)", text))) / 1024


def cpu_seconds(folders: list[str]) -> float:
    fields = [Path(folder, "stat").read_text().rpartition(")")[2].split() for folder in folders]
    return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")


def measured(
    arguments: argparse.Namespace, clients: int, batch: int | None, images: list[str], expected: list[Any]
) -> dict[str, Any]:
    """Of `zoo serve` with this size of a batch, or without one of MLflow's server."""
    door = OURS if batch else MLFLOW
    bodies = [json.dumps(door.body(image, arguments.threshold)).encode() for image in images]
    options = ["--batch-size", str(batch), "--queue", str(2 * clients)]
    server = serving(arguments.model, *options) if batch else mlflow_serving(arguments.mlflow)
    with server as (process, port):
        load, shared = Load(), Shared(arguments.requests)
        given = (port, door, bodies, expected, shared, arguments.threshold, load)
        threads = [threading.Thread(target=client, args=given) for _ in range(clients)]
        folders = of_group(process.pid)
        spent, begun = cpu_seconds(folders), time.perf_counter()
        for thread in threads:
            thread.start()
        memory: list[tuple[int, float]] = []
        while any(thread.is_alive() for thread in threads):
            memory.append((len(load.seconds), resident(folders)))
            time.sleep(0.2)
        wall = time.perf_counter() - begun
        spent = cpu_seconds(folders) - spent
    later = [mb for done, mb in memory if done >= min(WARM, arguments.requests // 5)]
    for fault in (*load.lost[:3], *load.wrong[:3]):
        print(fault, file=sys.stderr)
    p50, p99 = (1000 * float(np.percentile(load.seconds, q)) for q in (50, 99))
    return {
        "server": "zoo serve" if batch else "mlflow models serve",
        "clients": clients, "batch": batch, "requests": arguments.requests, "lost": len(load.lost),
        "wrong": len(load.wrong), "p50_ms": p50, "p99_ms": p99, "per_second": len(load.seconds) / wall,
        "cpu_ms": 1000 * spent / arguments.requests, "score": load.score, "box": load.box,
        "mb_after_1000": later[0] if later else None, "mb_most_after": max(later, default=None),
    }  # fmt: skip


def of_loop(detector: Any, images: list[Path], threshold: float, count: int) -> dict[str, Any]:
    seconds, spent = [], time.process_time()
    for number in range(count):
        begun = time.perf_counter()
        detector.predict(images[number % len(images)], threshold).to_dict()
        seconds.append(time.perf_counter() - begun)
    p50, p99 = (1000 * float(np.percentile(seconds, q)) for q in (50, 99))
    return {
        "clients": "loop", "batch": 1, "requests": count, "p50_ms": p50, "p99_ms": p99,
        "per_second": count / sum(seconds), "cpu_ms": 1000 * (time.process_time() - spent) / count,
    }  # fmt: skip


def hostile(model: str) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
    from hostile_requests import REQUESTS, answer_of, with_image

    limits = ["--max-bytes", "200000", "--max-pixels", "1000000"]
    rows = []
    with serving(model, *limits) as (process, port):
        for case in REQUESTS:
            status, _, body = answer_of(port, case.request, 100)
            with contextlib.suppress(ValueError):
                found = json.loads(body)
                body = (found.get("detail") or found["error"]["message"]).encode()
            rows.append((case.name, status or "closed", body.decode("utf-8", "replace").replace("|", "\\|")))
        alive = answer_of(port, with_image())[0]
        memory = resident(of_group(process.pid))
    print(f"{len(rows)} requests; then a good one got {alive}, with {memory:.0f} MB in memory\n")
    print("| request | status | answer |\n| --- | --- | --- |")
    for name, status, words in rows:
        print(f"| {name[:60].replace('|', '/')} | {status} | {words[:160]} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--most-images", type=int, default=24)
    parser.add_argument("--clients", default="8,64")
    parser.add_argument("--batch-sizes", default="8,1")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--threshold", type=float, default=0.05)
    parser.add_argument("--loop", type=int, default=0, help="images of a plain loop")
    parser.add_argument(
        "--mlflow", help="also `mlflow models serve` of the same weights: models:/NAME@champion"
    )
    parser.add_argument("--hostile", action="store_true")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server is left behind
    if arguments.hostile:
        hostile(arguments.model)
        return
    detector = zoo.load(arguments.model)
    images = list_images(arguments.images)[: arguments.most_images]
    expected = [detector.predict(image, arguments.threshold).to_dict()["detections"] for image in images]
    texts = [base64.b64encode(image.read_bytes()).decode() for image in images]
    size, found = np.mean([*map(len, texts)]), sum(map(len, expected))
    threads = torch.get_num_threads()
    print(
        f"{len(images)} images, {found} detections, {size:.0f} bytes a request, {threads} threads",
        file=sys.stderr,
    )
    if arguments.loop:
        print(json.dumps(of_loop(detector, images, arguments.threshold, arguments.loop)), flush=True)
    batches = [int(size) for size in arguments.batch_sizes.split(",") if size]
    for clients in map(int, arguments.clients.split(",")):
        for batch in [*batches, *([None] if arguments.mlflow else [])]:
            print(json.dumps(measured(arguments, clients, batch, texts, expected)), flush=True)


if __name__ == "__main__":
    main()
