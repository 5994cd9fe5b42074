"""What a request for detections may hold, as JSON or as a form, and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from zoo.serving.problems import A_FILE, Problem, shown
from zoo.serving.value_words import fault_in_words

JSON, FORM = "application/json", "multipart/form-data"
DEEPEST = 32  # objects and lists in each other; ours has 1, OpenAI's 5
MOST_CLASSES = 1000

Threshold = Annotated[float, msgspec.Meta(ge=0, le=1)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=300)]


class Options(msgspec.Struct, kw_only=True, frozen=True):
    """How to detect.

    Attributes:
        model: of `/v1/models`; may be left out where there is one.
        threshold: lowest score; None: what the model's own thresholds say.
        max_detections: the best so many.
        classes: names; others are left out. None: all.
        picture: whether the answer has the image as a browser can show it.
    """

    model: Name | None = None
    threshold: Threshold | None = None
    max_detections: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    classes: Annotated[list[Name], msgspec.Meta(min_length=1, max_length=MOST_CLASSES)] | None = None
    picture: bool = False


class DetectRequest(Options, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The body of /v1/detect as JSON: `image` is an http(s) address, a data URI, or base64."""

    image: Annotated[str, msgspec.Meta(min_length=1)]


class FormFields(Options, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What stands beside `file` in a form."""


class Asked(msgspec.Struct, frozen=True):
    """An image, as bytes or as it was written, and how to detect in it."""

    image: bytes | str
    options: Options


async def refuse_query(request: Request) -> None:
    """Raises Problem for a path with `?option=...`, of which nothing is read."""
    names = [*dict.fromkeys(request.query_params)]
    if names:
        way = "options go into the form or JSON" if request.method == "POST" else "this path has no options"
        raise Problem(
            422, "query", f"the address has {shown(names[0])!r} after its `?`, which is not read; {way}"
        )


async def read_request(request: Request) -> Asked:
    """The image and options of a request to /v1/detect.

    Raises:
        Problem: it breaks a rule.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == JSON:
        asked = converted(parse_json(await request.body()), DetectRequest)
        return Asked(asked.image, asked)
    if kind == FORM:
        return await _of_form(request)
    raise Problem(
        415, "content-type", f"the body is {shown(kind) or 'of no type'}; send {JSON}, or {FORM} with a file"
    )


def parse_json(body: bytes) -> Any:
    """Strict JSON: no key twice, no NaN, no endless numbers, no text that is none.

    Raises:
        Problem: it is not.
    """
    try:
        return json.loads(
            body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant, parse_float=_float
        )
    except (ValueError, RecursionError) as error:  # ValueError is also JSONDecodeError and UnicodeDecodeError
        if isinstance(error, json.JSONDecodeError):
            what = f"{error.msg} at character {error.pos}"
        elif isinstance(error, RecursionError):
            what = "objects and lists lie too deep in each other"
        elif isinstance(error, UnicodeDecodeError):
            what = f"byte {error.start} is not UTF-8"
        else:
            what = str(error)
        raise Problem(400, "json", f"the body is no JSON: {what}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {shown(twice)!r} is given twice")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shown(text)} is too large for a number")
    return value


def converted(values: Any, kind: type[Any]) -> Any:
    """Plain values as a struct.

    Raises:
        Problem: a key or value breaks a rule.
    """
    try:
        return msgspec.convert(values, kind)
    except RecursionError:
        raise Problem(422, "value", "objects and lists lie too deep in each other") from None
    except msgspec.ValidationError as error:
        fields = (("file",) if kind is FormFields else ()) + kind.__struct_fields__
        words = fault_in_words(str(error), fields)
        if kind is DetectRequest and isinstance(values, dict) and "file" in values:
            words += f"; {A_FILE}"
        raise Problem(422, "value", words) from None


async def _of_form(request: Request) -> Asked:
    try:
        form = await request.form(max_files=1, max_fields=MOST_CLASSES, max_part_size=64 * 1024)
    except (MultiPartException, HTTPException, FormParserError) as error:
        reason = getattr(error, "message", None) or getattr(error, "detail", error)
        raise Problem(400, "form", f"the form cannot be read: {shown(reason)}") from None
    try:
        items = form.multi_items()
        files = [value for name, value in items if isinstance(value, UploadFile) and name == "file"]
        others = [name for name, value in items if isinstance(value, UploadFile) and name != "file"]
        if others or len(files) != 1:
            raise Problem(
                422, "form", "a form has one file, in the field `file`, as in: curl -F file=@photo.jpg"
            )
        content = await files[0].read()
    finally:
        await form.close()
    fields = [(name, value) for name, value in items if isinstance(value, str)]
    return Asked(content, converted(_of_fields(fields), FormFields))


def _of_fields(fields: Sequence[tuple[str, str]]) -> Mapping[str, Any]:
    """Values of a form as JSON would have them; `classes` may be given several times."""
    found: dict[str, Any] = {}
    for name, text in fields:
        if name == "classes":
            found.setdefault("classes", []).append(text)
        elif name in found:
            raise Problem(422, "form", f"field {shown(name)!r} is given twice")
        else:
            found[name] = _plain(text) if name in ("threshold", "max_detections", "picture") else text
    return found


def _plain(text: str) -> Any:
    try:
        return parse_json(text.encode("utf-8", "replace"))
    except Problem:
        return text
