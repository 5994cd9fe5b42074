"""Every option of Lightning's Trainer: what it may be here, or why it is refused, before the data are read.

An option that is passed through works. One that this project decides itself, or that would have no effect,
is refused with the key to use instead. `tests/zoo/runs/test_cli_trainer_options.py` walks over the table and
over Trainer's signature, so that an option of a new Lightning is noticed.
"""

from __future__ import annotations

import datetime
import math
import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

Options = Mapping[str, Any]  # of `trainer`, as a recipe has them
Check = Callable[[Any, Options], str | None]  # (value, all options) -> what is wrong with it, None if nothing

FLOAT32 = (None, 32, "32", "32-true")
BFLOAT16_MIXED = ("bf16", "bf16-mixed")
FLOAT16_MIXED = (16, "16", "16-mixed")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
PROFILERS = ("simple", "advanced", "pytorch")
ENVIRONMENTS = ("lightning.pytorch.plugins.environments.", "lightning.fabric.plugins.environments.")
# set by torchrun, SLURM, LSF and MPI, or by hand: where the other nodes are
OF_NODES = ("MASTER_ADDR", "SLURM_NTASKS", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE")
_PROCESSES = 8  # on CPUs, also where there are fewer cores
_CLOCK = r"\d+:\d{1,2}:\d{1,2}:\d{1,2}"
_UNITS = ("weeks", "days", "hours", "minutes", "seconds")


def check(options: Options) -> None:
    """Raises ValueError, one line with key and way out, at the first option that would not do what it says."""
    for name, value in options.items():
        rule = RULES.get(name)
        complaint = None if rule is None else rule(value, options)
        if complaint is not None:
            raise ValueError(f"trainer.{name} is {shown(value)}; {complaint}")
    _check_length(options)


def on_gpu(accelerator: Any) -> bool:
    """Whether a recipe's `trainer.accelerator` means CUDA on this machine."""
    return accelerator in ("gpu", "cuda") or (accelerator in ("auto", None) and torch.cuda.is_available())


def autocast(precision: Any, device: str) -> AbstractContextManager[None]:
    """What Lightning runs the network in, on a type of device, where `trainer.precision` is this."""
    if precision in BFLOAT16_MIXED:
        return torch.autocast(device, torch.bfloat16)
    if precision in FLOAT16_MIXED:
        return torch.autocast(device, torch.float16)
    return nullcontext()


def shown(value: Any) -> str:
    """A value as YAML writes it, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"a mapping ({value['class_path']})" if "class_path" in value else "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list" if any(isinstance(v, (Mapping, list)) for v in value) else f"[{_joined(value)}]"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _joined(values: Any) -> str:
    return ", ".join(shown(v) for v in values)


# -- how long -----------------------------------------------------------------------------------------


def _check_length(options: Options) -> None:
    """Raises ValueError unless epochs or steps say when the schedule ends."""
    epochs, steps = options.get("max_epochs"), options.get("max_steps", -1)
    if steps == -1 and epochs in (None, -1):
        raise ValueError(
            "trainer has neither max_epochs nor max_steps; the learning rate needs an end: give one of them "
            "(--epochs N or --max-steps N of zoo finetune)"
        )
    for low, high in (("min_epochs", "max_epochs"), ("min_steps", "max_steps")):
        least, most = options.get(low), options.get(high)
        if least is not None and most not in (None, -1) and least > most:
            raise ValueError(f"trainer.{low} is {least}, more than trainer.{high} {most}; lower it")


# -- kinds of values ----------------------------------------------------------------------------------


def _whole(value: Any, least: int = -(1 << 62)) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def whole(least: int, *others: Any) -> Check:
    """A whole number of at least `least`, or one of `others`."""
    also = "".join(f", or {shown(o)}" for o in others)

    def rule(value: Any, options: Options) -> str | None:
        fits = _whole(value, least) or any(value is o or (value == o and _whole(value)) for o in others)
        return None if fits else f"it must be a whole number of at least {least}{also}"

    return rule


def switch(*others: Any) -> Check:
    """True, false, or one of `others`."""

    def rule(value: Any, options: Options) -> str | None:
        if isinstance(value, bool) or value in others:
            return None
        return f"it must be true or false{''.join(f', or {shown(o)}' for o in others)}"

    return rule


def only(*values: Any, otherwise: str) -> Check:
    """Refused with `otherwise` unless it is one of `values`, which are what happens anyway."""

    def rule(value: Any, options: Options) -> str | None:
        return None if any(type(value) is type(v) and value == v for v in values) else otherwise

    return rule


def batches(zero: str, unit: str = "batches") -> Check:
    """A whole number of them, or their share of the epoch as a fraction; `zero` says why not none."""

    def rule(value: Any, options: Options) -> str | None:
        if _number(value) and value == 0:
            return zero
        if value is None or _whole(value, 1) or (isinstance(value, float) and 0 < value <= 1):
            return None
        return f"it must be a whole number of {unit}, or their share between 0.0 and 1.0"

    return rule


# -- options with a rule of their own -----------------------------------------------------------------


def precision(value: Any, options: Options) -> str | None:
    """float32, bf16-mixed, and on CUDA 16-mixed."""
    if isinstance(value, (bool, float, list, Mapping)) or value not in (
        *FLOAT32, *BFLOAT16_MIXED, *FLOAT16_MIXED, 64, "64", "64-true", "16-true", "bf16-true",
        "transformer-engine", "transformer-engine-float16",
    ):  # fmt: skip
        return "it must be 32-true, bf16-mixed, or on a GPU 16-mixed"
    if value in FLOAT16_MIXED and not on_gpu(options.get("accelerator", "auto")):
        return "half precision needs a CUDA GPU; use trainer.precision bf16-mixed or 32-true"
    if value in (*FLOAT32, *BFLOAT16_MIXED, *FLOAT16_MIXED):
        return None
    if value in ("16-true", "bf16-true"):
        return (
            "weights of 16 bits lose the small steps of training; use trainer.precision bf16-mixed, which "
            "computes in 16 bits and keeps the weights in float32"
        )
    return "no recipe is trained so; use trainer.precision 32-true or bf16-mixed"


def accelerator(value: Any, options: Options) -> str | None:
    """One that torch sees here."""
    if not isinstance(value, str) or value not in ACCELERATORS:
        return f"it must be one of {', '.join(ACCELERATORS)}"
    if value in ("gpu", "cuda") and not torch.cuda.is_available():
        return "torch sees no CUDA GPU here; use trainer.accelerator cpu or auto"
    if value == "mps" and not torch.backends.mps.is_available():
        return "torch sees no Apple GPU here; use trainer.accelerator cpu or auto"
    return None


def strategy(value: Any, options: Options) -> str | None:
    """One process a device."""
    if isinstance(value, str) and value in STRATEGIES:
        return None
    return (
        f"it must be one of {', '.join(STRATEGIES)}: every model fits on one device, and each device has a "
        "process of its own; use trainer.strategy auto"
    )


def devices(value: Any, options: Options) -> str | None:
    """A number of devices, or on GPUs a list of them; no more than there are."""
    gpu = on_gpu(options.get("accelerator", "auto"))
    if value == "auto" or _whole(value, 1) or (gpu and value in (-1, "-1") and not isinstance(value, bool)):
        pass
    elif isinstance(value, str) and re.fullmatch(r"[1-9]\d{0,8}" + (r"|\d+(,\d+)*,?" if gpu else ""), value):
        pass
    elif gpu and isinstance(value, list) and value and all(_whole(v, 0) for v in value):
        pass
    else:
        return "it must be auto or a number of devices of at least 1" + (", or a list of GPUs" if gpu else "")
    number = int(value) if _whole(value) or (isinstance(value, str) and value.isdigit()) else 1
    most = max(_PROCESSES, os.cpu_count() or 1)
    if not gpu and number > most:
        return f"on CPUs that is a process each, and this machine has room for {most}; use trainer.devices 1"
    if gpu and number > torch.cuda.device_count():
        return f"this machine has {torch.cuda.device_count()}; use trainer.devices auto"
    if gpu and isinstance(value, list) and max(value) >= torch.cuda.device_count():
        return f"this machine has GPUs 0 to {torch.cuda.device_count() - 1}; use trainer.devices auto"
    return None


def num_nodes(value: Any, options: Options) -> str | None:
    """One, or as many as something started."""
    if not _whole(value, 1):
        return "it must be a whole number of at least 1"
    if value > 1 and not any(name in os.environ for name in OF_NODES):
        return (
            "nothing here says where the other nodes are; start the same command on each with torchrun or srun, "
            "or set MASTER_ADDR, MASTER_PORT and NODE_RANK"
        )
    return None


def objects(what: str, words: tuple[Any, ...], example: str) -> Check:
    """Null, a word, or mappings with a class_path; `what` they are, with an `example`."""

    def rule(value: Any, options: Options) -> str | None:
        if value is None or any(value is word for word in words):
            return None
        items = value if isinstance(value, list) else [value]
        if all(isinstance(i, Mapping) and isinstance(i.get("class_path"), str) for i in items):
            return None
        return f"it must be {what} given as {{class_path: {example}, init_args: {{...}}}}, or a list of them"

    return rule


def callbacks(value: Any, options: Options) -> str | None:
    """The user's own; those that save checkpoints have a key of their own."""
    complaint = objects("a callback", (), "lightning.pytorch.callbacks.EarlyStopping")(value, options)
    items = value if isinstance(value, list) else [value] if value is not None else []
    if complaint is None and any(str(i["class_path"]).endswith("Checkpoint") for i in items):
        return "a checkpoint callback is there already; set its options under checkpoint"
    return complaint


def plugins(value: Any, options: Options) -> str | None:
    """Cluster environments; precision and checkpoints are not a recipe's to replace."""
    items = value if isinstance(value, list) else [value] if value is not None else []
    if all(isinstance(i, Mapping) and str(i.get("class_path")).startswith(ENVIRONMENTS) for i in items):
        return None
    return (
        "only a cluster environment can be given, as {class_path: lightning.pytorch.plugins.environments."
        "SLURMEnvironment}; precision has the key trainer.precision, synchronised norms trainer.sync_batchnorm"
    )


def max_epochs(value: Any, options: Options) -> str | None:
    """A number, or null or -1 where steps say the end."""
    if value == 0 and _whole(value):
        return "nothing would be trained; use zoo validate to score weights as they are"
    return whole(1, -1, None)(value, options)


def max_steps(value: Any, options: Options) -> str | None:
    """A number, or -1 where epochs say the end."""
    if value == 0 and _whole(value):
        return "nothing would be trained; use zoo validate to score weights as they are"
    return whole(1, -1)(value, options)


def max_time(value: Any, options: Options) -> str | None:
    """DD:HH:MM:SS, or a mapping of units."""
    fits = (
        value is None
        or isinstance(value, datetime.timedelta)
        or (isinstance(value, str) and re.fullmatch(_CLOCK, value) is not None)
        or (isinstance(value, Mapping) and all(k in _UNITS and _whole(v, 0) for k, v in value.items()))
    )
    return None if fits else "it must be a time DD:HH:MM:SS in quotes, as in '00:01:30:00', or null"


def check_val_every_n_epoch(value: Any, options: Options) -> str | None:
    """Epochs; null where val_check_interval counts on over their ends."""
    if value is None and not _whole(options.get("val_check_interval"), 1):
        return "null needs trainer.val_check_interval in steps; use a whole number of epochs"
    return whole(1, None)(value, options)


def gradient_clip_val(value: Any, options: Options) -> str | None:
    """A norm or a value; null or 0 for none."""
    if value is None or (_number(value) and value >= 0):
        return None
    return "it must be a number of at least 0, or null for no clipping"


def gradient_clip_algorithm(value: Any, options: Options) -> str | None:
    """How gradients are clipped, where they are."""
    if value is None:
        return None
    if value not in ("norm", "value"):
        return "it must be norm or value"
    if not options.get("gradient_clip_val"):
        return "it has no effect without trainer.gradient_clip_val"
    return None


def deterministic(value: Any, options: Options) -> str | None:
    """True on a CPU; a GPU has no deterministic gradient of sampling and of cumulated sums."""
    if value is True and on_gpu(options.get("accelerator", "auto")):
        return "these networks use operations that have no deterministic form on a GPU; use warn"
    return switch("warn", None)(value, options)


def profiler(value: Any, options: Options) -> str | None:
    """By name; what it finds is written into the run's folder."""
    if value is None or (isinstance(value, str) and value in PROFILERS):
        return None
    return f"it must be one of {', '.join(PROFILERS)}, or null"


RULES: Mapping[str, Check] = {
    "accelerator": accelerator,
    "strategy": strategy,
    "devices": devices,
    "num_nodes": num_nodes,
    "precision": precision,
    "logger": objects(
        "true for MLflow, false for none, or a logger", (True, False), "lightning.pytorch.loggers.CSVLogger"
    ),
    "callbacks": callbacks,
    "fast_dev_run": only(
        False,
        0,
        None,
        otherwise="it writes no checkpoint, so nothing could be released; use trainer.max_steps 1",
    ),
    "max_epochs": max_epochs,
    "min_epochs": whole(0, None),
    "max_steps": max_steps,
    "min_steps": whole(0, None),
    "max_time": max_time,
    "limit_train_batches": batches("nothing would be trained; use zoo validate to score weights as they are"),
    "limit_val_batches": batches(
        "the checkpoint that is released is chosen by validation; to validate seldom use "
        "trainer.check_val_every_n_epoch N, for less each time a whole number of batches"
    ),
    "limit_test_batches": batches("nothing would be tested; use a whole number of batches, or leave it out"),
    "limit_predict_batches": only(
        None, 1.0, otherwise="it has no effect here: zoo predict takes the images that it is given"
    ),
    "overfit_batches": only(
        0,
        0.0,
        otherwise="the sampler of whole steps cannot be replaced; use --preflight to overfit four images, "
        "or data.limit_train N",
    ),
    "val_check_interval": batches("nothing would be validated; leave it out", "optimizer steps"),
    "check_val_every_n_epoch": check_val_every_n_epoch,
    "num_sanity_val_steps": whole(0, -1, None),
    "log_every_n_steps": whole(1, None),
    "enable_checkpointing": only(
        True,
        None,
        otherwise="the weights that are released are a checkpoint; leave it out, and keep fewer with "
        "checkpoint.save_top_k 1",
    ),
    "enable_progress_bar": switch(None),
    "enable_model_summary": switch(None),
    "accumulate_grad_batches": only(
        1,
        otherwise="it follows from the batch sizes: use model.schedule.global_batch_size for the images of a "
        "step and data.batch_size for those of a micro-batch",
    ),
    "gradient_clip_val": gradient_clip_val,
    "gradient_clip_algorithm": gradient_clip_algorithm,
    "deterministic": deterministic,
    "benchmark": switch(None),
    "inference_mode": switch(),
    "use_distributed_sampler": only(
        False, otherwise="it would show images twice; the samplers here are distributed already: leave it out"
    ),
    "profiler": profiler,
    "detect_anomaly": switch(),
    "barebones": only(
        False,
        otherwise="it switches validation and checkpoints off, so nothing could be released; leave it out",
    ),
    "plugins": plugins,
    "sync_batchnorm": switch(),
    "reload_dataloaders_every_n_epochs": only(
        0, otherwise="each epoch draws its order and augmentation anew already; leave it out"
    ),
    "default_root_dir": only(
        None, otherwise="it has no effect: a run writes into the folder that --output names"
    ),
    "enable_autolog_hparams": switch(),
    "model_registry": only(None, otherwise="models are registered by zoo publish; leave it out"),
}
