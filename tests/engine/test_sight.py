import pytest

from engine.modes.sight import NOTES, look
from engine.reply import Reply
from engine.request import Usage

JSON = '{"topic": "a"}'


def seen(asked, content="", reasoning="", finish_reason="stop", thought=None):
    usage = Usage(prompt_tokens=9, completion_tokens=9, reasoning_tokens=thought)
    reply = Reply(content=content, reasoning=reasoning, finish_reason=finish_reason, usage=usage)
    return look(reply, asked)


@pytest.mark.parametrize(
    ("asked", "reply", "mode", "answer", "notes"),
    [
        ("instant", {"content": JSON}, "instant", JSON, ()),
        ("thinking", {"content": JSON, "reasoning": "so"}, "thinking", JSON, ()),
        # vllm#36207, #37397: no reasoning parser.
        (
            "thinking",
            {"content": f"<think>so</think>{JSON}"},
            "thinking",
            JSON,
            ("leaked_thinking",),
        ),
        ("thinking", {"content": f"so</think>{JSON}"}, "thinking", JSON, ("leaked_thinking",)),
        ("instant", {"content": f"<think></think>{JSON}"}, "instant", JSON, ("leaked_tag",)),
        (
            "instant",
            {"content": f"so</think>{JSON}"},
            "thinking",
            JSON,
            ("leaked_thinking", "thought_in_instant"),
        ),
        (
            "thinking",
            {"content": "<think>and so", "finish_reason": "length"},
            "thinking",
            "",
            ("unfinished_thinking",),
        ),
        # A host that ignores the switch, or one that does not think.
        (
            "instant",
            {"content": JSON, "reasoning": "so"},
            "thinking",
            JSON,
            ("thought_in_instant",),
        ),
        ("thinking", {"content": JSON}, "instant", JSON, ("no_thinking",)),
        ("thinking", {"content": JSON, "thought": 5}, "thinking", JSON, ("hidden_thinking",)),
        # vllm#47027: the whole answer is taken for reasoning.
        ("instant", {"reasoning": JSON}, "instant", JSON, ("answer_in_reasoning",)),
        (
            "thinking",
            {"reasoning": f"so it is {JSON}"},
            "thinking",
            JSON,
            ("answer_in_reasoning",),
        ),
        # MoonshotAI/Kimi-K2#128: nothing after the thinking.
        ("thinking", {"reasoning": "so"}, "thinking", "", ("empty",)),
        ("instant", {}, None, "", ("empty",)),
        # vllm#42426.
        ("instant", {"content": "!" * 40}, None, "", ("degenerate", "empty")),
        # vllm#37184: marks of a tool call in the content.
        (
            "instant",
            {"content": "I search.<|tool_calls_section_begin|><|tool_call_begin|>f"},
            "instant",
            "I search.",
            ("leaked_tool_call",),
        ),
        # Marks inside the strings of an answer are the document's own text.
        ("instant", {"content": '{"quote": "a </think> b"}'}, "instant", None, ()),
    ],
)
def test_mode_and_answer_are_sorted_out_when_hosts_differ(asked, reply, mode, answer, notes):
    sight = seen(asked, **reply)
    expected = reply["content"] if answer is None else answer
    assert (sight.mode, sight.answer, sight.notes) == (mode, expected, notes)
    assert set(notes) <= set(NOTES)


def test_budget_is_to_blame_when_thinking_leaves_no_answer():
    cut = seen("thinking", reasoning="so", finish_reason="length")
    assert cut.ate_budget(10)
    assert not cut.is_empty
    assert not seen("thinking", content='{"to', reasoning="so", finish_reason="length").ate_budget(
        10
    )
    long = seen("thinking", content='{"to', reasoning="so", finish_reason="length", thought=9)
    assert long.ate_budget(5)
