"""Counts of tokens: the vocabularies on this machine, the estimate, and images."""

import base64
import json
import os
import random
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from config.load import load_surroundings
from connectors.chunker import ChunkRule, chunk_document
from connectors.document import Content, Segment, Span
from engine import embedded
from engine.errors import PrerequisiteError
from engine.tokens import (
    MOST_IMAGE_TOKENS,
    EstimateCounter,
    HuggingFaceCounter,
    TiktokenCounter,
    TokenizerSource,
    image_tokens,
)
from engine.tokens.local import RUN_CHARS

TEXTS = {
    "english": "In the past, contracts, invoices and reports had to be read by hand, page after"
    " page; today a language model reads thousands of pages in minutes. ",
    "german": "Künstliche Intelligenz verändert, wie Unternehmen Verträge und Rechnungen lesen. ",
    "polish": "Dawniej umowy, faktury i sprawozdania trzeba było czytać ręcznie. ",
    "cyrillic": "Раньше договоры, счета и отчёты приходилось читать вручную. ",
    "arabic": "في الماضي كان لا بد من قراءة العقود والفواتير والتقارير يدويا صفحة صفحة. ",
    "chinese": "过去，合同、发票与报告需要人工逐页阅读；如今，模型可以在几分钟内读完数千页材料。",
    "japanese": "吾輩は猫である。名前はまだ無い。バッチ処理システムは文書を分割します。",
    "korean": "과거에는 계약서와 송장을 사람이 한 장씩 읽어야 했지만 이제는 몇 분이면 충분합니다. ",
    "digits": "\n".join(
        f"{i * 7919 % 100_003},{i * 31 % 977}.{i % 97:02},2026-0{1 + i % 9}-11" for i in range(50)
    ),
    "base64": base64.b64encode(random.Random(1).randbytes(3000)).decode(),
    "hex": random.Random(2).randbytes(1500).hex(),
    "json": json.dumps([{"customerName": f"item {i}", "is_open": i % 2 == 0} for i in range(40)]),
    "code": Path(__file__).read_text(encoding="utf-8").split("TEXTS")[0],
    "capitals": "THIS AGREEMENT IS ENTERED INTO BY AND BETWEEN THE PARTIES HEREUNDER. ",
    "emoji": "😀🚀🔥 great 🎉🎉 ✅❌ 👩‍👩‍👧‍👦 🇩🇪 👍🏽 ",
    "blanks": "a      b\n\n\n\t\t\tc        d\n      \n   e\r\n\r\n g",
    "special": "<|im_end|><|im_user|>[BOS]</think> ",
}
LEAST = 0.97
"""An estimate may be a hair below the count, not more."""


@pytest.fixture(scope="module")
def smollm2():
    path = embedded.model_folder(load_surroundings().cache) / "tokenizer.json"
    if not path.is_file():
        pytest.skip("the embedded model is not installed; run `headrace engine install`")
    return HuggingFaceCounter(path, "smollm2")


@pytest.fixture(scope="module")
def kimi():
    folder = os.environ.get("HEADRACE_KIMI_TOKENIZER")
    if not folder:
        pytest.skip("HEADRACE_KIMI_TOKENIZER does not name a folder with Kimi's tiktoken.model")
    return TiktokenCounter(Path(folder) / "tiktoken.model", "kimi")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A vocabulary of the single bytes and a few words, with Kimi's way of splitting."""
    return TiktokenCounter(tiny_vocabulary(tmp_path_factory.mktemp("tiny")), "tiny")


def tiny_vocabulary(folder, *, without=()):
    tokens = [bytes([value]) for value in range(256) if value not in without]
    tokens += [b"he", b"ll", b"hell", b"hello", b" h", b" hello", "中".encode()[:2], "中".encode()]
    tokens += [b"12", b"123", b"'s", b"\n\n"]
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    path = folder / "tiktoken.model"
    path.write_text("".join(lines), encoding="ascii")
    return path


@pytest.mark.parametrize(
    ("text", "num_tokens"),
    [
        ("", 0),
        ("hello", 1),
        ("hello hello", 2),
        ("hello's", 2),
        ("中中", 2),
        ("中hello", 2),
        ("1231234", 3),
        ("a\n\nb", 3),
        ("<|im_end|>", 10),
        ("\ud800", 3),
    ],
)
def test_tiktoken_counts_as_kimi_splits_when_the_vocabulary_is_small(tiny, text, num_tokens):
    assert tiny.count(text) == num_tokens
    assert tiny.count_many([text, "hello"]) == [num_tokens, 1]
    assert tiny.weigh([text]) == [num_tokens]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [19180, 2695]),
        ("Hello, world!", [19180, 11, 2695, 0]),
        ("你好世界", [33845, 2243]),
        ("1234567890", [6694, 12972, 16242, 15]),
        ("中文English混合", [16717, 44372, 13935]),
    ],
)
def test_ids_are_those_of_kimi_when_its_vocabulary_is_there(kimi, text, ids):
    assert kimi.encode(text) == ids


@pytest.mark.parametrize("character", ["a", "A", " ", "\n", "中", "あ", "9", "-", "é", "aB", "\t "])
def test_counting_stays_fast_when_two_million_characters_are_alike(tiny, character):
    text = character * (2_000_000 // len(character))
    started = time.monotonic()
    assert tiny.count(text) > 0
    assert time.monotonic() - started < 10


def test_long_runs_are_cut_where_kimi_cuts_them_when_encoded(tiny):
    picked = random.Random(3)
    for _ in range(5):
        runs = [
            picked.choice([" ", "x", "\n", "中"])
            * picked.choice([1, 7, 24_999, 25_000, 25_001, 60_000])
            for _ in range(picked.randrange(1, 12))
        ]
        text = "".join(runs)
        expected = sum(len(tiny.encode(piece)) for piece in slowly_cut(text))
        assert tiny.count(text) == len(tiny.encode(text)) == expected


def slowly_cut(text):
    """The published rule, character by character."""
    for start in range(0, len(text), 400_000):
        piece, length = "", 0
        for character in text[start : start + 400_000]:
            goes_on = bool(piece) and character.isspace() == piece[-1].isspace()
            length = length + 1 if goes_on else 1
            if length > RUN_CHARS:
                yield piece
                piece, length = "", 1
            piece += character
        yield piece


def test_vocabulary_is_refused_with_its_path_when_it_is_something_else(tmp_path):
    path = tmp_path / "tiktoken.model"
    with pytest.raises(PrerequisiteError, match="cannot be read"):
        TiktokenCounter(path, "x")
    path.write_text("no base64 here!\n", encoding="utf-8")
    with pytest.raises(PrerequisiteError, match="not a tiktoken vocabulary"):
        TiktokenCounter(path, "x")
    with pytest.raises(PrerequisiteError, match="lacks 2 of the 256"):
        TiktokenCounter(tiny_vocabulary(tmp_path, without=(7, 200)), "x")
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(PrerequisiteError, match=r"should be a tokenizer\.json"):
        HuggingFaceCounter(path, "x")


@pytest.mark.parametrize("kind", TEXTS)
def test_estimate_is_not_below_the_count_when_the_vocabulary_is_small(smollm2, kind):
    assert EstimateCounter().count(TEXTS[kind] * 10) >= LEAST * smollm2.count(TEXTS[kind] * 10)


@pytest.mark.parametrize("model", ["", "kimi-k2.5"])
@pytest.mark.parametrize("kind", TEXTS)
def test_estimate_is_not_below_the_count_when_the_vocabulary_is_large(kimi, kind, model):
    assert EstimateCounter(model).count(TEXTS[kind] * 10) >= LEAST * kimi.count(TEXTS[kind] * 10)


def test_estimate_of_prose_is_at_most_a_third_too_high(smollm2):
    assert EstimateCounter().count(TEXTS["english"] * 10) <= 1.35 * smollm2.count(
        TEXTS["english"] * 10
    )


def test_estimate_of_chinese_is_near_the_count_when_the_model_is_kimi(kimi):
    text = TEXTS["chinese"] * 10
    assert EstimateCounter("moonshotai/Kimi-K2.5").count(text) <= 1.8 * kimi.count(text)


@pytest.mark.parametrize("counter", [EstimateCounter(), EstimateCounter("kimi")])
def test_estimate_lies_between_one_and_the_bytes_when_text_is_random(counter):
    picked = random.Random(4)
    alphabet = "".join(TEXTS.values()) + "\ud800\u0301\u200b\x00"
    for _ in range(300):
        text = "".join(picked.choices(alphabet, k=picked.randrange(1, 60)))
        least, most = 1, len(text.encode("utf-8", "surrogatepass"))
        assert least <= counter.count(text) <= most
    assert counter.count("") == 0


def test_estimate_does_not_fall_when_text_is_repeated():
    counter = EstimateCounter()
    for text in TEXTS.values():
        counts = [counter.count(text * times) for times in (1, 2, 5, 20)]
        assert counts == sorted(counts)


def test_names_of_estimates_differ_when_their_rates_do():
    assert EstimateCounter().name != EstimateCounter("kimi-k2.5").name
    assert not EstimateCounter().exact


@pytest.mark.parametrize("max_tokens", [64, 256, 1000])
@pytest.mark.parametrize("name", ["tiny", "smollm2", "kimi", "estimate"])
def test_no_chunk_exceeds_the_limit_when_text_is_messy(request, name, max_tokens):
    counter = EstimateCounter() if name == "estimate" else request.getfixturevalue(name)
    rule = ChunkRule(max_tokens=max_tokens, counter=counter, name=counter.name)
    lines = [text for text in TEXTS.values() for _ in range(3)]
    segments = [Segment(kind="paragraph", text=text, span=Span(page=1)) for text in lines]
    content = Content(
        media_type="text/plain", reader="text/1", units=(), segments=tuple(segments), media=()
    )
    chunks = chunk_document("doc", content, rule)
    assert max(chunk.num_tokens for chunk in chunks) <= max_tokens


@pytest.mark.parametrize(
    ("size_px", "num_tokens"),
    [
        ((224, 224), 64),
        ((448, 448), 256),
        ((448, 336), 192),
        ((449, 336), 204),
        ((1, 1), 1),
        ((10_000, 1), 256),
        ((1654, 2339), 4158),
        ((3000, 3000), 4225),
        ((5000, 5000), 4096),
        ((503, 7292), MOST_IMAGE_TOKENS),
    ],
)
def test_image_tokens_follow_the_published_rule(size_px, num_tokens):
    assert image_tokens(*size_px) == num_tokens


def test_image_tokens_stay_below_the_most_when_sizes_are_random():
    picked = random.Random(5)
    sizes = [(picked.randrange(1, 16_000), picked.randrange(1, 16_000)) for _ in range(5000)]
    assert max(image_tokens(*size) for size in sizes) <= MOST_IMAGE_TOKENS
    with pytest.raises(ValueError, match="0 x 4 px"):
        image_tokens(0, 4)


def test_source_is_refused_when_a_key_is_unknown():
    assert TokenizerSource().model_dump() == {
        "file": None,
        "tokenize": False,
        "estimate_path": None,
    }
    with pytest.raises(ValidationError):
        TokenizerSource.model_validate({"files": "x"})
    documented = TokenizerSource.model_json_schema()["properties"].values()
    assert all(field["description"] for field in documented)
