"""What a scripted model is: a reply that follows from the body it was sent, and how a body is read.

Nothing here remembers anything: whatever a script knows stands in the messages of this one body.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.fakes.engine_server import answer

Body = Mapping[str, Any]
Row = Mapping[str, Any]

_SUMMARISE = re.compile(r"summar|compact|condense|hand.?over", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ScriptedCall:
    """One call of a tool, as a model that makes no mistakes writes it."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedReply:
    """What a script answers."""

    content: str = ""
    reasoning: str = "Let me see what there is so far."
    """Left out where the body switches thinking off."""
    calls: Sequence[ScriptedCall] = ()
    finish_reason: str | None = None
    """None: `tool_calls` with calls, else `stop`."""
    usage: Mapping[str, Any] | None = None
    """None: counted from the body and the answer."""


class Script(Protocol):
    """A model."""

    def reply(self, body: Body) -> ScriptedReply:
        """Return the answer; the same for the same body."""


@dataclass(frozen=True, slots=True)
class MadeCall:
    """A call in the history."""

    call_id: str
    name: str
    arguments: Mapping[str, Any]
    """Empty where they are no JSON object."""


class Transcript:
    """The messages of one body, as a script reads them."""

    def __init__(self, body: Body) -> None:
        self.body = body
        self.messages: Sequence[Mapping[str, Any]] = body["messages"]
        self.calls = [
            _made(call)
            for message in self.messages
            if message["role"] == "assistant"
            for call in message.get("tool_calls") or ()
        ]
        self.answered = list(_answered(self.messages))
        """Each call that has a result, with the text of it."""
        told = {"tool", "user"} if self.is_summary else {"tool"}
        self.results = [text_of(m) for m in self.messages if m["role"] in told]
        """What the tools gave; a summary may be asked of a history that stands in a user message."""
        self.notes = "\n".join(text_of(m) for m in self.messages if m["role"] != "tool")
        """All that was said outside tool messages: instructions, question, summaries."""
        self.asked = "\n".join(text_of(m) for m in self.messages if m["role"] in {"user", "system"})
        """What the client said."""

    @property
    def tools(self) -> frozenset[str]:
        """Return the names that may be called now; none with tool_choice none."""
        if self.body.get("tool_choice") == "none":
            return frozenset()
        return frozenset(tool["function"]["name"] for tool in self.body.get("tools") or ())

    @property
    def is_summary(self) -> bool:
        """Tell whether the last user message asks for a summary, and no tool may be called."""
        users = [text_of(m) for m in self.messages if m["role"] == "user"]
        return not self.tools and bool(users) and _SUMMARISE.search(users[-1]) is not None

    def answer(
        self, text: str, facts: Mapping[str, Any] | None = None, rows: Sequence[Row] = ()
    ) -> ScriptedReply:
        """Return a last answer: by the response_format, as JSON with tool_choice none, else text."""
        facts = facts or {}
        schema = schema_of(self.body)
        if schema is not None:
            content = json.dumps(_Filling(schema, text, facts, rows).value(schema))
        elif self.body.get("tool_choice") == "none" and not self.is_summary:
            content = json.dumps({**facts, **({"rows": list(rows)} if rows else {})})
        else:
            content = text
        return ScriptedReply(content=content, reasoning="That is all I need.")


def text_of(message: Mapping[str, Any]) -> str:
    """Return a message's text, with the text parts of a list joined."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(p.get("text", "")) for p in content if isinstance(p, Mapping))
    return content if isinstance(content, str) else ""


def is_thinking(body: Body) -> bool:
    """Tell whether the model thinks: unless the body switches it off, at vLLM or at Moonshot."""
    template = body.get("chat_template_kwargs") or {}
    thinking = body.get("thinking") or {}
    return template.get("thinking") is not False and thinking.get("type") != "disabled"


def parameters_of(body: Body, name: str) -> Mapping[str, Any]:
    """Return the JSON Schema of a declared tool; an empty one where it is not declared."""
    for tool in body.get("tools") or ():
        if tool["function"]["name"] == name:
            found: Mapping[str, Any] = tool["function"].get("parameters") or {}
            return found
    return {}


def schema_of(body: Body) -> Mapping[str, Any] | None:
    """Return the JSON Schema that the answer must follow; None where there is none."""
    told = body.get("response_format") or {}
    if told.get("type") == "json_object":
        return {"type": "object"}
    found: Mapping[str, Any] | None = (told.get("json_schema") or {}).get("schema")
    return found


def object_of(text: object) -> Mapping[str, Any] | None:
    """Return the JSON object that the text is; None where it is none."""
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _answered(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[MadeCall, str]]:
    """Yield calls with their results; an id means the latest call of that id."""
    latest: dict[str, MadeCall] = {}
    for message in messages:
        if message["role"] == "assistant":
            latest |= {made.call_id: made for made in map(_made, message.get("tool_calls") or ())}
        elif message["role"] == "tool" and message.get("tool_call_id") in latest:
            yield latest[message["tool_call_id"]], text_of(message)


def _made(call: Mapping[str, Any]) -> MadeCall:
    function = call.get("function") or {}
    return MadeCall(
        call_id=str(call.get("id")),
        name=str(function.get("name")),
        arguments=object_of(function.get("arguments")) or {},
    )


@dataclass(slots=True)
class _Filling:
    """Fills a schema with what a script found: by name first, then by type."""

    root: Mapping[str, Any]
    text: str
    facts: Mapping[str, Any]
    rows: Sequence[Row]
    depth: int = field(default=0)

    def value(self, schema: Mapping[str, Any], name: str = "") -> Any:
        schema = self._plain(schema)
        kind = schema.get("type")
        if name in self.facts and _fits(self.facts[name], kind):
            return self.facts[name]
        if kind == "array":
            return self._list(schema.get("items") or {})
        if kind == "object":
            if "properties" not in schema:
                return dict(self.facts)
            return {key: self.value(sub, key) for key, sub in schema["properties"].items()}
        return self._plain_value(schema, kind)

    def _plain_value(self, schema: Mapping[str, Any], kind: object) -> Any:
        if "const" in schema:
            return schema["const"]
        if "enum" in schema or "pattern" in schema:
            return answer(schema, self.text)
        if kind in {"string", None}:
            return self.text
        return next((v for v in self.facts.values() if _fits(v, kind)), answer(schema, self.text))

    def _list(self, items: Mapping[str, Any]) -> list[Any]:
        if self.depth:
            return []
        plain = self._plain(items)
        inner = [
            _Filling(self.root, " ".join(f"{k}={v}" for k, v in row.items()), row, (), 1)
            for row in self.rows
        ]
        return [filling.value(plain) for filling in inner]

    def _plain(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the schema with its reference followed and its null left out."""
        if "$ref" in schema:
            name = schema["$ref"].rsplit("/", 1)[-1]
            return self._plain(self.root.get("$defs", {})[name])
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self._plain(next(s for s in schema[key] if s.get("type") != "null"))
        kind = schema.get("type")
        if isinstance(kind, list):
            return {**schema, "type": next(k for k in kind if k != "null")}
        return schema


def _fits(value: object, kind: object) -> bool:
    kinds: dict[object, tuple[type, ...]] = {
        "integer": (int,),
        "number": (int, float),
        "string": (str,),
        "boolean": (bool,),
    }
    return isinstance(value, kinds.get(kind, ())) and isinstance(value, bool) == (kind == "boolean")
