"""`zoo manifest`: the manifest of a recipe's published weights, to be reviewed and completed."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import msgspec

from zoo.contract.labels import LabelMap
from zoo.contract.preprocess import InputContract
from zoo.registry.manifest import (
    DataBlock,
    InputBlock,
    LabelMapBlock,
    Manifest,
    ModelBlock,
    Origin,
    PublishedScores,
    TrainedBy,
    check_manifest,
)
from zoo.registry.names import base_name
from zoo.registry.store import builtin_manifest, builtin_manifests, find
from zoo.registry.terms import DATA_TERMS, ModelTerms, not_stated, stated
from zoo.registry.weights import count
from zoo.runs import building, recipes, schema
from zoo.runs.train import refuse_missing_data
from zoo.training.module import build_module

NO_HASH = "The authors publish no hash: the first pull notes the sha256 of what it got, and later pulls are held to it."


def draft(name: str, overrides: Mapping[str, Any] | None = None, labels_of: str | None = None) -> Manifest:
    """The manifest of the weights that the recipe's `about.sources` name; parameters and multiply-adds are counted.

    Args:
        name: of the recipe, or its path.
        overrides: of the recipe, such as the folder of its data.
        labels_of: model with the same label map, where the data are not at hand.

    Raises:
        ValueError, OSError: the recipe does not tell what a manifest needs.
    """
    recipe = recipes.read([name], overrides)
    schema.check(recipe)
    about = recipe.get("about") or {}
    needed = ("name", "tag", "family", "license", "sources", "trained_by")
    absent = [key for key in needed if not about.get(key)]
    if absent:
        raise ValueError(
            f"{name} does not tell about.{absent[0]}, and a manifest says where published weights are and whose they "
            "are; weights that you have trained get theirs from `zoo publish`"
        )
    contract = InputContract.from_dict(recipe["data"]["init_args"]["input"])
    labels = label_map(recipe, labels_of)
    module = build_module(recipe["model"], backbone_weights="random")
    module.adopt(labels, contract)
    params, macs, counted = count(module, contract)
    full = f"{about['name']}.{about['tag']}"
    place, sources = recipe["data"]["init_args"], about["sources"]
    data = DataBlock(name=PurePosixPath(str(place["root"])).name, split=place.get("train_split", "train"))
    drafted = Manifest(
        name=full,
        version=1,
        family=about["family"],
        default=not any(
            builtin_manifest(path).default and base_name(other) == about["name"] and other != full
            for other, path in builtin_manifests().items()
        ),
        license=about["license"],
        terms=drafted_terms(recipe, data.name),
        model=msgspec.convert(recipe["model"], ModelBlock),
        label_map=msgspec.convert(labels.to_dict(), LabelMapBlock),
        input=msgspec.convert(contract.to_dict(), InputBlock),
        files=[],
        sources=sources,
        origin=Origin(
            kind="converted",
            file=PurePosixPath(urlsplit(sources[0]).path).name,
            converter=f"zoo.architectures.{about['family']}.from_published",
            note=NO_HASH,
        ),
        recipes=[key for key, path in recipes.bundled().items() if path == recipes.resolve(name)],
        trained_by=msgspec.convert(about["trained_by"], TrainedBy),
        data=data,
        published=published_scores(about, place.get("eval_split", "val"), data.name),
        params=params,
        macs=macs,
        counted=counted,
        created=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    )
    check_manifest(drafted)
    return drafted


def drafted_terms(recipe: recipes.Recipe, data_name: str) -> ModelTerms:
    """What is known of the terms; of code and weights a person must read them."""
    unread = stated(
        recipe["about"]["license"], "to be completed: where it is written, when you read it, commercial use"
    )
    every = {data_name: DATA_TERMS.get(data_name, not_stated())}
    before = builtin_manifests().get(recipe.get("init_from", {}).get("source", "none"))
    if before is not None and (terms := builtin_manifest(before).terms) is not None:
        every = {**terms.data, **every}
    return ModelTerms(code=unread, weights=unread, data=every)


def label_map(recipe: recipes.Recipe, labels_of: str | None) -> LabelMap:
    """That of a model of the zoo, or else that of the recipe's data, which must be there."""
    if labels_of is not None:
        return find(labels_of).manifest.labels()
    try:
        refuse_missing_data(recipe)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}, or a model with the same classes with --labels-of MODEL"
        ) from error
    return building.Recipe(recipe).datamodule().label_map


def published_scores(about: dict[str, Any], split: str, data: str) -> PublishedScores | None:
    """The scores of `about.published` that a manifest has fields for."""
    if not about.get("published"):
        return None
    known = {field.name for field in msgspec.structs.fields(PublishedScores)}
    scores = {key: value for key, value in about["published"].items() if key in known}
    facts = {"source": about["trained_by"]["code"], "dataset": f"{split} of {data}"}
    return msgspec.convert(facts | scores, PublishedScores)
