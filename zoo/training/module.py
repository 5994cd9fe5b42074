"""DetectionModule: the one training loop that every family shares."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import logging
import math
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from zoo.contract.batch import Batch, Detections, Outputs, Predictions, Step
from zoo.contract.input_limits import InputLimits
from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.contract.seeds import derived_seed
from zoo.evaluation.coco_ap import CocoAP
from zoo.evaluation.coco_evaluator import refuse_lost_threads
from zoo.evaluation.mask_scores import MaskScores
from zoo.prediction.masks import InstanceMasks, PanopticRule
from zoo.prediction.postprocess import Postprocess
from zoo.prediction.tiles.whole import WholeImages
from zoo.training.criterion import SetCriterion
from zoo.training.ema import EmaConfig, ModelEma
from zoo.training.freezing import hold_frozen_norms
from zoo.training.imports import refuse_imports
from zoo.training.non_finite import StepGuard, ways_on
from zoo.training.position import (
    Position,
    count_logged_steps,
    ends_step,
    validate_now,
    validation_follows,
    write_loops,
)
from zoo.training.restart import SecondStage
from zoo.training.saving import CheckpointSaver
from zoo.training.schedule import Schedule

log = logging.getLogger(__name__)

MOST_LAYERS = 256  # of a part of a network; those of papers have up to 24
CHECKPOINT_FORMAT = 2  # 1 counted micro-batches of an epoch instead of its steps


class DetectionData(Protocol):
    """What the training loop needs of a datamodule; `zoo.training` imports none."""

    label_map: LabelMap
    input: InputContract

    def plan_steps(self, global_batch_size: int, world_size: int, rank: int) -> int:
        """Micro-batches a device accumulates to keep `global_batch_size`."""
        ...

    def skip_batches(self, consumed: int) -> None:
        """Starts the first training epoch after `consumed` micro-batches."""
        ...

    def digest(self) -> str:
        """Fingerprint of the annotations."""
        ...


class DetectionModule(LightningModule):
    """Trains a set-prediction detector: network -> criterion; postprocess -> CocoAP, MaskScores.

    What a family must give, in a file of its own, is a subclass that overrides no hook (families differ in their
    parts, not in how a step runs) and has:

    * `__init__` with keyword arguments alone, whose signature is the schema of the recipe's `model:` block. Names
      that the pipeline knows mean the same in every family. All have `num_classes` and `schedule`; those that need
      them have `backbone` (with `weights`, where `random` fetches none; it becomes `network.backbone`), `ema`,
      `multi_scale` (square sizes that training images are resized to, empty for none) and `panoptic`. Other names
      are the family's own.
    * `network`, `criterion` and `postprocess`, and for masks `instances` and `panoptic`, set by `__init__`.
    * `class_tensors` and `queries_key`; `class_prior`, `learns_masks` and `added_tensors` where their default is not
      right.
    * `limits_of`, where the network does not take every size of input.
    * `decoder_layers` and `set_decoder_layers`, where fewer decoder layers can be evaluated than were trained.
    * `macs_left_out`, where evaluation leaves out what the authors' network runs.
    * `check_published`, where published files hold more than weights.

    Beside it, a function `from_published(state)` that turns published state dicts into `network`'s, if there are some.
    `tests/test_every_architecture.py` asserts this for every family.
    """

    network: nn.Module  # Batch with normalised images -> Outputs
    criterion: SetCriterion
    postprocess: Postprocess
    instances: InstanceMasks | None = None  # how masks become those of detections; None predicts no masks
    panoptic: PanopticRule | None = None  # how masks become one segment a pixel; None for instances only
    class_tensors: ClassVar[str]  # regex of the tensors whose rows are classes, in `network`'s names
    queries_key: ClassVar[str]  # where the number of queries stands in the arguments: `decoder.num_queries`
    # probability of every class at which new class rows start; None where they start as torch starts a linear layer
    class_prior: ClassVar[float | None] = None
    learns_masks: ClassVar[bool] = False  # whether it trains on masks, and so sets `instances`
    # whether boxes are divided by pairs that are not known before a step's last micro-batch, see `pairs_of_step`: a
    # step cut into micro-batches then has a gradient that is about one percent off; cut over ranks it is exact
    estimates_pairs: bool = False
    # regex of the tensors that weights to start from may lack, all of them or none
    added_tensors: ClassVar[str | None] = None
    from_nothing: bool = False  # whether a training started from no weights but those of a backbone
    new_head: str | None = None  # why class rows are as they were drawn although weights were loaded
    # what computes the network; any but pytorch takes uint8 images and normalises them itself, see zoo.runtimes
    runtime: str = "pytorch"

    def __init__(self, *, num_classes: int, schedule: Schedule, init_args: Mapping[str, Any]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.schedule = schedule
        self.init_args = {k: plain(v) for k, v in init_args.items() if k not in ("self", "__class__")}
        self.label_map: LabelMap | None = None
        self.input: InputContract | None = None
        self.data_digest: str | None = None
        self.ema: ModelEma | None = None
        epoch = schedule.restart_epoch
        self.second_stage = None if epoch is None else SecondStage(epoch)
        self.val_ap = CocoAP()
        self.val_masks = MaskScores()
        self.val_images = WholeImages()
        self._losses: dict[str, Tensor] = {}
        self.guard = StepGuard()
        self.begun = Position()  # of this fit
        self._scored_step = -1  # global step of the last finished validation

    # -- parts ------------------------------------------------------------------------------------

    @classmethod
    def limits_of(cls, init_args: Mapping[str, Any]) -> InputLimits:
        """What sizes of input a module with these plain arguments takes, known before it is built."""
        return InputLimits()

    def macs_left_out(self, height: int, width: int) -> int:
        """Multiply-adds on one image that the authors' network does in evaluation and this one does not."""
        return 0

    @classmethod
    def num_queries(cls, init_args: Mapping[str, Any]) -> int:
        """Objects that a module with these plain arguments finds in an image at most.

        Raises:
            ValueError: the arguments have no such key.
        """
        value: Any = init_args
        for part in cls.queries_key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise ValueError(f"the recipe lacks model.{cls.queries_key}, the number of queries")
            value = value[part]
        return int(value)

    @property
    def decoder_layers(self) -> int | None:
        """Decoder layers that were trained, if any first few of them can be evaluated; None if all have to."""
        return None

    def set_decoder_layers(self, count: int) -> int:
        """Evaluates with the first `count` decoder layers from now on; returns how many it was before."""
        raise NotImplementedError(f"{type(self).__name__} evaluates with all its decoder layers")

    def check_published(self, state: Mapping[str, Tensor]) -> None:
        """Compares what `from_published` leaves out of a published state dict with what `network` computes.

        Raises:
            ValueError: naming the tensor that is of another network than this one.
        """

    def average(self, config: EmaConfig | None) -> None:
        """Starts the moving average of `network`; a subclass calls this last in its `__init__`."""
        self.ema = None if config is None else ModelEma(self.network, config)

    @property
    def evaluation_network(self) -> nn.Module:
        """The network that is evaluated and released: the average if there is one."""
        return self.network if self.ema is None else self.ema.network

    def model_block(self) -> dict[str, Any]:
        """Class path and plain arguments, as in a recipe or manifest."""
        return {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "init_args": self.init_args,
        }

    def adopt(self, label_map: LabelMap, contract: InputContract) -> None:
        """Takes over what an output index means and how images are prepared.

        Raises:
            ValueError: the head is not as wide as the label map; names both.
        """
        if label_map.num_classes != self.num_classes:
            names = ", ".join(label_map.names[:5]) + (", ..." if len(label_map.names) > 5 else "")
            raise ValueError(
                f"the head has num_classes {self.num_classes}, but the data has {label_map.num_classes} "
                f"({len(label_map.names)} classes: {names}). Set model.init_args.num_classes to "
                f"{label_map.num_classes}, or use the data the head was made for"
            )
        self.label_map, self.input = label_map, contract

    # -- Lightning hooks --------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Binds data and model; for training, freezes what the schedule says and finds the split of the batch."""
        refuse_lost_threads()  # now, not at the first validation
        data: DetectionData = self.trainer.datamodule  # type: ignore[attr-defined]
        self.adopt(data.label_map, data.input)
        self.data_digest = data.digest()
        if stage == "fit":
            self.schedule.freeze(self.network.named_parameters())  # the optimizer comes after DDP, too late
            self.trainer.accumulate_grad_batches = data.plan_steps(
                self.schedule.global_batch_size, self.trainer.world_size, self.trainer.global_rank
            )
            self.begun, self._scored_step = Position(step_size=self.schedule.global_batch_size), -1

    def configure_callbacks(self) -> list[Callback]:
        """What the schedule does beside the learning rate."""
        return [] if self.second_stage is None else [self.second_stage]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The schedule's groups and learning rate."""
        mixed = isinstance(self.trainer.precision_plugin, MixedPrecision)
        optimizer = self.schedule.optimizer(self.network, fused=not mixed)
        per_epoch = self.steps_per_epoch()
        batches, of_step = int(self.trainer.num_training_batches), self.trainer.accumulate_grad_batches
        if batches % of_step:
            raise ValueError(
                f"trainer.limit_train_batches leaves {batches} micro-batches an epoch, and a step has {of_step}; "
                f"set it to a multiple of {of_step}"
            )
        validate_at_steps(self.trainer, per_epoch)
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = self.schedule.scheduler(optimizer, per_epoch, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Follows the recipe's schedule; runs the validation that was due when the checkpoint was written."""
        if self.begun.step:
            self._take_over_schedule()
        if not self.begun.validated:
            validate_now(self.trainer, of_epoch_before=self.begun.step_in_epoch == 0)

    def _take_over_schedule(self) -> None:
        scheduler: Any = self.trainer.lr_scheduler_configs[0].scheduler
        changes = self.schedule.take_over(self.trainer.optimizers[0], scheduler, self.network)
        if changes:
            log.warning(
                "the schedule is another one than the checkpoint's, e.g. of more epochs (now %d steps): from step %d "
                "on %s",
                int(self.trainer.estimated_stepping_batches), self.trainer.global_step, ", ".join(changes[:4]),
            )  # fmt: skip

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Lets the guard keep the batch of the loader: those of a whole step need no room on the device."""
        self.guard.given = batch
        return batch

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Makes dropout a function of (seed, step, micro-batch, rank)."""
        count_logged_steps(self.trainer)
        step = required_step(batch)
        torch.manual_seed(derived_seed(step.seed, step.index, batch_idx, self.trainer.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The micro-batch's share of the loss of the step; `on_before_optimizer_step` asks whether it is finite."""
        self.guard.begin(self.network, first=batch_idx % self.trainer.accumulate_grad_batches == 0)
        try:
            losses = self.losses(batch)
            total = torch.stack([value.sum() for value in losses.values()]).sum()
            self.guard.note(batch, batch_idx, losses)
        except FloatingPointError as error:  # of the matcher; other ranks wait for this one's gradient
            losses = {}
            total = (
                torch.stack([p.sum() for p in self.network.parameters() if p.requires_grad]).sum() * math.nan
            )
            self.guard.note(batch, batch_idx, losses, str(error))
        self._log_losses(losses, total, batch, batch_idx)
        # Lightning divides by the micro-batches and DDP by the ranks; the loss is normalised already
        return total * self.trainer.accumulate_grad_batches * self.trainer.world_size

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Skips a step that is not finite, or ends the training.

        Raises:
            FloatingPointError: naming loss terms or tensors, images, and what to do.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if not self.guard.is_bad(self.network, scaled_down=scaler is not None and scaler.get_scale() > 1):
            self.guard.passed()
            return
        self.guard.restore(self.network)
        step, rank = self.trainer.global_step + 1, self.trainer.global_rank
        name, skips = f"non-finite-step={step}{f'-rank={rank}' if rank else ''}.pt", self.guard.may_skip
        kept = self.guard.save(self, name) if not skips or self.guard.skipped == 0 else None
        what, saved = self.guard.shared(self.guard.describe(self.network), kept)
        told = f"step {step} is {what}"
        if skips:
            self.guard.skip(self.network)
            self.log("train/skipped_steps", float(self.guard.skipped))
            if rank == 0:
                log.warning("%s; it is skipped%s", told, ways_on(saved))
            return
        if self.guard.in_a_row:
            told += f", after {self.guard.in_a_row} that were skipped in a row"
        saver = self.trainer.checkpoint_callback
        again = saver.resume_command() if isinstance(saver, CheckpointSaver) else ""
        raise FloatingPointError(told + ways_on(saved, again))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips all gradients together, or each group's."""
        if not self.schedule.clip_by_group or not gradient_clip_val:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        for group in optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], gradient_clip_val)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Averages the weights after each step that was done, before any callback may save them."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None and not self.guard.in_a_row:
            self.ema.update(self.network)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collects detections, and masks of a model that predicts them, from one run of the network."""
        predictions = self.predictions(batch)
        found = self.postprocess(predictions, batch.original_sizes)
        if batch.pieces is not None:
            assert self.input is not None
            assert self.input.tiles is not None
            for detections, image in self.val_images.add(found, batch, self.input.tiles):
                self.val_ap.update([detections], image)
            return
        self.val_ap.update(found, batch)
        if self.instances is not None:
            things = frozenset[int]() if self.label_map is None else self.label_map.things
            self.val_masks.update(predictions, batch, self.instances, self.panoptic, things)

    def on_validation_epoch_end(self) -> None:
        """Scores over all ranks."""
        self._log_scores("val")
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._scored_step = self.trainer.global_step

    def on_validation_epoch_start(self) -> None:
        """Forgets the last evaluation only now, so that its details can be read until here."""
        self.val_ap.reset()
        self.val_masks.reset()
        self.val_images.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_start(self) -> None:
        """As validation."""
        self.on_validation_epoch_start()

    def on_test_epoch_end(self) -> None:
        """Scores over all ranks."""
        self._log_scores("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the facts that a registry and a resume need, as plain values only."""
        checkpoint["zoo"] = {**self.facts(), **dataclasses.asdict(self.position()), **self.guard.state()}

    def facts(self) -> dict[str, Any]:
        """What a registry needs to know of the weights, as plain values."""
        return {
            "format": CHECKPOINT_FORMAT,
            "model": self.model_block(),
            "label_map": None if self.label_map is None else self.label_map.to_dict(),
            "input": None if self.input is None else self.input.to_dict(),
            "data_digest": self.data_digest,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Sets loop and data to where the checkpoint stands, in the present cut of a step.

        Raises:
            ValueError: the checkpoint is of another program or label map, or beyond the last epoch.
        """
        facts = checkpoint.get("zoo")
        if facts is None:
            raise ValueError("not a checkpoint of this project: it has no 'zoo' entry")
        if facts["format"] > CHECKPOINT_FORMAT:
            raise ValueError(
                f"the checkpoint has format {facts['format']} and this version reads up to {CHECKPOINT_FORMAT}; "
                "go on with the version that wrote it"
            )
        if self.label_map is not None and facts["label_map"] is not None:
            difference = self.label_map.difference(LabelMap.from_dict(facts["label_map"]))
            if difference:
                raise ValueError(
                    f"the checkpoint was trained with another label map than this data has: {difference}"
                )
        if self.trainer.state.fn == "fit":
            self._go_to(self._position_in(facts), checkpoint)
            self.guard.load(facts)

    # -- position ---------------------------------------------------------------------------------

    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        self.trainer.fit_loop.setup_data()  # else the number of batches is not known yet
        return max(1, -(-int(self.trainer.num_training_batches) // self.trainer.accumulate_grad_batches))

    def position(self) -> Position:
        """Where the training stands, at the end of its last optimizer step."""
        return self.begun.after(
            self.trainer.global_step, self.steps_per_epoch(), not self._validation_is_due()
        )

    def _validation_is_due(self) -> bool:
        step = self.trainer.global_step
        if self._scored_step == step:
            return False
        if self.begun.step == step:
            return not self.begun.validated
        return validation_follows(self.trainer)

    def _position_in(self, facts: Mapping[str, Any]) -> Position:
        if "step_in_epoch" in facts:
            return Position(**{f.name: facts[f.name] for f in dataclasses.fields(Position)})
        # format 1, whose epochs all had as many steps as they have now
        return Position(step_size=self.schedule.global_batch_size).after(
            facts["step"], self.steps_per_epoch(), validated=True
        )

    def _go_to(self, position: Position, checkpoint: dict[str, Any]) -> None:
        self.begun = position.of_size(self.schedule.global_batch_size, self.steps_per_epoch())
        limit = self.trainer.max_epochs
        if limit not in (None, -1) and self.begun.epoch > limit:
            raise ValueError(
                f"the checkpoint has trained {self.begun.epoch} epochs and trainer.max_epochs is {limit}: "
                "nothing is left to train; set it higher, or take an earlier checkpoint"
            )
        accumulation = self.trainer.accumulate_grad_batches
        write_loops(checkpoint["loops"], self.begun, accumulation)
        data: DetectionData = self.trainer.datamodule  # type: ignore[attr-defined]
        data.skip_batches(self.begun.step_in_epoch * accumulation)

    # -- steps ------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """{`set/term`: [L]} weighted losses of a training batch; uint8 images are normalised first."""
        batch = self.normalized(batch)
        hold_frozen_norms(self.network)
        return self.criterion(self.network(batch).supervised, batch.targets, required_step(batch))

    @torch.no_grad()
    def predictions(self, batch: Batch) -> Predictions:
        """Raw predictions of the evaluation network, in evaluation mode; uint8 images are normalised first."""
        network = self.evaluation_network
        was_training = network.training
        network.eval()
        try:
            outputs: Outputs = network(self.normalized(batch))
        finally:
            network.train(was_training)
        return outputs.final

    def detect(self, batch: Batch) -> list[Detections]:
        """Detections of each image, in pixels of the original images, from the evaluation network."""
        return self.postprocess(self.predictions(batch), batch.original_sizes)

    def normalized(self, batch: Batch) -> Batch:
        """The batch with normalised float images; float images, and those for an exported file, stay as they are."""
        if batch.images.dtype != torch.uint8 or self.runtime != "pytorch":
            return batch
        if self.input is None:
            raise ValueError("no input contract: fit with a datamodule, or load the model with zoo.load")
        return self.input.normalize(batch)

    def _log_scores(self, split: str) -> None:
        scores = {name: torch.tensor(value) for name, value in self.val_ap.compute().items()}
        if self.instances is not None:
            scores |= self.val_masks.compute(self.val_ap.evaluation().num_images, self.panoptic)
        self.log_dict({f"{split}/{name}": value for name, value in scores.items()})

    def _log_losses(self, losses: Mapping[str, Tensor], total: Tensor, batch: Batch, batch_idx: int) -> None:
        """Logs the loss of the whole step as this rank sees it, when its last micro-batch is done."""
        for name, value in {**{k: v.sum() for k, v in losses.items()}, "loss": total}.items():
            value = value.detach()
            self._losses[name] = self._losses[name] + value if name in self._losses else value
        if ends_step(self.trainer, batch_idx):
            scale = self.trainer.world_size
            values = {f"train/{name}": value * scale for name, value in self._losses.items()}
            self.log("train/loss", values.pop("train/loss"), prog_bar=True, batch_size=len(batch))
            every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
            if every and self.trainer.global_step % every == 0:  # 0 of a trainer that logs nothing
                self.log_dict(values, batch_size=len(batch))
            self._losses = {}


def validate_at_steps(trainer: Trainer, steps_per_epoch: int) -> None:
    """Puts validations inside an epoch at the end of a step; `trainer.val_check_interval` counts steps.

    Lightning counts micro-batches: another cut of a step would validate elsewhere, and inside one.

    Raises:
        ValueError: an epoch has fewer steps.
    """
    interval, every = trainer.val_check_interval, getattr(trainer, "val_check_batch", None)
    if every is None or every == float("inf"):
        return
    whole = isinstance(interval, int)
    steps = interval if whole else max(1, int(steps_per_epoch * interval))
    if whole and trainer.check_val_every_n_epoch is not None and steps > steps_per_epoch:
        raise ValueError(
            f"trainer.val_check_interval is {steps} steps and an epoch has {steps_per_epoch}; lower it, or "
            "set trainer.check_val_every_n_epoch to null to count on over epochs"
        )
    at = steps * trainer.accumulate_grad_batches
    trainer.val_check_batch = at if whole else min(at, int(trainer.num_training_batches))


def required_step(batch: Batch) -> Step:
    """The batch's step facts.

    Raises:
        ValueError: there are none.
    """
    if batch.step is None:
        raise ValueError("training needs Batch.step, the facts of the whole optimizer step")
    return batch.step


def plain(value: Any) -> Any:
    """Dataclasses, tuples and paths to dicts, lists and strings: what a safe loader reads back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value


def build_module(block: Mapping[str, Any], *, backbone_weights: str | None = None) -> DetectionModule:
    """The module of a `{class_path, init_args}` block from a recipe or manifest.

    Args:
        block: class_path must be under `zoo.architectures.`: a manifest is data, not code to import.
        backbone_weights: `random` when the weights are loaded afterwards, so nothing is fetched.

    Raises:
        ValueError: a foreign class path, or arguments that do not fit the signature.
    """
    parser, config = _parsed(block, backbone_weights)
    try:
        module: DetectionModule = parser.instantiate(config).model
    except OSError:
        raise  # the weights of a backbone cannot be had
    except Exception as error:  # sizes that fit no layer: what torch raises depends on the layer
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        path = block["class_path"]
        raise ValueError(f"no network can be built of init_args of {path}: {reason[:200]}") from error
    return module


def check_block(block: Mapping[str, Any]) -> None:
    """Raises ValueError where `build_module` would before it builds anything."""
    _parsed(block, "random")


def _parsed(block: Mapping[str, Any], backbone_weights: str | None) -> tuple[ArgumentParser, Any]:
    if not isinstance(block, Mapping) or not isinstance(block.get("init_args"), Mapping):
        raise ValueError(f"the model block is {block!r:.80}; it has class_path and init_args, a mapping")
    path = str(block.get("class_path"))
    module_name, _, class_name = path.rpartition(".")
    if not re.fullmatch(r"zoo\.architectures\.[a-z0-9_]+\.[A-Za-z0-9_]+", path):
        raise ValueError(f"class_path {path!r} is not under zoo.architectures.; nothing else is imported")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"class_path {path!r} names no architecture of this version: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, DetectionModule)):
        raise ValueError(f"class_path {path!r} is not a detection module")
    init_args = copy.deepcopy(dict(block["init_args"]))  # the parser writes into what it is given
    if backbone_weights is not None and "backbone" in init_args:
        if not isinstance(init_args.get("backbone"), Mapping):
            raise ValueError(
                f"the backbone of {path} is {init_args.get('backbone')!r:.80}; it must be a mapping"
            )
        init_args["backbone"] = {**init_args["backbone"], "weights": backbone_weights}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "model")
    hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    try:
        refuse_towers(init_args)
        for name, value in init_args.items():
            refuse_imports(value, hints.get(name), str(name))
        return parser, parser.parse_object({"model": init_args})
    except Exception as error:  # jsonargparse raises its own kinds, all of them about the arguments
        reason = " ".join(str(error).split())
        raise ValueError(f"init_args do not fit {path}: {reason[:400]}") from error


def refuse_towers(arguments: Any) -> None:
    """Raises ValueError at a number of layers or blocks that would take minutes and all memory to build."""
    if isinstance(arguments, Mapping):
        for key, value in arguments.items():
            if str(key).endswith(("layers", "blocks")) and isinstance(value, int) and value > MOST_LAYERS:
                raise ValueError(f"{key} is {value}; no network here has more than {MOST_LAYERS}")
            refuse_towers(value)


def parameter_names(block: Mapping[str, Any]) -> list[str]:
    """Names of the parameters of the network that a `{class_path, init_args}` block builds."""
    with torch.random.fork_rng(devices=[]):
        module = build_module(block, backbone_weights="random")
    return [name for name, _ in module.network.named_parameters()]
