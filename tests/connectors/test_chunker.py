import itertools
from dataclasses import replace
from random import Random

import pytest

from connectors.chunker import ChunkRule, chunk_document, render
from connectors.document import Content, Media, Segment, Span


class WordCounter:
    """Counts words; joins over line ends like a tokenizer that merges, to keep sums inexact."""

    def __init__(self, merged=0):
        self.merged = merged
        self.calls = 0

    def count(self, text):
        self.calls += 1
        return len(text.split()) + self.merged * text.count("\n")

    weighs_exactly = True

    def weigh(self, texts):
        return [len(text.split()) for text in texts]


def rule(max_tokens, **kwargs):
    return ChunkRule(max_tokens=max_tokens, counter=WordCounter(), name="words", **kwargs)


def line(text, **span):
    return Segment(kind="paragraph", text=text, span=Span(**(span or {"page": 1})))


def content(*segments, media=()):
    return Content(
        media_type="text/plain", reader="text/1", units=(), segments=segments, media=media
    )


def test_chunks_hold_every_segment_once_when_text_is_long():
    segments = [line(f"word{i} " * (1 + i % 7)) for i in range(200)]
    chunks = chunk_document("doc", content(*segments), rule(64))
    texts = [segment.text for chunk in chunks for segment in chunk.segments]
    assert texts == [segment.text for segment in segments]
    assert max(chunk.num_tokens for chunk in chunks) <= 64
    assert [chunk.ordinal for chunk in chunks] == list(range(len(chunks)))


def test_chunk_is_full_when_segments_fit_exactly():
    # Each line is a label and three words: four tokens. Sixteen lines are exactly 64.
    chunks = chunk_document("doc", content(*[line("a b c")] * 17), rule(64))
    assert [chunk.num_tokens for chunk in chunks] == [64, 4]


def test_count_of_the_finished_chunk_decides_when_sums_undercount():
    merging = ChunkRule(max_tokens=64, counter=WordCounter(merged=1), name="merging")
    chunks = chunk_document("doc", content(*[line("a b c")] * 40), merging)
    assert max(chunk.num_tokens for chunk in chunks) <= 64
    assert sum(len(chunk.segments) for chunk in chunks) == 40


def test_num_tokens_is_the_count_of_the_text_as_sent_when_rendered():
    counter = WordCounter()
    for chunk in chunk_document("doc", content(*[line("a b c d")] * 50), rule(64)):
        assert counter.count(render(chunk.segments)) == chunk.num_tokens


def test_long_segment_is_cut_at_words_with_offsets_when_it_exceeds_the_budget():
    text = " ".join(f"w{i}" for i in range(500))
    segment = line(text, char_start=100, char_end=100 + len(text))
    chunks = chunk_document("doc", content(segment), rule(64))
    pieces = [piece for chunk in chunks for piece in chunk.segments]
    assert " ".join(piece.text for piece in pieces) == text
    for piece in pieces:
        inside = text[piece.span.char_start - 100 : piece.span.char_end - 100]
        assert inside.strip() == piece.text
    assert max(chunk.num_tokens for chunk in chunks) <= 64


def test_header_row_is_repeated_when_a_sheet_spans_chunks():
    header = Segment(
        kind="heading", text="sheet Sales A B C", span=Span(sheet="Sales", cells="A1:C1")
    )
    rows = [
        Segment(kind="table", text=f"{i},x,y z", span=Span(sheet="Sales", cells=f"A{i}:C{i}"))
        for i in range(2, 100)
    ]
    chunks = chunk_document("doc", content(header, *rows), rule(64))
    assert len(chunks) > 1
    assert all(chunk.segments[0].text == header.text for chunk in chunks)
    assert sum(len(chunk.segments) - 1 for chunk in chunks) == len(rows)


IMAGE = Segment(kind="image", text="", span=Span(page=1), tier="none", media="p1.jpg")
READ_OFF = Segment(
    kind="paragraph", text="scanned words", span=Span(page=1), tier="ocr", media="p1.jpg"
)
MUTE = Segment(kind="image", text="", span=Span(page=2), tier="none", media="p2.jpg")
PICTURES = (
    Media(name="p1.jpg", width_px=280, height_px=280),
    Media(name="p2.jpg", width_px=28, height_px=28),
)


def test_image_gives_way_to_its_text_when_the_model_reads_text_only():
    chunks = chunk_document("doc", content(IMAGE, READ_OFF, MUTE, media=PICTURES), rule(64))
    assert [[s.text for s in chunk.segments] for chunk in chunks] == [["scanned words"], [""]]
    assert chunks[1].segments[0].media == "p2.jpg"


def test_text_gives_way_to_its_image_when_the_model_takes_images():
    sees = rule(256, image_tokens=lambda media: media.width_px * media.height_px // 784)
    chunks = chunk_document("doc", content(IMAGE, READ_OFF, MUTE, media=PICTURES), sees)
    assert [[s.kind for s in chunk.segments] for chunk in chunks] == [["image", "image"]]
    # Two images, and two lines of three words: the label and `(page N)`.
    assert chunks[0].num_tokens == 100 + 1 + 6


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (Span(t0=12.5, t1=14.0), "(frame at 0:12.5)"),
        (Span(t0=59.96, t1=60.0), "(frame at 1:00.0)"),
        (Span(t0=3725.04, t1=3730.0), "(frame at 62:05.0)"),
        (Span(t0=-0.04, t1=1.0), "(frame at 0:00.0)"),
        (Span(t0=-1.5, t1=1.0), "(frame at -0:01.5)"),
        (Span(page=3), "(page 3)"),
        (Span(), "(image)"),
    ],
)
def test_image_line_says_where_the_image_is_from(span, words):
    image = Segment(kind="image", text="", span=span, tier="none", media="p1.jpg", label="L1")
    assert render([image]) == f"[L1] {words}\n"


def test_image_line_is_counted_as_it_is_sent_when_the_budget_is_exact():
    frames = [
        Segment(kind="image", text="", span=Span(t0=t, t1=t + 1), tier="none", media="p2.jpg")
        for t in range(8)
    ]
    # A label, three words and one token of image each: four frames are exactly 20.
    sees = rule(20, image_tokens=lambda media: 1)
    chunks = chunk_document("doc", content(*frames, media=PICTURES), sees)
    assert [chunk.num_tokens for chunk in chunks] == [20, 20]


@pytest.mark.parametrize("change", ["document", "reader", "limit"])
def test_chunk_key_changes_when_what_decides_the_cut_changes(change):
    base = chunk_document("doc", content(line("a b c")), rule(64))[0].chunk_key
    again = chunk_document("doc", content(line("a b c")), rule(64))[0].chunk_key
    document = "other" if change == "document" else "doc"
    what = content(line("a b c"))
    if change == "reader":
        what = replace(what, reader="text/2")
    other = chunk_document(document, what, rule(65 if change == "limit" else 64))[0].chunk_key
    assert base == again
    assert base != other


def test_no_chunk_is_made_when_there_is_no_segment():
    assert chunk_document("doc", content(), rule(64)) == []


def test_each_chunk_is_counted_once_when_weights_are_exact():
    counter = WordCounter()
    long = ChunkRule(max_tokens=4000, counter=counter, name="words")
    lines = [line(f"a b c d e f {number}") for number in range(5000)]
    chunks = chunk_document("doc", content(*lines), long)
    assert len(chunks) > 9
    assert counter.calls == len(chunks)


def heading(text, **span):
    return Segment(kind="heading", text=text, span=Span(**(span or {"page": 1})))


def test_chunk_ends_in_front_of_a_heading_when_it_is_nearly_full():
    # A line is a label and three words: four tokens. Sixteen lines are 64.
    segments = [*[line("a b c")] * 13, heading("d e f"), *[line("g h i")] * 10]
    first, second = chunk_document("doc", content(*segments), rule(64))
    assert (len(first.segments), second.segments[0].text) == (13, "d e f")


def test_chunk_is_filled_when_the_last_heading_is_far_from_its_end():
    segments = [*[line("a b c")] * 5, heading("d e f"), *[line("g h i")] * 20]
    first, *_ = chunk_document("doc", content(*segments), rule(64))
    assert len(first.segments) == 16


def test_no_heading_stands_last_when_its_text_is_in_the_next_chunk():
    segments = [*[line("a b c")] * 15, heading("d e f"), *[line("g h i")] * 9]
    first, second = chunk_document("doc", content(*segments), rule(64))
    assert first.segments[-1].kind == "paragraph"
    assert second.segments[0].text == "d e f"


def test_heading_is_repeated_when_its_text_goes_on():
    segments = [heading("d e f"), *[line("g h i")] * 40]
    chunks = chunk_document("doc", content(*segments), rule(64))
    assert [chunk.segments[0].text for chunk in chunks] == ["d e f"] * 3
    assert all(chunk.num_tokens <= 64 for chunk in chunks)


def test_heading_is_not_repeated_when_it_would_take_much_of_the_chunk():
    segments = [heading("long " * 12), *[line("g h i")] * 40]
    chunks = chunk_document("doc", content(*segments), rule(64))
    assert [chunk.segments[0].kind for chunk in chunks][1:] == ["paragraph"] * (len(chunks) - 1)


def test_end_is_repeated_when_an_overlap_is_asked_for():
    segments = [line(f"w{number} b c") for number in range(40)]
    chunks = chunk_document("doc", content(*segments), rule(64, overlap_tokens=8))
    for before, after in itertools.pairwise(chunks):
        assert [s.text for s in after.segments[:2]] == [s.text for s in before.segments[-2:]]
    assert max(chunk.num_tokens for chunk in chunks) <= 64
    plain = chunk_document("doc", content(*segments), rule(64))
    assert {c.chunk_key for c in chunks} & {c.chunk_key for c in plain} == set()


def test_rest_of_a_segment_is_marked_when_it_was_cut():
    text = " ".join(f"w{number}" for number in range(200))
    chunks = chunk_document("doc", content(line(text)), rule(64))
    pieces = [segment for chunk in chunks for segment in chunk.segments]
    assert [piece.is_rest for piece in pieces] == [False] + [True] * (len(pieces) - 1)
    assert "] (goes on) w" in render(chunks[1].segments)


def random_content(random):
    """Return text, tables and pages in any order, long and short, with numbers that tell them apart."""
    segments, number = [], 0
    for _ in range(random.randint(1, 60)):
        shape = random.choice(["paragraph", "heading", "rows", "giant"])
        if shape == "rows":
            sheet = f"S{number}"
            segments.append(heading(f"{sheet} columns a b", sheet=sheet, cells="A1:B1"))
            for row in range(2, random.randint(3, 30)):
                number += 1
                span = Span(sheet=sheet, cells=f"A{row}:B{row}")
                segments.append(Segment(kind="table", text=f"{row},n{number}", span=span))
            continue
        number += 1
        words = {"paragraph": random.randint(1, 25), "heading": 3, "giant": random.randint(60, 300)}
        text = " ".join(f"n{number}.{word}" for word in range(words[shape]))
        kind = "heading" if shape == "heading" else "paragraph"
        span = Span(page=number, char_start=0, char_end=len(text))
        segments.append(Segment(kind=kind, text=text, span=span))
    return content(*segments)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("merged", [0, 1])
def test_every_word_is_shown_once_within_the_budget_when_content_is_anything(seed, merged):
    random = Random(seed)
    what, limit = random_content(random), random.choice([64, 80, 200, 1000])
    asked = ChunkRule(max_tokens=limit, counter=WordCounter(merged), name="words")
    chunks = chunk_document("doc", what, asked)
    assert chunks == chunk_document("doc", what, asked)
    assert all(chunk.num_tokens <= limit for chunk in chunks)
    for chunk in chunks:
        assert asked.counter.count(render(chunk.segments)) == chunk.num_tokens
        labels = [segment.label for segment in chunk.segments]
        assert len(set(labels)) == len(labels)
        for label in labels:
            assert f"[{label}] " in render(chunk.segments)
    # Without what is repeated, the chunks are the document: each word once, in order.
    seen, words = set(), []
    for chunk in chunks:
        for segment in chunk.segments:
            key = (segment.kind, segment.text, segment.span)
            if key in seen and segment.kind == "heading":
                continue
            assert key not in seen
            seen.add(key)
            words += segment.text.split()
    assert words == [word for segment in what.segments for word in segment.text.split()]
    assert len({chunk.chunk_key for chunk in chunks}) == len(chunks)
