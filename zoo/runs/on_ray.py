"""A recipe trained by Ray Train: it places the workers, and starts all of them again when one is lost."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.shards.reader import is_address, local_path
from zoo.runs import recipes, schema
from zoo.runs.console import Console
from zoo.runs.fit import AUTO, find_checkpoint, fit
from zoo.runs.run import Run
from zoo.runs.run_folder import refuse_used
from zoo.runs.train import refuse_missing_data

RESTARTS = 3
OF_RAY = "ray"  # folder of what Ray itself notes, below the run's


def fit_on_ray(
    recipe: recipes.Given | None,
    *,
    workers: int,
    output: str | Path | None,
    restarts: int = RESTARTS,
    overrides: Mapping[str, Any] | None = None,
    resume: str | None = None,
    preflight: bool = False,
    registry: str | Path | None = None,
    trust: bool = False,
    console: Console | None = None,
) -> Run:
    """`zoo.fit` in workers of Ray Train, one a device; each start goes on from the last checkpoint.

    A script with a TorchTrainer of its own calls `zoo.fit(..., output=FOLDER, resume="auto")` as its train function.

    Args:
        recipe: of `zoo.recipe`, or what that takes.
        workers: how many; each has a GPU, if the cluster has any.
        output: run folder, on a disk that all machines of the cluster see.
        restarts: how often all workers are started again when one of them fails.
        overrides: dotted keys and their values.
        resume: `auto` goes on with the run in `output` if there is one; None begins one there.
        preflight: overfit four images first.
        registry: folder in which `init_from.source` is looked up, on the same disk.
        trust: whether the recipe may name callbacks and loggers besides Lightning's harmless ones.
        console: prints what the workers do not.

    Raises:
        ValueError, OSError: the recipe or the data are at fault, Ray is not installed, or it has given up.
    """
    console = console or Console()
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # else each line of a worker is shown twice
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.train.v2.api.exceptions import TrainingFailedError
    except ImportError as error:
        raise ValueError(
            f"a training by Ray needs Ray Train ({error}): pip install 'detr-zoo[ray]'"
        ) from error
    if output is None:
        raise ValueError(
            "a training by Ray needs --output FOLDER, on a disk that all machines of the cluster see"
        )
    folder = Path(output).absolute()
    if resume not in (None, AUTO):
        raise ValueError(
            "a training by Ray goes on with the run in --output alone: --ckpt-path auto, or leave it out"
        )
    if find_checkpoint(resume, folder)[0] is None:
        refuse_used(folder, trust)
    complete = recipes.read(recipe or (), overrides)
    schema.check(complete, trust)
    refuse_missing_data(complete)
    data = complete["data"]["init_args"]
    if not is_address(str(data["root"])):
        data["root"] = str(local_path(str(data["root"])).absolute())  # a worker starts in another folder
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=True)
    minutes = schema.Distributed(**complete.get("distributed", {})).timeout_minutes
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "recipe": complete, "folder": str(folder), "preflight": preflight, "trust": trust, "here": os.getcwd(),
            "registry": None if registry is None else str(Path(registry).absolute()),
        },
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=ray.cluster_resources().get("GPU", 0) > 0),
        torch_config=TorchConfig(timeout_s=max(1, int(60 * minutes))),
        run_config=RunConfig(
            name=OF_RAY, storage_path=str(folder), failure_config=FailureConfig(max_failures=restarts)
        ),
    )  # fmt: skip
    try:
        trainer.fit()
    except TrainingFailedError as error:
        lines = str(error).strip().splitlines()
        raise ValueError(f"Ray Train has given up after {restarts} restarts: {lines[-1][:500]}") from error
    return Run.open(folder)


def _work(config: dict[str, Any]) -> None:
    """In each worker: its place among the others, in the variables of torchrun, then `zoo.fit`."""
    from ray.train import get_context

    context = get_context()
    places = {
        "RANK": context.get_world_rank(), "WORLD_SIZE": context.get_world_size(), "NODE_RANK": context.get_node_rank(),
        "LOCAL_RANK": context.get_local_rank(), "LOCAL_WORLD_SIZE": context.get_local_world_size(),
    }  # fmt: skip
    os.environ.update({name: str(value) for name, value in places.items()})
    if Path(config["here"]).is_dir():
        os.chdir(config["here"])  # where MLflow's store is
    fit(
        config["recipe"], output=config["folder"], resume=AUTO, preflight=config["preflight"],
        registry=config["registry"], trust=config["trust"],
    )  # fmt: skip
