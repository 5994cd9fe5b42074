"""Does inference cost less than transformers' model of the same family with the same weights?

Normalised images at the published size to raw predictions, batch 1, random weights, process CPU time, in turns:
    python benchmarks/inference.py [--rounds 5] [--threads 1] [--families rt_detr_r18] [--tiny] [--json] [--profile]
Outputs are compared first; a difference ends the run. What is the same and what is not is in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
import transformers
from loss import timed
from pairs import PAIRS, build, query_differences
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from zoo.contract.batch import Batch, unlabelled
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.detector import Detector
from zoo.exporting.onnx import exported
from zoo.runs import recipes
from zoo.runs.timing import processor_name
from zoo.runtimes.facts import RAW

FAMILIES = ("detr_r50", "deformable_detr_r50", "rt_detr_r18", "rt_detrv2_s", "dfine_s")
THEIRS, OURS = "transformers", "PyTorch"
SAME = 1e-4  # of logits and boxes
OTHER = 1e-2  # a query that another place of the image was chosen for
Run = Callable[[], object]


def contestants(
    name: str, tiny: bool, eager: bool = False
) -> tuple[dict[str, Run], dict[str, Tensor], tuple[int, int]]:
    """(what runs once by name, how far each query is from transformers', size of the image)."""
    module, model = build(name, tiny)
    size = (64, 96) if tiny else PAIRS[name].size
    labels = LabelMap.contiguous([f"class {n}" for n in range(module.num_classes)], range(module.num_classes))
    contract = recipes.load(recipes.resolve(PAIRS[name].recipe))["data"]["init_args"]["input"]
    contract = InputContract.from_dict(contract)
    module.adopt(labels, contract if contract.resize == "shortest" else replace(contract, size=size))
    pixels = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    levels = unlabelled([pixels], [size])
    batch = module.normalized(levels)
    mask = (~batch.padding).long()

    @torch.no_grad()
    def theirs() -> Any:
        return model(pixel_values=batch.images, pixel_mask=mask)

    runs: dict[str, Run] = {THEIRS: theirs, OURS: lambda: module.predictions(batch)}
    ours = module.predictions(batch)
    apart = {THEIRS: torch.zeros(1), OURS: query_differences(ours.logits, ours.boxes, theirs()).flatten()}
    if apart[OURS].max() > SAME:
        raise SystemExit(f"{name}: not the same network, outputs differ by {apart[OURS].max():.1e}")
    more = {} if eager else exported_runs(Detector(module, name), levels)
    for way, run in more.items():
        runs[way] = run
        apart[way] = query_differences(*(torch.from_numpy(found) for found in run()), theirs()).flatten()
    return runs, apart, size


def exported_runs(detector: Detector, levels: Batch) -> dict[str, Callable[[], tuple[Any, ...]]]:
    """Logits and boxes of the exported graph, which normalises the levels itself, by runtime and precision."""
    model, _ = exported(detector, detector.input)
    outputs = [entry for entry in model.graph.output if entry.name in RAW]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    content = model.SerializeToString()
    given = {
        "images": levels.images.numpy(), "padding": levels.padding.numpy(),
        "sizes": np.array(levels.original_sizes, dtype=np.int64),
    }  # fmt: skip
    inputs = {entry.name: given[entry.name] for entry in model.graph.input}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    runs = {"ONNX Runtime": lambda: tuple(session.run(RAW, inputs))}
    core = openvino.Core()
    read = core.read_model(content)
    for precision in ("f32", "bf16"):
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            continue  # a processor without it computes in float32
        hints = {
            "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }  # fmt: skip
        request = core.compile_model(read, "CPU", hints).create_infer_request()

        def run(request: Any = request) -> tuple[Any, ...]:
            found = request.infer(inputs)
            return tuple(found[name] for name in RAW)

        runs[f"OpenVINO {precision}"] = run
    return runs


def milliseconds(runs: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """CPU times by contestant, one a round, every second round backwards; a round of warm-up goes before."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(-1, rounds):
        for name in list(runs) if index % 2 else reversed(list(runs)):
            times[name].append(timed(runs[name]))
    return {name: values[1:] for name, values in times.items()}


def measure(name: str, rounds: int, tiny: bool, eager: bool) -> list[dict[str, Any]]:
    """The rows of a family, theirs first."""
    runs, apart, size = contestants(name, tiny, eager)
    times = milliseconds(runs, rounds)
    rows = []
    for way, values in times.items():
        ratios = [theirs / ours for theirs, ours in zip(times[THEIRS], values, strict=True)]
        differences = apart[way]
        rows.append(
            {
                "family": name, "size": f"batch 1, {size[0]}x{size[1]}", "way": way,
                "cpu_ms": statistics.median(values), "ratio": statistics.median(ratios),
                "ratio_range": [min(ratios), max(ratios)], "median_difference": float(differences.median()),
                "queries": differences.numel(), "other_queries": int((differences > OTHER).sum()),
            }
        )  # fmt: skip
    return rows


def by_operator(run: Run, rows: int = 15) -> str:
    """Where the CPU time of one run goes."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    return str(
        found.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=40)
    )


def main() -> None:
    """Prints a table; with --json one object last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--families", nargs="+", choices=list(PAIRS), default=list(FAMILIES))
    parser.add_argument("--tiny", action="store_true", help="sizes that show that it runs, and nothing else")
    parser.add_argument("--eager", action="store_true", help="PyTorch alone, without exported files")
    parser.add_argument("--profile", action="store_true", help="instead: operators of one run of each")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where = f"{processor_name()}, {options.threads} thread(s)"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    versions += f", onnxruntime {onnxruntime.__version__}, openvino {openvino.__version__}"
    print(f"{versions}; {where}", flush=True)
    rows = []
    for name in options.families:
        if options.profile:
            for way, run in contestants(name, options.tiny, options.eager)[0].items():
                print(f"\n{name}, {way}\n{by_operator(run)}", flush=True)
            continue
        found = measure(name, options.rounds, options.tiny, options.eager)
        rows += found
        print(f"\n{name}, {found[0]['size']}, median of {options.rounds}")
        for row in found:
            low, high = row["ratio_range"]
            print(
                f"  {row['way']:14} {row['cpu_ms']:8.1f} CPU ms   {row['ratio']:.2f}x ({low:.2f} to {high:.2f})   "
                f"queries differ by {row['median_difference']:.0e} in the median, {row['other_queries']} are others",
                flush=True,
            )
    if options.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
