"""A step whose loss or gradient is not finite: named, saved so that it can be repeated, and then the end, or skipped.

It is looked for once a step, in the gradients as the optimizer would get them, and all ranks decide alike: the loss of
one rank's images is nan in every rank's gradient.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zoo.contract.batch import Batch, Step, Targets
from zoo.storage.checkpoint_io import AtomicCheckpointIO

_NAMED = 3  # images and tensors that a message names


@dataclass(frozen=True, kw_only=True)
class NonFinite:
    """What happens at a step whose loss or gradient is not finite.

    Attributes:
        action: `stop` the training, or `skip` the step: weights, optimizer, average and statistics stay as they were,
            and the step counts as done.
        limit: longest run of skipped steps; one more stops the training.
    """

    action: Literal["stop", "skip"] = "stop"
    limit: int = 10

    def __post_init__(self) -> None:
        if self.action not in ("stop", "skip"):
            raise ValueError(f"non_finite.action is {self.action!r}; it is stop or skip")
        if self.limit < 1:
            raise ValueError(
                f"non_finite.limit is {self.limit}; it is how many steps may be skipped in a row"
            )


@dataclass
class MicroBatch:
    """One that was run in the present step."""

    batch: Batch
    index: int  # Lightning's, which seeds its dropout
    losses: dict[str, Tensor]
    error: str = ""  # of the matcher, which takes no nan


class StepGuard:
    """Looks at every step of a module, and remembers of it what a repetition needs.

    Attributes:
        policy: what happens.
        folder: where a step is saved; None saves none.
        names: files of images, by their ids.
        skipped: steps of the whole training.
        in_a_row: of them, those since the last one that was done.
        given: the latest batch as the loader gave it, in the memory of the host.
    """

    def __init__(self) -> None:
        self.policy = NonFinite()
        self.folder: Path | None = None
        self.names: Callable[[Sequence[int]], list[str]] | None = None
        self.skipped, self.in_a_row = 0, 0
        self.given: Batch | None = None
        self._parts: list[MicroBatch] = []
        self._statistics: list[Tensor] = []
        self._elsewhere = False  # whether it is the loss of another rank that is not finite

    def __deepcopy__(self, memo: dict[int, Any]) -> StepGuard:
        """A new one: a copy of a module is for trials, and `names` holds the whole data set."""
        return StepGuard()

    def state(self) -> dict[str, int]:
        """For a checkpoint."""
        return {"skipped_steps": self.skipped, "skipped_in_a_row": self.in_a_row}

    def load(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state`; checkpoints from before it had none."""
        self.skipped, self.in_a_row = state.get("skipped_steps", 0), state.get("skipped_in_a_row", 0)

    def begin(self, network: nn.Module, first: bool) -> None:
        """Before a micro-batch is run; `first` of its step. Keeps what a forward pass changes in the network."""
        if not first:
            return
        self._parts = []
        buffers = list(network.buffers())
        if [b.device for b in buffers] != [s.device for s in self._statistics]:
            self._statistics = [torch.empty_like(b) for b in buffers]
        if buffers:
            torch._foreach_copy_(self._statistics, buffers)

    def note(self, batch: Batch, index: int, losses: Mapping[str, Tensor], error: str = "") -> None:
        """After it was run."""
        here = batch if self.given is None else self.given
        self._parts.append(MicroBatch(here, index, {k: v.detach() for k, v in losses.items()}, error))

    def is_bad(self, network: nn.Module, scaled_down: bool) -> bool:
        """Whether this step is not finite on any rank.

        Args:
            network: with the gradients of the whole step.
            scaled_down: a gradient scaler deals with gradients that its own factor made infinite: look at the losses
                alone.
        """
        values = [value.sum() for part in self._parts for value in part.losses.values()]
        of_loss = len(values)
        grads = [] if scaled_down else [p.grad for p in network.parameters() if p.grad is not None]
        finite = _are_finite([*values, *(torch._foreach_norm(grads, 2) if grads else [])])
        if not all(finite[of_loss:]):  # the largest entry costs much more; squares overflow before it does
            finite = finite[:of_loss] + _are_finite(torch._foreach_norm(grads, float("inf")))
        loss_is_bad = any(part.error for part in self._parts) or not all(finite[:of_loss])
        bad = loss_is_bad or not all(finite)
        if not (dist.is_available() and dist.is_initialized()):
            return bad
        agreed = torch.tensor([bad, loss_is_bad], dtype=torch.int32, device=next(network.parameters()).device)
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        self._elsewhere = bool(agreed[1]) and not loss_is_bad
        return bool(agreed[0])

    def passed(self) -> None:
        """The step is finite."""
        self._parts, self.in_a_row = [], 0

    def restore(self, network: nn.Module) -> None:
        """Gives the network the statistics that it had before the step."""
        if self._statistics:
            torch._foreach_copy_(list(network.buffers()), self._statistics)

    def skip(self, network: nn.Module) -> None:
        """Counts the step as skipped and drops its gradients: an optimizer that has none changes nothing."""
        self.skipped += 1
        self.in_a_row += 1
        self._parts = []
        for parameter in network.parameters():
            parameter.grad = None

    @property
    def may_skip(self) -> bool:
        """Whether the recipe wants this step skipped."""
        return self.policy.action == "skip" and self.in_a_row < self.policy.limit

    def describe(self, network: nn.Module) -> str:
        """What is not finite, and in which images; nothing if that is another process's to tell."""
        if self._elsewhere:
            return ""
        bad = [part for part in self._parts if part.error or not_finite(part.losses)]
        told = [part.error or f"the loss {listed(not_finite(part.losses))}" for part in bad]
        if not bad:
            bad = self._parts
            told = [f"the gradient of {listed(bad_gradients(network))}"]
        ids = [image for part in bad for image in part.batch.image_ids]
        files = (self.names(ids) if self.names else None) or [str(i) for i in ids]
        images = f" (images {listed(files)})" if files else ""
        return f"not finite: {'; '.join(dict.fromkeys(told))}{images}"

    def shared(self, told: str, saved: Path | None) -> tuple[str, Path | None]:
        """What the process at fault describes and has saved: the line of rank zero is the one that is read.

        Where only the sum of all gradients is not finite, each process has saved its own part, and rank zero tells.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return told, saved
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, (self._elsewhere, told, saved))
        _, told, saved = min(every, key=lambda one: one[0])
        return told, saved

    def save(self, module: Any, name: str) -> Path | None:
        """Writes what repeats the step: the weights before it, its micro-batches, and their seeds.

        None where there is no folder, or no room.
        """
        if self.folder is None or self._elsewhere:
            return None
        trainer = module.trainer
        content = {
            "zoo": module.facts(),
            "state_dict": module.state_dict(),
            "non_finite": {
                "rank": trainer.global_rank,
                "precision": str(trainer.precision),
                "device": module.device.type,
                "scale": trainer.accumulate_grad_batches * trainer.world_size,
                "parts": [{"index": part.index, "batch": plain_batch(part.batch)} for part in self._parts],
            },
        }
        try:
            AtomicCheckpointIO().save_checkpoint(content, self.folder / name)
        except OSError:
            return None
        return self.folder / name


def _are_finite(values: Sequence[Tensor]) -> list[bool]:
    """Of each number; the device is waited for once."""
    return torch.stack([v.float() for v in values]).isfinite().tolist() if values else []


def bad_gradients(network: nn.Module) -> list[str]:
    """Names of the parameters whose gradient is not finite."""
    named = [(n, p.grad) for n, p in network.named_parameters() if p.grad is not None]
    return [name for name, gradient in named if not bool(gradient.isfinite().all())]


def not_finite(losses: Mapping[str, Tensor]) -> list[str]:
    """Names of the terms with a value that is nan or infinite."""
    return [name for name, value in losses.items() if not bool(value.isfinite().all())]


def listed(names: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def ways_on(saved: Path | None, again: str | None = None) -> str:
    """The commands that look at the step; with the one to resume, "" for none, also how to go on after the end."""
    told = "" if saved is None else f"; where it begins: zoo fit --replay {shlex.quote(str(saved))}"
    if again is None:
        return told
    if again:
        told += f"; go on without this step: {again} --non_finite.action skip"
    return f"{told}; or lower the learning rate"


def plain_batch(batch: Batch) -> dict[str, Any]:
    """A training batch as tensors and plain values, which a safe loader reads."""
    step = batch.step
    assert step is not None
    return {
        **{
            f.name: getattr(batch, f.name)
            for f in fields(Batch)
            if f.name not in ("targets", "step", "panoptic", "pieces")
        },
        "targets": batch.targets._asdict(),
        "step": {**asdict(step), "counts": step.counts},
    }


def batch_of(plain: Mapping[str, Any]) -> Batch:
    """Inverse of `plain_batch`."""
    targets: dict[str, Any] = {
        name: tuple(value) if name.endswith("counts") and value is not None else value
        for name, value in plain["targets"].items()
    }
    step = {**plain["step"], "size": tuple(plain["step"]["size"])}
    sizes = tuple(tuple(size) for size in plain["original_sizes"])
    return Batch(**{**plain, "targets": Targets(**targets), "step": Step(**step), "original_sizes": sizes,
                    "image_ids": tuple(plain["image_ids"])})  # fmt: skip
