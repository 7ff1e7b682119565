"""Counts of tokens by a host over a real socket, and the choice among the methods."""

import pytest

from connectors.chunker import ChunkRule, chunk_document
from connectors.document import Content, Segment, Span
from engine.errors import (
    EngineMisconfigured,
    EngineUnavailable,
    PrerequisiteError,
    RequestRejected,
)
from engine.tokens import EstimateCounter, TiktokenCounter, TokenizerSource
from engine.tokens import remote as remote_module
from engine.tokens.opening import load_counter, open_counter
from engine.tokens.remote import HostEstimateCounter, ServerCounter
from tests.engine.test_tokens import TEXTS, tiny_vocabulary
from tests.fakes.token_server import MARKS, TokenServer

PATH = "/tokenizers/estimate-token-count"


@pytest.fixture
def host():
    with TokenServer() as server:
        yield server


@pytest.fixture
def served(host):
    counter = ServerCounter(host.base_url, model="m", api_key=None)
    yield counter
    counter.close()


def failing(server, **kwargs):
    """A counter whose waits take no time; they are kept in `waits`."""
    counter = ServerCounter(server.base_url, model="m", api_key=None, **kwargs)
    waits = []
    counter._sleep = waits.append
    return counter, waits


def test_server_counts_what_is_sent_without_special_tokens(host, served):
    assert served.count("a b c") == 3
    assert host.calls == [
        ("/tokenize", {"model": "m", "prompt": "a b c", "add_special_tokens": False})
    ]
    assert served.exact
    assert served.name == "server/m"


def test_host_is_asked_once_when_texts_repeat(host, served):
    assert served.count_many(["a", "b c", "a", "", "b c"]) == [1, 2, 1, 0, 2]
    assert served.count("b c") == 2
    assert len(host.calls) == 2


def test_host_is_not_asked_when_lines_are_weighed(host, served):
    assert served.weigh(["a b c", "d"]) == EstimateCounter("m").count_many(["a b c", "d"])
    assert host.calls == []


def test_calls_run_side_by_side_when_there_are_many_texts():
    with TokenServer(delay_s=0.02) as host:
        counter = ServerCounter(host.base_url, model="m", api_key=None, at_once=4)
        assert counter.count_many([f"a{i}" for i in range(40)]) == [1] * 40
        counter.close()
    assert 2 <= host.most_in_flight <= 4


def test_oldest_counts_are_dropped_when_the_cache_is_full(host, served, monkeypatch):
    monkeypatch.setattr(remote_module, "MOST_KEPT", 2)
    for text in ("a", "b", "a", "c", "a", "b"):
        served.count(text)
    assert [body["prompt"] for _, body in host.calls] == ["a", "b", "c", "b"]


def test_lone_surrogates_are_counted_when_they_cannot_be_sent(host, served):
    assert served.count("a \ud800 b") == 3
    assert host.calls[0][1]["prompt"] == "a ? b"


def test_estimate_counts_the_message_with_its_marks(host):
    counter = HostEstimateCounter(host.base_url, PATH, model="kimi-k2.5", api_key=None)
    assert counter.count("a b") == 2 + MARKS
    counter.close()
    messages = [{"role": "user", "content": "a b"}]
    assert host.calls == [(f"/v1{PATH}", {"model": "kimi-k2.5", "messages": messages})]
    assert not counter.exact


def test_count_is_tried_again_when_the_host_says_later():
    with TokenServer(script=lambda number: [429, b"", None][min(number, 2)]) as host:
        counter, waits = failing(host)
        assert counter.count("a b") == 2
        counter.close()
    assert waits == [1.0, 2.0]


@pytest.mark.parametrize("fault", [503, b"no json", b"[]", b'{"tokens": [1]}', b'{"count": 0}'])
def test_host_counts_as_unavailable_when_no_answer_is_a_count(fault):
    with TokenServer(script=lambda _: fault) as host:
        counter, waits = failing(host)
        with pytest.raises(EngineUnavailable):
            counter.count("a")
        counter.close()
    assert len(host.calls) == 1 + len(waits) == remote_module.TRIES


def test_text_is_rejected_when_the_host_refuses_it():
    with TokenServer(script=lambda _: 400) as host:
        counter, waits = failing(host)
        with pytest.raises(RequestRejected):
            counter.count("a")
        counter.close()
    assert waits == []


def test_no_message_holds_a_secret_when_the_host_refuses():
    with TokenServer(api_key="sk-right") as host:
        counter = ServerCounter(host.base_url, model="m", api_key="sk-wrong")
        with pytest.raises(EngineMisconfigured) as caught:
            counter.count("a")
        counter.close()
        assert "sk-" not in str(caught.value)
        counter = ServerCounter(host.base_url, model="m", api_key="sk-right")
        assert counter.count("a") == 1
        counter.close()


@pytest.fixture
def opened(tmp_path):
    """Open a counter; return it with the lines that were notified."""
    counters = []

    def open_(source, base_url="http://127.0.0.1:9/v1", *, model="m", key=None):
        lines = []
        counter = open_counter(
            source, base_url=base_url, model=model, api_key=key, cache=tmp_path, notify=lines.append
        )
        counters.append(counter)
        return counter, lines

    yield open_
    for counter in counters:
        counter.close()


@pytest.mark.parametrize("file", ["k/tiktoken.model", "k", "{cache}/models/k/tiktoken.model"])
def test_file_counts_when_it_is_there(opened, tmp_path, file):
    (tmp_path / "models" / "k").mkdir(parents=True)
    path = tiny_vocabulary(tmp_path / "models" / "k")
    counter, lines = opened(TokenizerSource(file=file.format(cache=tmp_path), tokenize=True))
    assert isinstance(counter, TiktokenCounter)
    assert counter.name == load_counter(path).name
    assert lines == []


def test_name_changes_when_the_vocabulary_does(tmp_path):
    path = tiny_vocabulary(tmp_path)
    name = load_counter(path).name
    path.write_bytes(path.read_bytes() + b"aGVsbG9o 999\n")
    assert load_counter(path).name != name


def test_broken_file_stops_when_it_is_there(opened, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(PrerequisiteError, match=r"tokenizer\.json"):
        opened(TokenizerSource(file="tokenizer.json"))


def test_server_counts_when_the_file_is_missing(opened, host):
    counter, (line,) = opened(TokenizerSource(file="k", tokenize=True), host.base_url)
    assert isinstance(counter, ServerCounter)
    assert len(host.calls) == 1
    assert "counted by the server" in line
    assert "models/k" in line


def test_nothing_is_notified_when_the_server_counts(opened, host):
    assert opened(TokenizerSource(tokenize=True), host.base_url)[1] == []


def test_host_estimates_when_it_cannot_tokenize(opened):
    with TokenServer(tokenize=False) as host:
        source = TokenizerSource(tokenize=True, estimate_path=PATH)
        counter, (line,) = opened(source, host.base_url)
    assert isinstance(counter, HostEstimateCounter)
    assert "404" in line
    assert "<folder>/tiktoken.model" in line


@pytest.mark.parametrize("source", [None, TokenizerSource(tokenize=True, estimate_path=PATH)])
@pytest.mark.parametrize("base_url", ["", "http://127.0.0.1:9/v1"])
def test_counts_are_estimated_when_there_is_nothing_better(opened, source, base_url):
    counter, (line,) = opened(source, base_url, model="kimi-k2.5")
    assert counter.name == "estimate-kimi/1"
    assert "15 % margin" in line
    assert "exact counts" in line


def messy(num_copies):
    segments = [
        Segment(kind="paragraph", text=text.strip(), span=Span(page=1))
        for _ in range(num_copies)
        for text in TEXTS.values()
    ]
    return Content(
        media_type="text/plain", reader="text/1", units=(), segments=tuple(segments), media=()
    )


@pytest.mark.parametrize("bytes_per_token", [1, 3, 8])
def test_chunks_fit_with_few_calls_when_a_host_counts(bytes_per_token):
    """From a host with one token for each byte, of which estimates are far too low, to long ones."""
    content = messy(20)
    with TokenServer(count=lambda text: -(-len(text.encode()) // bytes_per_token)) as host:
        counter = ServerCounter(host.base_url, model="m", api_key=None)
        rule = ChunkRule(max_tokens=2000, counter=counter, name=counter.name)
        chunks = chunk_document("doc", content, rule)
        again = chunk_document("doc", content, rule)
        counter.close()
    assert again == chunks
    assert max(chunk.num_tokens for chunk in chunks) <= 2000
    # A segment that is cut loses the blank at the cut.
    whole = "".join(segment.text for chunk in chunks for segment in chunk.segments)
    expected = "".join(segment.text for segment in content.segments)
    assert "".join(whole.split()) == "".join(expected.split())
    assert len(host.calls) <= 4 * len(chunks)
    filled = [chunk.num_tokens for chunk in chunks[:-1]]
    assert not filled or sum(filled) / len(filled) > 0.7 * 2000


def test_segment_is_cut_when_its_weight_was_too_low():
    text = " ".join(f"w{i}" for i in range(400))
    content = Content(
        media_type="text/plain",
        reader="text/1",
        units=(),
        segments=(
            Segment(kind="paragraph", text=text, span=Span(char_start=0, char_end=len(text))),
        ),
        media=(),
    )
    with TokenServer(count=lambda text: 5 * len(text)) as host:
        counter = ServerCounter(host.base_url, model="m", api_key=None)
        rule = ChunkRule(max_tokens=3000, counter=counter, name=counter.name)
        chunks = chunk_document("doc", content, rule)
        counter.close()
    pieces = [segment for chunk in chunks for segment in chunk.segments]
    assert len(chunks) > 1
    assert max(chunk.num_tokens for chunk in chunks) <= 3000
    assert " ".join(piece.text for piece in pieces) == text
    assert all(text[p.span.char_start : p.span.char_end].strip() == p.text for p in pieces)


@pytest.mark.vllm
def test_server_counts_as_its_vocabulary_does_when_text_is_messy(embedded_engine):
    texts = [*TEXTS.values(), "\u0301 \x00 \u200b e\u0301", "  lead", "trail \n\n", "x" * 3000]
    counter = ServerCounter(embedded_engine.base_url, model=embedded_engine.model, api_key=None)
    assert counter.count_many(texts) == embedded_engine.counter.count_many(texts)
    counter.close()
