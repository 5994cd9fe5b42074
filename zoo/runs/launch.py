"""Processes of one training: who started them, what they are told, and what is said when one of them is lost."""

from __future__ import annotations

import datetime
import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.strategies.launchers import subprocess_script
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from zoo.runs import rendezvous
from zoo.runs.console import write
from zoo.training.saving import CheckpointSaver

_TOLD_SECONDS = 10.0  # in which a broken connection ends the process by itself


@dataclass(frozen=True)
class Launch:
    """Processes that something other than Lightning has started.

    Attributes:
        by: the program, as a person calls it.
        here: processes on this machine.
        nodes: machines.
    """

    by: str
    here: int
    nodes: int


def launched() -> Launch | None:
    """Who started this process as one of a training's; None if nobody did, or Lightning itself.

    torchrun's variables: pytorch.org/docs/stable/elastic/run.html; srun's: the manual page of srun.

    Raises:
        ValueError: the machines have different numbers of processes, which ranks cannot be told from; or this one
            is in a job of SLURM for several and none of them.
    """
    by = "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "Ray Train" if in_ray() else None
    if by is not None:
        return _even(by, int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    if SLURMEnvironment.detect() and "SLURM_PROCID" in os.environ:
        return _of_slurm(int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", "1")))
    return None


def in_ray() -> bool:
    """Whether this is a worker of Ray Train: it has a process group before there is a trainer."""
    return "ray.train" in sys.modules and "RANK" in os.environ and torch.distributed.is_initialized()


def _of_slurm(tasks: int, nodes: int) -> Launch:
    if tasks > 1 and "SLURM_STEP_ID" not in os.environ:
        raise ValueError(
            f"this job of SLURM has {tasks} tasks, and this process is none of them: start it with srun"
        )
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ValueError(
            f"this job of SLURM has {tasks} tasks: say how many a machine has, with --ntasks-per-node N"
        )
    return _even("srun", tasks, max(1, tasks // nodes))


def _even(by: str, world: int, here: int) -> Launch:
    if world % here:
        raise ValueError(
            f"{by} started {world} processes, {here} of them on this machine; start as many on each machine"
        )
    return Launch(by, here, world // here)


def trainer_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a trainer is told of the processes that were started, instead of the recipe's devices and num_nodes.

    Args:
        options: of the trainer, as the recipe has them; `auto` devices and one node are whatever was started.

    Raises:
        ValueError: the recipe names other numbers.
    """
    launch = launched()
    if launch is None:
        return {}
    devices, nodes = options.get("devices", "auto"), options.get("num_nodes", 1)
    if devices not in ("auto", -1, "-1", launch.here, str(launch.here)) and not _names(devices, launch.here):
        raise ValueError(
            f"trainer.devices is {devices}, and {launch.by} started {launch.here} on this machine: "
            "leave it out, or start as many"
        )
    if nodes not in (1, launch.nodes):
        raise ValueError(
            f"trainer.num_nodes is {nodes}, and {launch.by} started processes on {launch.nodes}: "
            "leave it out, or start them on as many"
        )
    told: dict[str, Any] = {"num_nodes": launch.nodes}
    if not _names(devices, launch.here):
        told["devices"] = launch.here
    if launch.by == "srun":
        # Lightning would save inside the signal's handler, which is inside a step, and queue the job itself
        told["plugins"] = [SLURMEnvironment(auto_requeue=False)]
    elif launch.by == "Ray Train":
        from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment

        unused = str(options.get("strategy", "auto")).endswith("unused_parameters_true")
        told["strategy"] = RayDDPStrategy(find_unused_parameters=unused)
        told["plugins"] = [RayLightningEnvironment()]
    return told


def _names(devices: Any, here: int) -> bool:
    """Whether devices are a list of as many GPUs."""
    listed = devices.strip(",").split(",") if isinstance(devices, str) and "," in devices else devices
    return isinstance(listed, list) and len(listed) == here


def limit_waiting(trainer: Trainer, minutes: float) -> None:
    """Sets how long a process waits for the others before it gives up; a process that is gone is noticed at once."""
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._timeout = datetime.timedelta(minutes=minutes)  # there is no public name


class _NoHandlers(_SignalConnector):
    """Lightning's part for signals, without any handler; it gives those back that it finds, as Lightning's does."""

    def register_signal_handlers(self) -> None:
        self.received_sigterm = False
        self._original_handlers = self._get_current_signal_handlers()


def take_signals_from(trainer: Trainer) -> None:
    """Leaves signals to `zoo.training.stopping`, and to the command where nothing is trained.

    Lightning's handler broadcasts inside the handler, which the other processes, who are at another collective, never
    answer; and it stands before a callback can replace it, also in each validation after the fit.
    """
    trainer._signal_connector = _NoHandlers(trainer)  # there is no public way


class ChildObserver(subprocess_script._ChildProcessObserver):
    """Lightning's thread that ends all processes when one that it has started has failed; here with a line.

    Lightning ends the first by kill -9, which says nothing. Once they are connected the connection tells of it, if the
    first is not at something else; before, it waits for the others in torch, where it is reached by no signal's handler
    and no exception. Where they leave together, or need each other no longer, nobody is ended.
    """

    saver: CheckpointSaver | None = None  # of the training

    def _run(self) -> bool:
        return (self.saver is not None and self.saver.stop.apart) or super()._run()

    def _terminate_all(self) -> None:
        connected = torch.distributed.is_initialized()
        if connected:
            time.sleep(_TOLD_SECONDS)
        if self.saver is not None and self.saver.stop.apart:
            return
        codes = [process.returncode for process in self._child_processes if process.returncode]
        for process in self._child_processes:
            process.kill()
        again = "" if self.saver is None else self.saver.resume_command()
        when = "" if connected else " before it was connected"
        told = lost(RuntimeError(f"it ended with code {codes[0]}{when}"), again)
        write(f"error: {told}{'' if again else '; start it again as before'}", sys.stderr)
        os._exit(2)


subprocess_script._ChildProcessObserver = ChildObserver  # type: ignore[misc]  # there is no public way


def connect(trainer: Trainer, minutes: float) -> None:
    """Connects the processes of torchrun; those of others are connected by Lightning and Ray.

    Raises:
        torch.distributed.DistError: one did not come.
    """
    of_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if trainer.world_size > 1 and of_torchrun and not torch.distributed.is_initialized():
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        rendezvous.connect("nccl" if device.type == "cuda" else "gloo", minutes)


def of_another_process(error: BaseException) -> bool:
    """Whether it is what torch makes of a process of another device that is gone; gloo's have no class."""
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and "/gloo/" in str(error)
    )


def lost(error: BaseException, again: str) -> str:
    """One line for a person about an error `of_another_process`.

    Args:
        error: what was raised.
        again: the command that goes on with the run; empty if there is nothing to go on from.
    """
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    reason = re.sub(r"\[\S*/\S*\] ", "", first).partition(". ")[0][:200]  # without gloo's own source lines
    return (
        f"another process of this training has ended or cannot be reached, and so this one ends ({reason})"
        + (f"; go on with: {again}" if again else "")
    )
