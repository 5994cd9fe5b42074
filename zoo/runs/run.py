"""A training by its folder: scores, curves, checkpoint, recipe."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.runs import recipes
from zoo.runs.building import Recipe
from zoo.runs.run_folder import LAST_FILE, METRICS_FILE, RECIPE_FILE, document_of
from zoo.storage.checkpoint_io import read_checkpoint

if TYPE_CHECKING:
    from zoo.detector import Detector
    from zoo.registry.publish import Published

_SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl", "segm_AP", "PQ")
_PICTURES = ("gallery.png", "curves.png")


@dataclass(frozen=True, repr=False)
class Run:
    """A run by its folder; in a notebook it shows its scores, gallery and curves.

    Attributes:
        folder: with recipe.yaml, the checkpoints, and once it is finished metrics.json, curves.png and gallery.png.
        document: what metrics.json holds; empty as long as the run is not finished.
    """

    folder: Path
    document: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """The run that lies in a folder, finished or not.

        Raises:
            FileNotFoundError: no run wrote there.
        """
        folder = Path(folder).expanduser()
        if (folder / METRICS_FILE).is_file() or not (folder / LAST_FILE).is_file():
            return cls(folder, document_of(folder))
        return cls(folder, {})

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """Of the best checkpoint, by split: AP, its interval, the AP of each class; nothing of an unfinished run."""
        return {split: self.document[split] for split in ("val", "test") if split in self.document}

    @property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """(step, value) of the training loss and of every validation score, read from the last checkpoint."""
        series = read_checkpoint(self.folder / LAST_FILE)["callbacks"]["History"]["series"]
        return {
            name: [(int(step), float(value)) for step, value in points] for name, points in series.items()
        }

    @property
    def checkpoint(self) -> Path:
        """The best; the last of an unfinished run."""
        return Path(self.document["checkpoint"]) if self.document else self.folder / LAST_FILE

    @property
    def recipe(self) -> Recipe:
        """The complete recipe that was trained."""
        return Recipe(recipes.load(self.folder / RECIPE_FILE))

    @property
    def registered(self) -> str | None:
        """`NAME:VERSION` that `finetune` registered it as."""
        return self.document.get("registered")

    def detector(self) -> Detector:
        """With the weights of `checkpoint`."""
        from zoo.detector import Detector

        return Detector.from_checkpoint(self.checkpoint)

    def publish(
        self, name: str, *, aliases: Sequence[str] = (), registry: str | Path | None = None
    ) -> Published:
        """As `zoo.publish`."""
        return publish(self, name, aliases=aliases, registry=registry)

    def __repr__(self) -> str:
        scores = [f"{split} AP {_number(scores['AP'])}" for split, scores in self.scores.items()]
        return f"<Run {self.folder}: {', '.join(scores) or 'not finished'}>"

    def _repr_html_(self) -> str:
        rows = [(split, [scores.get(name) for name in _SHOWN]) for split, scores in self.scores.items()]
        names = [name for i, name in enumerate(_SHOWN) if any(values[i] is not None for _, values in rows)]
        head = "".join(f"<th>{name}</th>" for name in ("", *names))
        body = "".join(
            f"<tr><td>{split}</td>"
            + "".join(f"<td>{_number(self.scores[split].get(name))}</td>" for name in names)
            + "</tr>"
            for split, _ in rows
        )
        pictures = "".join(
            f'<img style="max-width: 100%" alt="{name}" src="data:image/png;base64,'
            f'{base64.b64encode((self.folder / name).read_bytes()).decode()}">'
            for name in _PICTURES
            if (self.folder / name).is_file()
        )
        table = f"<table><tr>{head}</tr>{body}</table>" if rows else "<p>not finished</p>"
        return f"<div><p><code>{html.escape(str(self.folder))}</code></p>{table}{pictures}</div>"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def publish(
    run: Run | str | Path, name: str, *, aliases: Sequence[str] = (), registry: str | Path | None = None
) -> Published:
    """Registers the best checkpoint of a run as safetensors with a manifest; what is registered stays one version.

    >>> import zoo
    >>> run = zoo.Run.open("run")
    >>> zoo.publish(run, "rt_detr_tiny.mine", aliases=["champion"]).reference
    'rt_detr_tiny.mine:1'
    >>> zoo.load("rt_detr_tiny.mine@champion").name
    'rt_detr_tiny.mine:1'

    Args:
        run: or its folder, its id in MLflow, or a checkpoint file.
        name: `MODEL.TAG` in lower-case letters, digits and underscores.
        aliases: names of the version, as in `NAME@champion`.
        registry: folder; ZOO_REGISTRY or ./mlruns/registry by default.

    Returns:
        the version: manifest, folder, and `reference`, which `zoo.load` takes.

    Raises:
        ValueError: a name that a registry cannot hold, or a file that is no checkpoint.
        FileNotFoundError: there is no such run, or it is not finished.
    """
    from zoo.registry.publish import publish as publish_version

    source = Path(run.folder if isinstance(run, Run) else run).expanduser()
    checkpoint, facts = _of_folder(source) if source.is_dir() else (str(run), {})
    return publish_version(checkpoint, name, aliases=aliases, registry=registry, once=True, **facts)


def _of_folder(folder: Path) -> tuple[str, dict[str, Any]]:
    """The best checkpoint of a run folder, the run that wrote it and its recipe."""
    document = document_of(folder)
    recipe = folder / RECIPE_FILE
    text = recipe.read_text(encoding="utf-8") if recipe.is_file() else None
    facts = {"run_id": document["run"], "recipe": text, "thresholds": document.get("thresholds")}
    return document["checkpoint"], facts
