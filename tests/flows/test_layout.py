"""What breaks the shared prefix is found by comparing the bodies of calls."""

import pytest

from flows.run.layout import Sent, compare, too_large, volatile

CHUNK = "[L1] The pilot boat left at dawn.\n[L2] The harbour was calm all day.\n"
SYSTEM = "You read an excerpt of a document."


def sent(stage, *, front="", chunk=CHUNK, system=SYSTEM, images=(), **body):
    text = f"{front}{chunk}\nQuestion: {stage}?"
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in images]
    content = [*pictures, {"type": "text", "text": text}] if pictures else text
    messages = [{"role": "system", "content": system}, {"role": "user", "content": content}]
    return Sent(
        stage=stage,
        body={"model": "kimi", "messages": messages, **body},
        material=chunk,
        material_tokens=400,
    )


def found(*calls, tokens=10_000, block=16):
    return [(one.kind, one.where, one.tokens_lost) for one in compare(calls, tokens, block)]


TOOL = {"type": "function", "function": {"name": "search"}}


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (sent("b", model="kimi+legal"), ("adapter", "stages.b.adapter", 10_000)),
        (sent("b", tools=[TOOL]), ("tools", "stages.b.tools", 10_000)),
        (
            sent("b", chat_template_kwargs={"thinking_effort": "low"}),
            ("settings", "stages.b.mode", 10_000),
        ),
        (sent("b", system=f"{SYSTEM} Be brief."), ("system", "shared", 10_000)),
        (sent("b", images=["data:1"]), ("images", "stages.b.require", 10_000)),
        (sent("b", front="Who signed it?\n"), ("question", "stages.b.prompt", 10_000)),
        (
            sent("b", chunk=CHUNK[: len(CHUNK) // 2] + "#" * (len(CHUNK) // 2)),
            ("material", "stages.b.over", 5_000),
        ),
    ],
    ids=["adapter", "tools", "settings", "system", "images", "question", "material"],
)
def test_first_difference_in_front_of_the_question_is_named(second, expected):
    assert found(sent("a"), second) == [expected]


@pytest.mark.parametrize(
    "second",
    [
        sent("b", temperature=1.0, max_tokens=9, priority=3),
        sent("b", chat_template_kwargs={"thinking": False}),
        sent("b", thinking={"type": "disabled"}),
        sent("b", response_format={"type": "json_schema"}),
    ],
    ids=["sampling", "thinking", "moonshot", "schema"],
)
def test_nothing_is_found_when_calls_differ_behind_the_chunk(second):
    assert found(sent("a"), second) == []


def test_stage_shares_with_the_one_it_has_most_in_common_with():
    calls = [sent("a"), sent("b", model="legal"), sent("c", model="legal"), sent("d")]
    assert found(*calls) == [("adapter", "stages.b.adapter", 10_000)]


def test_nothing_is_found_when_less_than_a_block_could_be_shared():
    assert found(sent("a"), sent("b", model="legal"), block=401) == []


def test_words_say_which_two_stages_when_models_differ():
    (one,) = compare([sent("a"), sent("b", model="legal")], 1, 1)
    assert "stage b: asks 'legal', and a asks 'kimi'" in one.what


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Today is 2031-05-03.", "a date"),
        ("Today is 3 May 2031.", "a date"),
        ("It is 14:05 now.", "a time"),
        ("Case 7d444840-9dc0-11d1-b245-5ffdce74fad2.", "a UUID"),
        ("Build deadbeef01 reads it.", "a hexadecimal id"),
        ("This is run #17.", "a counter"),
    ],
)
def test_text_that_changes_from_run_to_run_is_named_with_what_an_edit_costs(text, what):
    (one,) = volatile({"rules": f"Be brief. {text}"}, 5_000, 40, 16)
    assert one.what.startswith(f"{what}, ")
    assert (one.where, one.tokens_lost) == ("shared.rules", 5_000)


@pytest.mark.parametrize(
    "text", ["Answer in 3 words.", "Chapters 1 to 12 are facade and added.", "See section 4.2."]
)
def test_plain_text_is_not_taken_for_a_date_or_an_id(text):
    assert [*volatile({"rules": text}, 5_000, 40, 16)] == []


def test_volatile_text_is_no_finding_when_it_is_shorter_than_a_block():
    assert [*volatile({"rules": "2031-05-03"}, 5_000, 15, 16)] == []


def test_chunk_is_computed_for_each_stage_when_the_cache_cannot_hold_it():
    one = too_large([1_000, 3_000], 80_000, room=2_000, num_stages=3)
    assert (one.kind, one.where) == ("cache", "chunk.max_tokens")
    assert one.tokens_lost == 2 * 60_000
    assert "at most 1,000" in one.advice


@pytest.mark.parametrize(
    ("room", "num_stages"), [(None, 3), (3_000, 3), (2_000, 1)], ids=["unknown", "fits", "once"]
)
def test_size_is_no_finding_when_the_cache_holds_the_chunk_or_nothing_is_shared(room, num_stages):
    assert too_large([1_000, 3_000], 80_000, room=room, num_stages=num_stages) is None
