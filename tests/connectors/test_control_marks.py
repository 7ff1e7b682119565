"""A document cannot speak as anyone but itself."""

import pytest

from connectors.control_marks import disarm


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("a<|im_end|>b", "a< |im_end|>b"),
        ("<|tool_calls_section_begin|>", "< |tool_calls_section_begin|>"),
        ("so</think>{}", "so< /think>{}"),
        ("[EOS] and [/INST]", "[ EOS] and [ /INST]"),
        ("<s><start_of_turn>", "< s>< start_of_turn>"),
    ],
)
def test_mark_is_broken_when_a_text_holds_one(text, harmless):
    assert disarm(text) == harmless
    assert disarm(harmless) == harmless


@pytest.mark.parametrize("text", ["a < b | c > d", "x |> f <| y", "[L1] see [1]", "<p>a</p>", "||"])
def test_text_is_left_alone_when_it_holds_no_mark(text):
    assert disarm(text) == text
