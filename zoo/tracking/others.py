"""TensorBoard and Weights & Biases beside MLflow: Lightning's own loggers, which here never stop a training.

A call that fails, or takes longer than its time, is told once, and its logger gets nothing more in this process. What
was to be kept is in MLflow.
"""

from __future__ import annotations

import importlib.util
import logging
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only  # type: ignore[attr-defined]

from zoo.storage.deadline import Deadline

log = logging.getLogger(__name__)

Other = Literal["tensorboard", "wandb"]
PACKAGES: Mapping[str, str] = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}  # to import; also the name of the extra
_PATIENCE, _PATIENCE_AT_THE_ENDS = (
    2.0,
    60.0,
)  # seconds of a call; of the first, which may connect, and of the last


class OtherTracker(Logger):
    """One of `PACKAGES`, made at its first call.

    Args:
        kind: which.
        make: its logger.
    """

    def __init__(self, kind: str, make: Callable[[], Logger]) -> None:
        super().__init__()
        self.kind = kind
        self._make = make
        self._logger: Logger | None = None
        self._deadline = Deadline()
        self._failed = False

    @property
    def name(self) -> str:
        """Of the service."""
        return self.kind

    @property
    def version(self) -> str:
        """None of its own: the run's folder and MLflow's id name the run."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Numbers of one step."""
        values = dict(metrics)
        self._call(lambda logger: logger.log_metrics(values, step))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """What the run was started with."""
        self._call(lambda logger: logger.log_hyperparams(params))

    @rank_zero_only
    def save(self) -> None:
        """Writes what it holds back."""
        self._call(lambda logger: logger.save())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends it; a run of W&B is given its time to send what waits."""
        self._call(lambda logger: _end(logger, status), _PATIENCE_AT_THE_ENDS)

    def _call(self, call: Callable[[Logger], Any], seconds: float = _PATIENCE) -> None:
        if self._failed:
            return
        first = self._logger is None
        try:
            self._deadline.call(lambda: call(self._made()), _PATIENCE_AT_THE_ENDS if first else seconds)
        except (Exception, SystemExit) as error:  # whatever a service may raise, the training goes on
            self._failed = True
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            log.warning(
                "%s failed (%s) and gets nothing more. The training goes on, and MLflow has all of it",
                self.kind, reason,
            )  # fmt: skip

    def _made(self) -> Logger:
        if self._logger is None:
            self._logger = self._make()
        return self._logger


def _end(logger: Logger, status: str) -> None:
    logger.finalize(status)
    if isinstance(logger, WandbLogger):
        logger.experiment.finish(exit_code=0 if status in ("success", "finished") else 1)


def require(kinds: Sequence[str]) -> None:
    """Raises ValueError for what is none of `PACKAGES`, is there twice, or is not installed; says how to get it."""
    if set(kinds) - set(PACKAGES) or len(set(kinds)) < len(kinds):
        raise ValueError(
            f"tracking.also is [{', '.join(kinds)}]; it has some of {', '.join(PACKAGES)}, each once, beside MLflow"
        )
    for kind in kinds:
        if importlib.util.find_spec(PACKAGES[kind]) is None:
            raise ValueError(
                f"tracking.also has {kind}, and the package is not installed: pip install 'detr-zoo[{kind}]'"
            )


def other_trackers(
    kinds: list[Other], folder: Path, experiment: str, run_name: str | None, run_id: str | None
) -> list[OtherTracker]:
    """The loggers of these kinds.

    Args:
        kinds: which.
        folder: of the run: TensorBoard's files go into `tensorboard` there, W&B's own into `wandb`.
        experiment: W&B's project.
        run_name: shown by W&B.
        run_id: names the run for W&B, which goes on with it after a resume.

    Raises:
        ValueError: a package is not installed; says how to get it.
    """
    require(kinds)
    makers: Mapping[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoardLogger(folder, name="", version="tensorboard"),
        "wandb": lambda: _wandb(
            name=run_name, id=run_id, project=experiment, save_dir=folder, resume="allow", log_model=False
        ),
    }
    return [OtherTracker(kind, makers[kind]) for kind in kinds]


def _wandb(**options: Any) -> Logger:
    from wandb import Settings  # of an extra

    return WandbLogger(**options, settings=Settings(console="off"))  # it would read all that the run prints
