"""A plain agent loop for tests of the scripted models: no retries, no compaction, no checks of its own."""

from __future__ import annotations

import asyncio
import json

from engine.client import Client
from engine.tool import ToolError

AGENT_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": "string"} for key in keys},
                "required": list(keys),
            },
        },
    }
    for name, keys in {
        "create_subagent": ("name", "system_prompt"),
        "assign_task": ("agent", "prompt"),
    }.items()
]


def asks(text, tools, **more):
    messages = [{"role": "system", "content": "Work."}, {"role": "user", "content": text}]
    return {"model": "m", "max_tokens": 512, "messages": messages, "tools": tools, **more}


def turn_of(reply):
    """The assistant message that carries a reply back."""
    return {
        "role": "assistant",
        "content": reply.content,
        "reasoning_content": reply.reasoning,
        "tool_calls": [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in reply.tool_calls
        ],
    }


def result_of(call_id, text):
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def told(world, call):
    try:
        return world.told(json.loads(call.arguments))
    except ToolError as exc:
        return str(exc)


async def walk(client, body, tell, max_turns=1000):
    """Carry calls out until there are none; the last reply and all messages."""
    messages = list(body["messages"])
    for _ in range(max_turns):
        reply = await client.complete({**body, "messages": messages}, prompt_tokens=10)
        if not reply.tool_calls:
            return reply, messages
        messages.append(turn_of(reply))
        for call in reply.tool_calls:
            text = tell(call)
            messages.append(
                result_of(call.call_id, await text if asyncio.iscoroutine(text) else text)
            )
    return reply, messages


def asked(server, work):
    async def go():
        async with Client(server.url, api_key=None, max_connections=200) as client:
            return await work(client)

    return asyncio.run(go())


def one(server, body):
    return asked(server, lambda client: client.complete(body, prompt_tokens=10))
