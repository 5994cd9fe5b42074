"""States of an evaluation metric: flat typed columns on the CPU, gathered over ranks by concatenation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from zoo.contract.batch import RLE

# name of a state -> shape of one row, dtype
Columns = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class Evaluated(Protocol):
    """The evaluation of a set of images, which outlives the metric's reset."""

    @property
    def scores(self) -> dict[str, float]:
        """By name, in [0, 1]; nan where there is nothing to score."""
        ...


E = TypeVar("E", bound=Evaluated)


class FlatMetric(Metric, Generic[E]):
    """A metric whose states are flat columns, and whose scores are those of an evaluation.

    A subclass makes the evaluation in `_evaluate` and sets `_evaluation` to None in `update`.

    Each state's list holds an empty tensor of its own dtype and width from the start, so that a rank which
    saw no image still takes part in the gathering (torchmetrics would contribute a float32 tensor of the
    wrong shape).

    Args:
        columns: the states.
    """

    full_state_update = False

    def __init__(self, columns: Columns) -> None:
        super().__init__(dist_sync_fn=_gather)
        self._columns = dict(columns)
        for name in self._columns:
            self.add_state(name, [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forgets every image. An evaluation taken before this stays valid."""
        super().reset()
        self._evaluation: E | None = None
        for name, (width, dtype) in self._columns.items():
            setattr(self, name, [torch.empty(0, *width, dtype=dtype)])

    def compute(self) -> dict[str, float]:
        """The scores. Gathers over ranks: call it on all of them."""
        self._evaluation = self._evaluate()
        return self._evaluation.scores

    def evaluation(self) -> E:
        """The evaluation behind `compute`.

        Gathers over ranks if `compute` has not been called since the last update: then call it on all of them.
        """
        if self._evaluation is None:
            self.compute()
        assert self._evaluation is not None
        return self._evaluation

    def _evaluate(self) -> E:
        raise NotImplementedError

    def _apply(self, fn: Callable[..., Any], exclude_state: Sequence[str] = ()) -> torch.nn.Module:
        # float64 does not exist on every device, and the evaluators read the CPU anyway
        return super()._apply(fn, exclude_state=(*exclude_state, *self._columns))

    def flat(self, name: str) -> npt.NDArray[Any]:
        """A state as numpy: a list before the gathering, a tensor after it."""
        state = getattr(self, name)
        column: npt.NDArray[Any] = (torch.cat(state) if isinstance(state, list) else state).cpu().numpy()
        return column


def _gather(state: Tensor, group: Any = None) -> list[Tensor]:
    """The state of every rank, moved to the GPU and back where NCCL gathers."""
    on_gpu = torch.distributed.get_backend(group) == "nccl"
    return [t.cpu() for t in gather_all_tensors(state.cuda() if on_gpu else state, group)]


def pack_masks(masks: Sequence[RLE], size: tuple[int, int], image_id: int) -> tuple[Tensor, Tensor]:
    """Masks of one image as two columns: the length of each code, and all codes as one row of bytes.

    Args:
        masks: run-length codes with compressed counts.
        size: (h, w) of the image, which each mask must have.
        image_id: named in errors.

    Returns:
        [n] int64 and [sum of lengths] uint8.

    Raises:
        ValueError: if a mask has another size, or counts that are not compressed.
    """
    codes = []
    for mask in masks:
        found, counts = tuple(mask["size"]), mask["counts"]
        if found != tuple(size):
            raise ValueError(
                f"image {image_id}: a mask of {found} for an image of {tuple(size)} (h, w); masks are given "
                "in the original image"
            )
        if not isinstance(counts, (str, bytes)):
            raise ValueError(
                f"image {image_id}: a mask's counts are {type(counts).__name__}; compress them with "
                "pycocotools.mask.frPyObjects"
            )
        codes.append(counts.encode("ascii") if isinstance(counts, str) else counts)
    lengths = torch.tensor([len(code) for code in codes], dtype=torch.int64)
    packed = np.frombuffer(b"".join(codes), dtype=np.uint8).copy()
    return lengths, torch.from_numpy(packed)


def unpack_masks(lengths: npt.NDArray[np.int64], packed: npt.NDArray[np.uint8]) -> list[bytes]:
    """Inverse of `pack_masks` for any number of images: the code of each mask."""
    ends = np.cumsum(lengths)
    whole = packed.tobytes()
    return [whole[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
