"""The tool that every agent has: paging through its own long results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.modes.agent.conversation import Conversation
from engine.tool import ToolSpec

READ_RESULT = ToolSpec(
    name="read_result",
    description="Reads on in the result of one of your earlier calls, where it was too long to be shown.",
    parameters={
        "type": "object",
        "properties": {
            "handle": {"type": "string", "description": "as shown at the end of the result, `R3`"},
            "offset": {"type": "integer", "minimum": 0, "description": "first character"},
        },
        "required": ["handle", "offset"],
        "additionalProperties": False,
    },
)


def read_result(
    conversation: Conversation, arguments: Mapping[str, Any], max_chars: int
) -> tuple[str, str | None]:
    """Return a part of an earlier result, or what is wrong, and the class of what is wrong."""
    handle, offset = str(arguments["handle"]), int(arguments["offset"])
    text = conversation.result(handle)
    if text is None:
        return f"there is no result {handle!r}", "tool_error"
    # Less than is shown of a result, so that this one needs no handle of its own.
    part = text[offset : offset + max_chars - 100]
    end = offset + len(part)
    if end >= len(text):
        return f"{part}\n[the end]", None
    return f"{part}\n[to character {end:,} of {len(text):,}; go on with offset {end}]", None
