"""What do the fine-tuning defaults of DEIMv2-Atto bring, on other people's images, in minutes of one core?

Each arm is `zoo finetune deimv2_atto` with one thing changed, for each data set and seed, in a process of its own
with one thread: AP on the test images, the CPU time it took, and its difference to the defaults of the same seed.
    python benchmarks/finetune.py OUTPUT --source WEIGHTS --data FOLDER [--data FOLDER] [--seeds 0 1 2] [--steps 300]
        [--arms defaults random ...] [--json]

WEIGHTS is what `zoo pull deimv2_atto --source` takes. A row is written to OUTPUT/rows.jsonl as soon as it is measured,
and not measured again: a run that was ended goes on. Data sets without a test split are not taken; `zoo data split`
makes one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from zoo.registry.pull import pull
from zoo.runs import recipes

MODEL, BATCH = "deimv2_atto", 8
SCHEDULE = "--model.init_args.schedule"
ARMS = {  # what is added to the command
    "defaults": [],
    "random weights": ["--weights", "random"],
    "one clip of 0.1 for all": [f"{SCHEDULE}.clip_by_group", "false", "--trainer.gradient_clip_val", "0.1"],
    "class heads at the common rate": [],  # without that rule, see `options`
    "EMA decay 0.9999": ["--model.init_args.ema.decay", "0.9999"],
    "no EMA": ["--model.init_args.ema", "null"],
    "last fifth only flipped": [],  # from an epoch on that depends on the data, see `options`
    "class rows start new": ["--init_from.head", "new"],
}
HEADS = "class heads at the common rate"
TAIL = "last fifth only flipped"


def options(arm: str, data: Path, steps: int) -> list[str]:
    """What an arm adds to the command: rules without one, or a tail that begins with an epoch."""
    if arm == HEADS:
        rules = recipes.load(recipes.resolve("deimv2/finetune"))["model"]["init_args"]["schedule"]["rules"]
        kept = [rule for rule in rules if "_score_head" not in rule["match"]]
        return [f"{SCHEDULE}.rules", json.dumps(kept)]
    if arm != TAIL:
        return ARMS[arm]
    said = subprocess.run(
        [sys.executable, "-m", "zoo.cli.main", "data", "check", str(data), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    images = json.loads(said.stdout)["splits"]["train"]["images"]
    epoch = int(0.8 * steps / (images // BATCH))
    return ["--data.init_args.later_transforms", json.dumps([{"from_epoch": epoch, "name": "flip"}])]


def measured(arm: str, data: Path, seed: int, steps: int, output: Path) -> dict[str, Any]:
    """Trains once; the scores of the best checkpoint on the test images, and the CPU seconds of all processes."""
    folder = output / "run"
    shutil.rmtree(folder, ignore_errors=True)
    command = [
        sys.executable, "-m", "zoo.cli.main", "finetune", MODEL, "--data", str(data), "--max-steps", str(steps),
        "--seed", str(seed), "--output", str(folder), "--registry", str(output / "registry"),
        "--name", f"{MODEL}.measured", *options(arm, data, steps),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ZOO_CACHE": str(output / "cache")}
    with (output / "log.txt").open("w") as log:
        process = subprocess.Popen(command, env=environment, cwd=output, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{arm} on {data.name}, seed {seed}: failed, see {output / 'log.txt'}")
    document = json.loads((folder / "metrics.json").read_text())
    scores = {key: document["test"][key] for key in ("AP", "AP50", "AP75", "images")}
    row = {"arm": arm, "data": data.name, "seed": seed, "steps": steps, **scores}
    shutil.rmtree(folder)
    return {
        **row,
        "interval": document["test"]["interval"]["AP"],
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
    }


def interval(values: Sequence[float]) -> str:
    """Mean and half the width of its 95 % interval over seeds, by Student's t."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.3f}" if mean < 0 else f"{mean:.3f}"
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.3f} ± {half:.3f}"


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: a line for each data set, length and arm."""
    lines = [
        "| data | steps | arm | AP by seed | AP | AP50 | difference to the defaults | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = sorted(rows, key=lambda r: (r["data"], -r["steps"], list(ARMS).index(r["arm"]), r["seed"]))
    for key in dict.fromkeys((r["data"], r["steps"], r["arm"]) for r in rows):
        own = [r for r in rows if (r["data"], r["steps"], r["arm"]) == key]
        usual = {
            r["seed"]: r["AP"] for r in rows if (r["data"], r["steps"], r["arm"]) == (*key[:2], "defaults")
        }
        differences = [r["AP"] - usual[r["seed"]] for r in own if r["seed"] in usual]
        told = interval(differences) if differences and key[2] != "defaults" else ""
        each = " ".join(f"{r['AP']:.3f}" for r in own)
        seconds = statistics.mean(r["cpu_s"] for r in own)
        ap, ap50 = (interval([r[k] for r in own]) for k in ("AP", "AP50"))
        lines.append(f"| {key[0]} | {key[1]} | {key[2]} | {each} | {ap} | {ap50} | {told} | {seconds:.0f} |")
    return lines


def main() -> None:
    """Measures what is missing in OUTPUT and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--source", type=Path, help="weights; not needed once they are in OUTPUT")
    parser.add_argument("--data", type=Path, action="append", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    output = asked.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    if asked.source:
        os.environ["ZOO_CACHE"] = str(output / "cache")
        pull(MODEL, source=str(asked.source.resolve()))
    file = output / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(r["arm"], r["data"], r["seed"], r["steps"]) for r in rows}
    for data in asked.data:
        for arm in asked.arms:
            for seed in asked.seeds:
                if (arm, data.name, seed, asked.steps) in done:
                    continue
                rows.append(measured(arm, data.resolve(), seed, asked.steps, output))
                with file.open("a") as written:
                    written.write(json.dumps(rows[-1]) + "\n")
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps(rows, indent=2) if asked.json else "\n".join(table(rows)))


if __name__ == "__main__":
    main()
