"""The shape of OpenAI's chat completions: an image as a part of a message, and detections as the answer's text.

The text beside the image is not read: a detector has one question.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from zoo.serving.given import Asked, Options, converted, parse_json
from zoo.serving.problems import Problem

_OURS = tuple(name for name in Options.__struct_fields__)


class Address(msgspec.Struct, frozen=True):
    """Where the image is: an http(s) address or a data URI."""

    url: str


class Part(msgspec.Struct, frozen=True):
    """A part of a message."""

    type: str
    image_url: Address | None = None


class Message(msgspec.Struct, frozen=True):
    """Of the user, the system or the assistant."""

    role: str
    content: str | list[Part] | None = None


class ChatRequest(Options, kw_only=True, frozen=True):
    """What is read of a request; temperature and the like mean nothing to a detector."""

    messages: list[Message]
    stream: bool = False
    n: int = 1


def read_chat(body: bytes) -> tuple[Asked, bool]:
    """The image, the options, and whether the answer is streamed.

    Raises:
        Problem: it has no image, or several.
    """
    chat: ChatRequest = converted(parse_json(body), ChatRequest)
    if chat.n != 1:
        raise Problem(400, "n", f"n is {chat.n}; a detector has one answer")
    asked = [message.content for message in chat.messages if message.role == "user"]
    parts = asked[-1] if asked and isinstance(asked[-1], list) else []
    images = [part.image_url.url for part in parts if part.type == "image_url" and part.image_url is not None]
    if len(images) != 1:
        raise Problem(
            400,
            "image",
            f"the last message of the user has {len(images)} images and must have one, a part "
            '{"type": "image_url", "image_url": {"url": "https://... or data:image/jpeg;base64,..."}}',
        )
    return Asked(images[0], chat), chat.stream


def completion(document: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The whole answer at once."""
    message = {"role": "assistant", "content": json.dumps(document, ensure_ascii=False), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    return _head("chat.completion", model) | {"choices": [choice], "usage": usage}


def events(document: Mapping[str, Any], model: str) -> Iterator[bytes]:
    """The same as server-sent events; all detections are known at once, so that the content is one of them."""
    head = _head("chat.completion.chunk", model)
    deltas: list[tuple[dict[str, Any], str | None]] = [
        ({"role": "assistant", "content": ""}, None),
        ({"content": json.dumps(document, ensure_ascii=False)}, None),
        ({}, "stop"),
    ]
    for delta, finish in deltas:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        yield b"data: " + msgspec.json.encode(head | {"choices": [choice]}) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _head(kind: str, model: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model,
    }  # fmt: skip
