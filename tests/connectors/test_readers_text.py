"""Text and Markdown: sentences whose offsets hold."""

from __future__ import annotations

import pytest

from connectors.errors import DocumentRejected
from connectors.readers import ReaderOptions, text
from connectors.readers.sentences import split_sentences

MARKDOWN = """# The  log

The ship came in at 6 p.m. on Monday. It left
on Tuesday!

- first item. It has two sentences
- second item

| a | b |
|---|---|
| 1 | 2 |

## Closed ##
End
"""


def _read(tmp_path, data: bytes, media_type: str = "text/markdown"):
    path = tmp_path / "f"
    path.write_bytes(data)
    return text.read(path, media_type, tmp_path, ReaderOptions())


def test_markdown_is_cut_into_headings_sentences_and_rows(tmp_path):
    segments = _read(tmp_path, MARKDOWN.encode()).segments
    assert [(s.kind, s.text) for s in segments] == [
        ("heading", "The log"),
        ("paragraph", "The ship came in at 6 p.m. on Monday."),
        ("paragraph", "It left on Tuesday!"),
        ("paragraph", "- first item."),
        ("paragraph", "It has two sentences"),
        ("paragraph", "- second item"),
        ("table", "| a | b |"),
        ("table", "| 1 | 2 |"),
        ("heading", "Closed"),
        ("paragraph", "End"),
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_offsets_find_the_text_again(tmp_path, encoding, newline):
    source = MARKDOWN.replace("\n", newline).replace("log", "lög")
    for segment in _read(tmp_path, source.encode(encoding)).segments:
        found = source[segment.span.char_start : segment.span.char_end]
        assert " ".join(found.split()) == segment.text


@pytest.mark.parametrize(
    "line",
    [
        "2026-03-02T06:06:13Z pump-2 ERROR stop. Emergency.",
        "[2026-03-02 06:06] stop",
        "2026/03/02 06:06:13 stop",
        "Mar  2 06:06:13 host kernel: stop",
        '10.0.0.7 - - [02/Mar/2026:06:06:13 +0000] "GET / HTTP/1.1" 200 12',
        "06:06:13 stop",
        "INFO  [2026-03-02 06:06:13] stop",
        "E0302 06:06:13.000001 1 main.go:7] stop",
        '{"time": 1772431573, "level": "error"}',
    ],
)
def test_each_entry_is_one_segment_when_the_text_is_a_log(tmp_path, line):
    trace = "  - at main\n  at start"
    data = f"{line}\n{trace}\n{line}\n".encode()
    found = [segment.text for segment in _read(tmp_path, data, "text/plain").segments]
    assert found == [f"{line} - at main at start".replace("  ", " "), line.replace("  ", " ")]


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        (
            "We left. It opened the session\nshortly after at 10:15:30 and closed. They rose.",
            [
                "We left.",
                "It opened the session shortly after at 10:15:30 and closed.",
                "They rose.",
            ],
        ),
        (
            "Date: 2026-03-02 14:00\n1. Ann opened.\n2. Bob reported. They rose.",
            ["Date: 2026-03-02 14:00", "1. Ann opened.", "2. Bob reported.", "They rose."],
        ),
        (
            "Sent: 2026-03-02 14:05\nDear Ms Tamm,\nthank you. It came.",
            ["Sent: 2026-03-02 14:05 Dear Ms Tamm, thank you.", "It came."],
        ),
        (
            "10:20:30 is the mix. Then water.\nRepeat it weekly. Stop in May.\nThank you.",
            [
                "10:20:30 is the mix.",
                "Then water.",
                "Repeat it weekly.",
                "Stop in May.",
                "Thank you.",
            ],
        ),
    ],
)
def test_prose_stays_prose_when_it_names_times(tmp_path, text, segments):
    found = _read(tmp_path, text.encode(), "text/plain").segments
    assert [segment.text for segment in found] == segments


def test_markdown_is_no_log_when_it_begins_with_times(tmp_path):
    text = b"10:00:00 Ann opened. She spoke.\n\n10:05:00 Bob spoke. They rose.\n"
    assert len(_read(tmp_path, text).segments) == 4


def test_long_entry_is_cut_into_sentences_when_it_is_a_transcript(tmp_path):
    data = ("10:02:03 Ann: " + "It was a long day. " * 60 + "\n10:09:00 Bob: Yes.").encode()
    found = [segment.text for segment in _read(tmp_path, data, "text/plain").segments]
    assert len(found) == 61


def test_headings_are_plain_lines_when_the_file_is_plain_text(tmp_path):
    segments = _read(tmp_path, b"# 1 is not a heading", "text/plain").segments
    assert [(s.kind, s.text) for s in segments] == [("paragraph", "# 1 is not a heading")]


def test_text_is_rejected_as_empty_when_it_is_blank(tmp_path):
    with pytest.raises(DocumentRejected) as caught:
        _read(tmp_path, b" \n\t\n")
    assert caught.value.reason == "empty"


@pytest.mark.parametrize(
    ("paragraph", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("See Fig. 3 and Dr. No. He left.", ["See Fig. 3 and Dr. No. He left."]),
        (
            "J. Smith paid 3.50 in cash. Then he left.",
            ["J. Smith paid 3.50 in cash.", "Then he left."],
        ),
        ('He said "stop." Then it was quiet.', ['He said "stop."', "Then it was quiet."]),
        ("1. Take it. 2. Leave it.", ["1. Take it.", "2. Leave it."]),
        ("これは文です。次の文です。", ["これは文です。", "次の文です。"]),
        ("no end at all", ["no end at all"]),
    ],
)
def test_sentences_end_where_a_reader_would_end_them(paragraph, sentences):
    assert [paragraph[a:b] for a, b in split_sentences(paragraph)] == sentences


def test_long_sentence_is_cut_between_words_and_nothing_is_lost():
    paragraph = "word " * 500
    pieces = [paragraph[a:b] for a, b in split_sentences(paragraph, 600)]
    assert max(map(len, pieces)) <= 600
    assert " ".join(pieces) == paragraph.strip()


def test_text_without_spaces_is_cut_too():
    pieces = list(split_sentences("x" * 1500, 600))
    assert pieces == [(0, 600), (600, 1200), (1200, 1500)]
