"""The OpenAPI document: what requests may hold, what answers hold."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from zoo.serving.given import FORM, JSON, DetectRequest, FormFields
from zoo.serving.openai import ChatRequest
from zoo.serving.problems import MEDIA_TYPE


class RunLengths(msgspec.Struct):
    """A mask as COCO's compressed run lengths."""

    size: tuple[int, int]
    counts: str


class Detection(msgspec.Struct):
    """An object; the box is [left, top, right, bottom] in pixels of the upright image."""

    label: str
    source_id: int
    score: float
    box_xyxy: tuple[float, float, float, float]
    mask: RunLengths | msgspec.UnsetType = msgspec.UNSET


class FoundSegment(msgspec.Struct):
    """A segment of a panoptic model."""

    id: int
    label: str
    source_id: int
    is_thing: bool
    area: int
    score: float | None


class Panoptic(msgspec.Struct):
    """Segments, and a PNG in base64 whose pixels are R + 256 G + 65536 B = id of a segment."""

    threshold: float
    segments: list[FoundSegment]
    png: str


class Document(msgspec.Struct):
    """Detections, best first: what `zoo predict --json` writes of an image, and of which weights they are."""

    model: str
    id: str
    version: int | None
    hash: str
    height: int
    width: int
    threshold: float
    detections: list[Detection]
    label_map: dict[str, Any]
    tiles: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    class_thresholds: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    panoptic: Panoptic | msgspec.UnsetType = msgspec.UNSET
    picture: str | msgspec.UnsetType = msgspec.UNSET


class Card(msgspec.Struct):
    """A model."""

    id: str
    object: str
    created: int
    owned_by: str
    name: str
    version: int | None
    hash: str
    licence: str | None
    kind: str
    label_map: list[str]
    input: dict[str, Any]
    threshold: dict[str, Any]
    scores: dict[str, Any]
    runtime: str


class Cards(msgspec.Struct):
    """All models."""

    object: str
    data: list[Card]


class ProblemDocument(msgspec.Struct):
    """Why there is no answer (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str


class Completion(msgspec.Struct):
    """OpenAI's; the content of the message is a Document as JSON."""

    id: str
    object: str
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, Any]


class Fault(msgspec.Struct):
    """OpenAI's error."""

    error: dict[str, Any]


_TYPES = (DetectRequest, FormFields, ChatRequest, Document, Card, Cards, ProblemDocument, Completion, Fault)


def described(
    answer: type[Any] | None, *bodies: type[Any], fault: type[Any] = ProblemDocument
) -> dict[str, Any]:
    """Arguments of a FastAPI route: the types of its answer, of an error, and of the bodies that it takes."""
    faults = MEDIA_TYPE if fault is ProblemDocument else JSON
    told: dict[str, Any] = {
        "responses": {"default": {"description": "An error", "content": _content(faults, fault)}}
    }
    if answer is not None:
        told["responses"][200] = {"description": "The answer", "content": _content(JSON, answer)}
    if bodies:
        content = {
            k: v for body in bodies for k, v in _content(FORM if body is FormFields else JSON, body).items()
        }
        told["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return told


def describe(app: FastAPI) -> None:
    """Gives an app its OpenAPI document, made when it is asked for."""

    def document() -> dict[str, Any]:
        if not app.openapi_schema:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, schemas = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
            fields = schemas["FormFields"]
            fields["properties"] = {"file": {"type": "string", "format": "binary"}, **fields["properties"]}
            fields["required"] = ["file"]
            made["components"] = {
                "schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            }  # fmt: skip
            for path, operations in made["paths"].items():
                if path.startswith(("/v1/", "/metrics")):
                    for operation in operations.values():
                        operation["security"] = [{"key": []}, {}]
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _content(media_type: str, kind: type[Any]) -> dict[str, Any]:
    return {media_type: {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}
