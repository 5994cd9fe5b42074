"""Builds model, data and trainer of a recipe with LightningCLI; errors are one line.

What is switched off, and why: SaveConfigCallback fails when its file exists, `run=True`
would start what is not yet checked, and the distributed sampler would repeat images in evaluation.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from datamodules.base import DetectionDataModule
from zoo.runs import launch, schema, trainer_options
from zoo.runs.console import is_rank_zero
from zoo.runs.schema import Distributed, InitFrom, Tracking
from zoo.storage.checkpoint_io import AtomicCheckpointIO
from zoo.tracking.logger import MLflowTracker
from zoo.tracking.others import other_trackers
from zoo.training.computing import Computing
from zoo.training.module import DetectionModule
from zoo.training.non_finite import NonFinite
from zoo.training.saving import CheckpointSaver
from zoo.training.stop_rules import Stopping, StopRules, timedelta

log = logging.getLogger(__name__)


class RecipeParser(LightningArgumentParser):
    """Raises an error instead of printing the usage and exiting."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises ValueError with the specific part of the message."""
        raise ValueError(schema.explain(message)) from ex


class ZooCLI(LightningCLI):
    """Builds what a recipe describes; runs nothing by itself.

    Args:
        recipe: a complete recipe.
        folder: where checkpoints go.
        callbacks: added to those of the recipe.
        with_tracker: False where nothing is trained.
        run_name: MLflow's, of a new run, where the recipe has none.
        run_id: MLflow's, of the run that a resume goes on with.
        local_id: that run's where MLflow's is not known.
        parts: what is built; the others are None.
        objects: options of the trainer that no recipe can hold; callbacks and plugins are added to those there are.
        trusted: whether the recipe may name classes of others, which are imported.
    """

    def __init__(
        self,
        recipe: Mapping[str, Any],
        folder: Path,
        callbacks: list[Callback],
        with_tracker: bool = True,
        run_name: str | None = None,
        run_id: str | None = None,
        local_id: str | None = None,
        parts: Collection[str] = ("model", "data", "trainer"),
        objects: Mapping[str, Any] | None = None,
        trusted: bool = False,
    ) -> None:
        self._folder = folder
        self._callbacks = callbacks
        self._with_tracker = with_tracker
        self._run_name, self._run_id, self._local_id = run_name, run_id, local_id
        self._parts = parts
        self._objects = dict(objects or {})
        self._trusted = trusted
        quiet()
        super().__init__(
            DetectionModule,
            DetectionDataModule,
            save_config_callback=None,
            trainer_defaults={
                "use_distributed_sampler": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 10,
            },
            seed_everything_default=0,
            parser_class=RecipeParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=copy.deepcopy(dict(recipe)),  # the parser writes into what it is given
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the keys of a recipe that LightningCLI does not have."""
        parser.add_argument("--about", type=dict, default={}, help="Facts about the recipe; no effect.")
        parser.add_argument("--init_from", type=InitFrom, required=True)
        parser.add_argument("--tracking", type=Tracking, required=True)
        parser.add_argument("--non_finite", type=NonFinite, default=NonFinite())
        parser.add_argument("--distributed", type=Distributed, default=Distributed())
        parser.add_argument("--stopping", type=Stopping, default=Stopping())
        parser.add_argument("--computing", type=Computing, default=Computing())
        parser.add_lightning_class_args(CheckpointSaver, "checkpoint")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the recipe; sys.argv, which Lightning would warn about, was read before."""
        schema.check(args, self._trusted)
        self.config = parser.parse_object(args)

    def instantiate_classes(self) -> None:
        """Builds data, model and trainer.

        Raises:
            ValueError: an argument is refused; with its own message, without the parser's.
        """
        for part in ("model", "data", "trainer"):
            if part not in self._parts:
                self.config.pop(part)
        try:
            super().instantiate_classes()
        except (ValueError, MisconfigurationException, ImportError) as error:
            raise ValueError(schema.explain(str(error))) from error
        if isinstance(self.model, DetectionModule):
            self.config_init.computing.apply(self.model)
            guard = self.model.guard
            guard.policy, guard.folder = self.config_init.non_finite, self._folder
            if isinstance(self.datamodule, DetectionDataModule):
                guard.names = self.datamodule.image_names

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """The trainer with our tracker, checkpoint writer and callbacks; None if it is not to be built."""
        if "trainer" not in self._parts:
            return None
        config = self.config_init.trainer
        tracking = self.config_init.tracking
        if config.logger in (None, True) and self._with_tracker:
            kwargs["logger"] = MLflowTracker(
                experiment=tracking.experiment,
                run_name=tracking.run_name or self._run_name,
                run_id=self._run_id or tracking.run_id,
                local_id=self._local_id,
            )
        elif not self._with_tracker:
            kwargs["logger"] = False
        if self._with_tracker and tracking.also:
            kwargs["logger"] = self._with_others(kwargs.get("logger", config.logger), tracking)
        started = launch.trainer_arguments(config)
        kwargs |= {key: value for key, value in started.items() if key != "plugins"}
        added = {key: _as_list(self._objects.pop(key, None)) for key in ("plugins", "callbacks")}
        kwargs["plugins"] = [
            *(_as_list(config.plugins) or _as_list(started.get("plugins"))),
            *added["plugins"],
            AtomicCheckpointIO(),
        ]
        rules = StopRules(self.config_init.stopping, timedelta(config.max_time))
        kwargs["max_time"] = None  # else Lightning's timer would count too
        kwargs["callbacks"] = [*_as_list(config.callbacks), *added["callbacks"], *self._callbacks, rules]
        kwargs["use_distributed_sampler"] = False
        if config.profiler is not None:
            kwargs["profiler"] = profiler(config.profiler, self._folder)
        if config.sync_batchnorm and not trainer_options.on_gpu(config.accelerator):
            kwargs["sync_batchnorm"] = False
            if kwargs.get("devices", config.devices) not in ("auto", 1, "1") and is_rank_zero():
                log.warning(
                    "sync_batchnorm needs GPUs: on CPUs every process takes the statistics of its own images, "
                    "so this is not equivalent to the training on one device"
                )
        trainer = super().instantiate_trainer(**{**kwargs, **self._objects})
        launch.take_signals_from(trainer)
        launch.limit_waiting(trainer, self.config_init.distributed.timeout_minutes)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, CheckpointSaver):
                callback.folder, callback.trusted = self._folder, self._trusted
                launch.ChildObserver.saver = callback
        return trainer

    def _with_others(self, logger: Any, tracking: Tracking) -> list[Logger]:
        first = [] if logger is False else _as_list(logger)
        name, run_id = tracking.run_name or self._run_name, None
        if first and isinstance(first[0], MLflowTracker):
            run_id = first[0].local_id
        return [*first, *other_trackers(tracking.also, self._folder, tracking.experiment, name, run_id)]


def profiler(name: str, folder: Path) -> Profiler:
    """Lightning's profiler of this name; it writes `profile` files into the run's folder, where they are seen."""
    kinds: dict[str, type[Profiler]] = {
        "simple": SimpleProfiler,
        "advanced": AdvancedProfiler,
        "pytorch": PyTorchProfiler,
    }
    return kinds[name](dirpath=folder, filename="profile")


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def quiet() -> None:
    """Hides messages that Lightning prints on every run and that call for no action."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not is_rank_zero():
        logging.getLogger("datamodules").setLevel(logging.ERROR)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for pattern in (
        r".*does not have many workers.*",
        r"This DataLoader will create \d+ worker processes.*",  # once for each loader; `zoo.runs.train` says it
        r".*GPU available but not used.*",
        r".*smaller than the logging interval.*",
        r".*LeafSpec.*",
        r".*isinstance\(treespec.*",
        r".*tried to call `self.log\(.*",
        r".*litlogger.*",
        r"It is recommended to use `self.log\('(val|test)/A.*",  # the scores are equal on all ranks
        r"Found \d+ module\(s\) in eval mode.*",
        r".*Lightning couldn't infer the batch size.*",
        r"You have overridden `on_before_batch_transfer`.*",  # no data module here has one too
    ):
        warnings.filterwarnings("ignore", message=pattern)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(jsonargparse|lightning)\..*")
