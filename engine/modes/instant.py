"""Instant: one question, one short answer, no thinking; one repair where the answer is not valid."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import jsonschema

from engine.client import Message, Reply
from engine.endpoint import Endpoint
from engine.modes.mode import Send, Verdict
from engine.prompt import repair_text, user_text
from engine.request import Request, add_usage

_THINK_END = "</think>"


class Instant:
    """The mode for extraction, classification and look-ups."""

    async def carry_out(self, request: Request, endpoint: Endpoint, send: Send) -> Verdict:
        """Ask, check the answer against the schema, and re-ask once with the error."""
        messages = first_messages(request, endpoint)
        reply = await send(_body(request, endpoint, messages))
        output, error_class, error = _judge(request, reply)
        usage = reply.usage
        if error is not None and error_class != "length":
            again = [
                *messages,
                {"role": "assistant", "content": reply.content},
                {"role": "user", "content": repair_text(error)},
            ]
            reply = await send(_body(request, endpoint, again))
            output, error_class, error = _judge(request, reply)
            usage = add_usage(usage, reply.usage)
        return Verdict(
            outcome="succeeded" if error is None else "invalid_output",
            output=output,
            error_class=error_class,
            error=error,
            mode_observed="thinking" if _thought(reply) else "instant",
            finish_reason=reply.finish_reason or None,
            usage=usage,
        )


def first_messages(request: Request, endpoint: Endpoint) -> list[Message]:
    """Return the conversation's start: instructions, then images and material, then the question."""
    enforced = endpoint.profile.capabilities.structured_output
    text = user_text(request.material, request.question, None if enforced else request.schema)
    content: object = text
    if request.images:
        images = [
            {"type": "image_url", "image_url": {"url": _data_url(path.read_bytes())}}
            for path in request.images
        ]
        content = [*images, {"type": "text", "text": text}]
    return [
        {"role": "system", "content": request.instructions},
        {"role": "user", "content": content},
    ]


def _data_url(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _body(request: Request, endpoint: Endpoint, messages: list[Message]) -> dict[str, Any]:
    profile = endpoint.profile
    settings = profile.modes[request.mode]
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": messages,
        "max_tokens": request.max_output_tokens,
        **settings.sampling,
        **settings.wire,
    }
    if profile.capabilities.structured_output:
        schema = {"name": request.stage, "schema": dict(request.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _thought(reply: Reply) -> bool:
    return bool(reply.reasoning.strip()) or _THINK_END in reply.content


def _judge(
    request: Request, reply: Reply
) -> tuple[Mapping[str, Any] | None, str | None, str | None]:
    """Return the answer, or the class and text of what is wrong with it."""
    # A host without a reasoning parser leaves the thinking in front of the answer.
    text = reply.content.rsplit(_THINK_END, maxsplit=1)[-1].strip()
    if reply.finish_reason == "length":
        limit = request.max_output_tokens
        return None, "length", f"the answer was cut at max_output_tokens = {limit}; raise it"
    if not text:
        return None, "empty", "the answer is empty"
    try:
        output = json.loads(text)
        jsonschema.validate(output, dict(request.schema))
    except json.JSONDecodeError as exc:
        return None, "not_json", f"it is not JSON: {exc}"
    except jsonschema.ValidationError as exc:
        return None, "schema", f"{exc.json_path}: {exc.message}"[:300]
    return output, None, None
