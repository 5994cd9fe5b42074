"""From a training run to a version in the registry: safetensors, manifest, MLflow model version."""

from __future__ import annotations

import datetime
import importlib.util
import json
import logging
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import msgspec

from zoo.registry.manifest import (
    METRICS,
    METRICS_OF_MASKS,
    WEIGHTS_FILE,
    DataBlock,
    InputBlock,
    LabelMapBlock,
    Lineage,
    Manifest,
    MeasuredScores,
    ModelBlock,
    Origin,
    TrainedBy,
    thresholds_of,
)
from zoo.registry.mlflow_model import write_mlflow_model
from zoo.registry.names import check_alias, check_name, logged_model_name
from zoo.registry.store import (
    BUILTIN_FOLDER,
    LocalRegistry,
    UnknownModelError,
    find,
    refuse_builtin_name,
    same_weights,
    with_files,
)
from zoo.registry.terms import NOT_STATED, ModelTerms, Terms, commercial, inherited, not_stated
from zoo.registry.weights import Released, count, ready_module, released_from_checkpoint, save_weights
from zoo.storage.durable import FULL, written
from zoo.storage.plain_yaml import parse_yaml
from zoo.tracking.backend import TrackingStore, connect, experiment_id, resolve_store
from zoo.tracking.lineage import DISTRIBUTION, tool_versions

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

log = logging.getLogger(__name__)

# artifact of a run: the fields of MeasuredScores but run and git_commit; and those of Thresholds
MEASURED_FILE = "measured.json"
RECIPE_FILE = "recipe.yaml"
_LONGEST_PARAM = 5000  # of a model in MLflow; one of a run may be longer


@dataclass(frozen=True)
class Published:
    """The published version. `mlflow_version` is None if it could not be registered in MLflow, see `note`.

    `is_new` is False where `once` was asked for and the weights had been published before.
    """

    manifest: Manifest
    folder: Path
    mlflow_version: int | None
    note: str
    is_new: bool = True

    @property
    def reference(self) -> str:
        """`NAME:VERSION`, which `zoo.load` takes."""
        return f"{self.manifest.name}:{self.manifest.version}"


@dataclass(frozen=True)
class _Run:
    """What MLflow has stored of the run that trained the weights."""

    run_id: str
    experiment_id: str
    tags: dict[str, str]
    scores: dict[str, Any] | None
    recipe: str | None

    @property
    def commit(self) -> str | None:
        return self.tags.get("zoo.git_commit")


def publish(
    source: str | Path,
    name: str,
    *,
    aliases: Sequence[str] = (),
    registry: str | Path | None = None,
    root: str | Path | None = None,
    tracking_uri: str | None = None,
    run_id: str | None = None,
    measured: Mapping[str, Any] | None = None,
    thresholds: Mapping[str, Any] | None = None,
    license: str | None = None,
    parent: str | None = None,
    data_name: str | None = None,
    data_split: str = "train",
    data_terms: Terms | None = None,
    recipe: str | None = None,
    once: bool = False,
) -> Published:
    """Publishes the released weights of a run or checkpoint as the next version of `name`.

    Args:
        source: an MLflow run id, or the path of a checkpoint.
        name: full name; built-in names are refused.
        aliases: pointed to the new version, e.g. `champion`, also in MLflow.
        registry: folder of the registry; see `registry_root`.
        root: folder of the embedded MLflow store, see `resolve_store`.
        tracking_uri: of an MLflow server.
        run_id: of the run that wrote the checkpoint, if `source` is a path.
        measured: scores of exactly these weights: fields of `MeasuredScores` except run and git_commit. By
            default the run's artifact `measured.json`, else the run's validation metrics at the
            checkpoint's step.
        thresholds: fields of `Thresholds`; None is what the run's artifact `measured.json` says.
        license: of the weights, as you state it; None is the parent's.
        parent: name of the model that training started from, whose terms the weights inherit; None is what the
            run's recipe says.
        data_name: what they were trained on; None is what the run's recipe says.
        data_split: the part of it that they were trained on.
        data_terms: of that data set; None: not stated.
        recipe: text of the recipe that the weights were trained by; None is the run's.
        once: a version that has these weights already is returned instead.

    Raises:
        FileNotFoundError: no such checkpoint, or run without one.
        ValueError: a name or checkpoint that breaks a rule; or `measured` without a run and its commit.
    """
    check_name(name)
    refuse_builtin_name(name)
    for alias in aliases:
        check_alias(alias)
    tracking = resolve_store(root, tracking_uri)
    path, run_id = _checkpoint_of(source, run_id, tracking)
    released = released_from_checkpoint(path)
    run = _read_run(run_id, int(released.facts["step"]), tracking) if run_id else None
    if run_id and run is None:
        # the server does not answer: `_read_run` has logged it, and the weights are published without the run
        measured = None
    begun_from, trained_on = _of_recipe(recipe or (run.recipe if run is not None else None))
    parent, data_name = parent or begun_from, data_name or trained_on or "custom"
    scores = _measured(run, measured, data_name)
    if thresholds is None and run is not None and run.scores is not None:
        thresholds = run.scores.get("thresholds")
    terms = _terms(released, parent, registry, license, (data_name, data_terms or not_stated()))
    manifest = _manifest(released, name, run, scores, terms, parent, (data_name, data_split))
    if thresholds is not None:
        manifest = msgspec.structs.replace(manifest, thresholds=thresholds_of(thresholds))
    store = LocalRegistry(registry)
    before = store.versions(name)

    def make(folder: Path) -> Manifest:
        save_weights(released.state, folder / WEIGHTS_FILE)
        if run is not None and run.recipe is not None:
            with written(folder / RECIPE_FILE):
                (folder / RECIPE_FILE).write_text(run.recipe, encoding="utf-8")
        return with_files(manifest, folder)

    try:
        manifest = store.add(make, name, alike=same_weights if once else None)
    except OSError as error:
        if error.errno not in FULL:
            raise
        told = "nothing was published and what was there is whole: make room, and run the same command again"
        raise OSError(error.errno, f"{error.strerror}; {told}", str(store.root)) from error
    for alias in aliases:
        store.set_alias(name, alias, manifest.version)
    folder = store.folder(name, manifest.version)
    is_new = manifest.version not in before
    number, note = _register_in_mlflow(
        manifest, folder, aliases, tracking, run, int(released.facts["step"]), is_new
    )
    return Published(manifest, folder, number, note, is_new)


def _checkpoint_of(
    source: str | Path, run_id: str | None, tracking: TrackingStore
) -> tuple[Path, str | None]:
    """(checkpoint, run id or None)."""
    if Path(source).is_file():
        return Path(source), run_id
    if not re.fullmatch(r"[0-9a-f]{32}", str(source)):
        raise FileNotFoundError(
            f"{source} is no run folder and no checkpoint file, seen from {Path.cwd()}, and no MLflow run id (32 hex "
            "digits); name the run folder by its whole path, which the training printed behind `run`"
        )
    tags = _get_run(str(source), tracking)[1].data.tags
    noted = tags.get("zoo.checkpoint")
    if not noted or not Path(noted).is_file():
        where = f"its checkpoint {noted} is gone" if noted else "it noted no checkpoint"
        raise FileNotFoundError(
            f"run {source}: {where}; name a checkpoint file instead, and the run with run_id={source}"
        )
    return Path(noted), str(source)


def _get_run(run_id: str, tracking: TrackingStore) -> tuple[MlflowClient, Any]:
    """Client and run.

    Raises:
        ValueError: the store has no such run.
        ConnectionError: the store does not answer.
    """
    from mlflow.exceptions import MlflowException

    client = connect(tracking)
    try:
        return client, client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise ValueError(
                f"there is no run {run_id} at {tracking.uri}; repeat this in the folder where it was trained, which "
                "has its mlruns/, or with its MLFLOW_TRACKING_URI; or name the checkpoint file, for a version without "
                "scores"
            ) from error
        raise ConnectionError(f"MLflow at {tracking.uri} does not answer: {error.message}") from error


def _read_run(run_id: str, step: int, tracking: TrackingStore) -> _Run | None:
    """The facts of the run in MLflow; None if its server does not answer: publishing goes on without them."""
    from mlflow.exceptions import MlflowException

    try:
        client, run = _get_run(run_id, tracking)
        scores, recipe = _read_artifacts(client, run_id)
        if scores is not None and scores.pop("step", step) != step:
            scores = None  # of another checkpoint than this one
        if scores is None:
            scores = _scores_at(client, run_id, step)
    except (MlflowException, OSError) as error:
        log.warning("run %s is left out of the manifest, with its scores: %s", run_id, error)
        return None
    return _Run(run_id, str(run.info.experiment_id), dict(run.data.tags), scores, recipe)


def _read_artifacts(client: MlflowClient, run_id: str) -> tuple[dict[str, Any] | None, str | None]:
    """(measured.json, recipe.yaml) of a run, None where it has none."""
    there = {item.path for item in client.list_artifacts(run_id)}
    texts = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in there & {MEASURED_FILE, RECIPE_FILE}:
            texts[name] = Path(client.download_artifacts(run_id, name, folder)).read_text(encoding="utf-8")
    return json.loads(texts[MEASURED_FILE]) if MEASURED_FILE in texts else None, texts.get(RECIPE_FILE)


def _scores_at(client: MlflowClient, run_id: str, step: int) -> dict[str, Any] | None:
    """Validation metrics of the epoch in which the checkpoint was written; None if there are none."""
    scores = {}
    for metric in (*METRICS, *METRICS_OF_MASKS):
        history = client.get_metric_history(run_id, f"val/{metric}")
        # Lightning logs an evaluation after `step` optimizer steps at `step` or one before
        values = [m.value for m in history if m.step in (step, step - 1)]
        if values:
            scores[metric] = values[-1]
    return {**scores, "split": "val"} if "AP" in scores else None


def _measured(run: _Run | None, given: Mapping[str, Any] | None, data_name: str) -> MeasuredScores | None:
    """The measured scores, or None if the run or its commit is not known."""
    scores = dict(given) if given is not None else (run.scores if run is not None else None)
    if scores is None:
        return None
    scores.pop("thresholds", None)  # a block of its own
    ap = scores.get("AP")
    if ap is None or math.isnan(ap):
        log.warning("the manifest has no measured scores: there was nothing to score")
        return None
    if run is None or run.commit is None:
        missing = "no run" if run is None else f"run {run.run_id} without a git commit"
        if given is not None:
            raise ValueError(
                f"measured scores need the run that made the weights and its commit; there is {missing}"
            )
        log.warning("the measured scores are left out of the manifest: there is %s", missing)
        return None
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    defaults = {"date": today, "dataset": data_name, "hardware": run.tags.get("zoo.hardware", "")}
    try:
        facts = {"run": run.run_id, "git_commit": run.commit}
        return msgspec.convert({**defaults, **scores, **facts}, MeasuredScores)
    except msgspec.ValidationError as error:
        raise ValueError(f"measured scores: {error}") from error


def _of_recipe(text: str | None) -> tuple[str | None, str | None]:
    """(model that a run started from, name of its data) by its recipe; None where it does not tell."""
    if text is None:
        return None, None
    recipe = parse_yaml(text, RECIPE_FILE)
    try:
        source, root = str(recipe["init_from"]["source"]), str(recipe["data"]["init_args"]["root"])
    except (KeyError, TypeError):
        return None, None
    # a checkpoint is a file: what bound it is not known
    model = None if source == "none" or re.search(r"[/\\]|\.(ckpt|pth|pt|safetensors)$", source) else source
    return model, PurePosixPath(root.rstrip("/")).name or None


def _terms(
    released: Released,
    parent: str | None,
    registry: str | Path | None,
    license: str | None,
    data: tuple[str, Terms],
) -> ModelTerms:
    """Terms of weights that this project has trained; a parent that is gone has told none."""
    of_parent = None
    if parent is not None:
        try:
            found = find(parent, registry).manifest
            of_parent = (parent, found.terms, found.license, found.data.name)
        except (UnknownModelError, ValueError, OSError) as error:
            log.warning("the terms of %s, which training started from, are not known: %s", parent, error)
            of_parent = (parent, None, NOT_STATED, "not known")
    version = f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}"
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    code = Terms(licence="Apache-2.0", source=f"LICENSE of {version}", date=today, commercial="allowed")
    module = importlib.util.find_spec(released.model["class_path"].rpartition(".")[0])
    if module is None or not Path(str(module.origin)).is_relative_to(BUILTIN_FOLDER.parent):
        code = not_stated("the architecture is not a part of this package")
    return inherited(of_parent, code, license, data)


def _manifest(
    released: Released,
    name: str,
    run: _Run | None,
    scores: MeasuredScores | None,
    terms: ModelTerms,
    parent: str | None,
    data: tuple[str, str],
) -> Manifest:
    """The manifest without files, of version 1. Building the module proves that the weights fit."""
    params, macs, counted = count(ready_module(released), released.input)
    tools = tool_versions()
    dirty = run.tags.get("zoo.git_dirty") if run is not None else None
    return Manifest(
        name=name,
        version=1,
        family=released.model["class_path"].split(".")[2],
        license=terms.weights.licence,
        terms=terms,
        model=msgspec.convert(released.model, ModelBlock),
        label_map=msgspec.convert(released.label_map.to_dict(), LabelMapBlock),
        input=msgspec.convert(released.input.to_dict(), InputBlock),
        files=[],
        origin=Origin(kind="trained"),
        trained_by=TrainedBy(code=f"{DISTRIBUTION} {tools[DISTRIBUTION]}"),
        data=DataBlock(name=data[0], split=data[1], digest=released.facts.get("data_digest")),
        lineage=Lineage(
            run=run.run_id if run is not None else None,
            git_commit=run.commit if run is not None else None,
            dirty=None if dirty is None else dirty == "true",
            parent=parent,
        ),
        measured=scores,
        params=params,
        macs=macs,
        counted=counted,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        tool_versions=tools,
    )


def _register_in_mlflow(
    manifest: Manifest,
    folder: Path,
    aliases: Sequence[str],
    tracking: TrackingStore,
    run: _Run | None,
    step: int,
    is_new: bool,
) -> tuple[int | None, str]:
    """(version in MLflow's Model Registry, note). The folder is published already, so a failure becomes the note."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client, experiment = connect(tracking), run.experiment_id if run else None
        known = None if is_new else _known_in_mlflow(client, manifest)  # none if a kill came in between
        number = known or register(client, manifest, folder, tracking, experiment, step)
        for alias in aliases:
            client.set_registered_model_alias(manifest.name, alias, str(number))
        return number, ""
    except (MlflowException, SQLAlchemyError, OSError, ValueError) as error:
        note = (
            f"{manifest.name}:{manifest.version} is in {folder}, but not in MLflow at {tracking.uri}: {error}"
        )
        log.warning("%s", note)
        return None, note


def _known_in_mlflow(client: MlflowClient, manifest: Manifest) -> int | None:
    """The model version in MLflow that an earlier publication of this version has made."""
    tags = _identity(manifest)
    for version in client.search_model_versions(f"name = '{manifest.name}'"):
        if tags.items() <= version.tags.items():
            return int(version.version)
    return None


def alias_in_mlflow(manifest: Manifest, alias: str) -> str:
    """Points MLflow's alias to the model version of a published one; why that was not possible, else nothing."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    tracking = resolve_store()
    if tracking.embedded and not (tracking.root / "mlflow.db").is_file():
        return ""  # nothing was tracked here
    try:
        client = connect(tracking)
        number = _known_in_mlflow(client, manifest)
        if number is not None:
            client.set_registered_model_alias(manifest.name, alias, str(number))
            return ""
    except (MlflowException, SQLAlchemyError, OSError, ValueError) as error:
        return f"MLflow at {tracking.uri} has not got the alias: {error}"
    return f"MLflow at {tracking.uri} has no such version, and so no alias"


def _identity(manifest: Manifest) -> dict[str, str]:
    weights = manifest.file(WEIGHTS_FILE)
    sha256 = weights.sha256 if weights is not None else ""
    return {"zoo.name": manifest.name, "zoo.version": str(manifest.version), "zoo.sha256": sha256}


def register(
    client: MlflowClient,
    manifest: Manifest,
    folder: Path,
    tracking: TrackingStore,
    experiment: str | None = None,
    step: int = 0,
) -> int:
    """Makes a LoggedModel with the folder's files and a model version that points to it.

    The run shows it as its model after `step` optimizer steps; it shows the run's parameters, best scores and data set,
    and its version. MLflow's own tools load and serve it, see `zoo.registry.mlflow_model`.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    run_id = manifest.lineage.run
    tags = _identity(manifest)
    tags |= {"zoo.license": manifest.license, "zoo.commercial": commercial(manifest.terms)}
    run = None if run_id is None else client.get_run(run_id)
    model = client.create_logged_model(
        experiment_id=experiment or experiment_id(client, tracking),
        name=logged_model_name(manifest.name),
        source_run_id=run_id,
        tags=tags,
        params={} if run is None else {k: v for k, v in run.data.params.items() if len(v) <= _LONGEST_PARAM},
        model_type="detector",
    )
    client.log_model_artifacts(model.model_id, str(folder))
    with tempfile.TemporaryDirectory() as beside:
        write_mlflow_model(Path(beside), manifest, model.model_id, run_id)
        client.log_model_artifacts(model.model_id, beside)
    client.finalize_logged_model(model.model_id, "READY")
    if run is not None:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step)])
        scores = _best_scores(client, run, model.model_id)
        if scores:
            client.log_batch(run.info.run_id, metrics=scores)
    try:
        client.create_registered_model(manifest.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # neither a `models:/<id>` source nor, without a server, the model's id: MLflow would look both up in the
    # process's global store, which is another one
    version = client.create_model_version(
        manifest.name,
        source=model.artifact_location,
        run_id=run_id,
        tags={**tags, "zoo.logged_model": model.model_id},
        model_id=model.model_id if tracking.uri.startswith("http") else None,
    )
    if not tracking.uri.startswith("http"):  # a server does it by the id
        versions = json.dumps([{"name": version.name, "version": version.version}])
        client.set_logged_model_tags(model.model_id, {MLFLOW_MODEL_VERSIONS: versions})
    return int(version.version)


def _best_scores(client: MlflowClient, run: Run, model_id: str) -> list[Metric]:
    """The run's scores of its best checkpoint, as they were logged, but of the model and its data set too."""
    from mlflow.entities import Metric

    inputs = [] if run.inputs is None else run.inputs.dataset_inputs
    data = inputs[0].dataset if inputs else None
    logged = [
        client.get_metric_history(run.info.run_id, name)[-1]
        for name in run.data.metrics
        if name.startswith("best/")
    ]
    return [
        Metric(
            m.key, m.value, m.timestamp, m.step, model_id=model_id,
            dataset_name=None if data is None else data.name, dataset_digest=None if data is None else data.digest,
        )
        for m in logged
    ]  # fmt: skip
