"""Quotes are found where they stand, however a model writes them, and nowhere else."""

import random

import pytest

from benchmarks.citation_check import judge, read_sources, scores
from benchmarks.machine import ROOT
from connectors.citations import Quotable

CAT = "The cat sat on the mat, and it did not move until the evening came."


def stands(quote, *texts, among=None):
    return Quotable(texts).find(quote, among) is not None


# --- where it stands ------------------------------------------------------------------------------


def test_run_is_the_smallest_of_several_when_a_quote_stands_more_than_once():
    texts = ["one two", "three four", "zero", "two three", "two three"]
    assert Quotable(texts).find("two three") == range(3, 4)


def test_run_covers_texts_without_words_when_a_quote_goes_on_behind_them():
    assert Quotable(["a b", "", "—", "c d"]).find("b c") == range(4)


def test_run_touches_a_named_text_when_some_are_named():
    quotable = Quotable(["same words", "other", "same words", "one more", "line here"])
    assert quotable.find("same words", among={2}) == range(2, 3)
    assert quotable.find("same words", among=[1, 3]) is None
    assert quotable.find("more line", among=[4]) == range(3, 5)
    assert quotable.find("same words", among=[]) is None
    assert quotable.find("same words", among=[-1, 99]) is None


@pytest.mark.parametrize("texts", [[], [""], ["", "..."]])
def test_nothing_is_found_when_there_is_no_text(texts):
    assert Quotable(texts).find("a") is None


@pytest.mark.parametrize("quote", ["", " ", "...", "“”", "[...]", "- | -", "\u200b", "%"])
def test_nothing_is_found_when_a_quote_has_no_word_or_number(quote):
    assert not stands(quote, "a ... b - | - %")


# --- what does not count --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "quote",
    [
        "THE CAT SAT ON THE MAT",
        "the  cat\nsat\u00a0on the mat",
        "“The cat sat on the mat”",
        "**The cat** _sat_ on `the mat`",
        "| The cat | sat on | the mat |",
        "The cat sat — on the mat…",
        "> The cat sat on the mat",
        "[L12] The cat sat on the mat",
        '"[L12]: The cat sat on the mat"',
        "L12: The cat sat on the mat",
        "[L12, L13] The cat sat on [L13] the mat",
        "(goes on) The cat sat on the mat",
        "The c\u00adat sat\u200b on the mat",
        "The ｃａｔ sat on the mat",
    ],
)
def test_quote_is_found_when_only_its_dress_is_another(quote):
    assert stands(quote, CAT)


@pytest.mark.parametrize(
    ("quote", "text"),
    [
        ("an example of it", "an exam- ple of it"),
        ("an example of it", "an exam-\nple of it"),
        ("an exam- ple of it", "an example of it"),
        ("the office files", "the oﬃce ﬁles"),
        ("a cafe\u0301 in Paris", "a café in Paris"),
        ("STRASSE 5", "Straße 5"),
        ("it's 'so'", "it’s ‘so’"),
        ("a-b — c", "a‑b – c"),
        ("Foo (R) is m2", "Foo (R)® is m²"),
    ],
)
def test_quote_is_found_when_the_same_is_written_otherwise(quote, text):
    assert stands(quote, text)


def test_word_is_found_when_it_is_broken_between_two_texts():
    assert Quotable(["it is an exam-", "ple of that"]).find("an example of") == range(2)


# --- what counts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "quote",
    [
        "The cat sat on a mat",
        "The cat sat on mat",
        "The cat on sat the mat",
        "The cat not sat on the mat",
        "and it did move until the evening",
        "The cat sat on the mat and it did not move until the evening came back",
        "he cat sat",
        "The cat sat on the ma",
        "The dog sat on the mat",
    ],
)
def test_quote_is_not_found_when_a_word_is_another(quote):
    assert not stands(quote, CAT)


@pytest.mark.parametrize(
    ("quote", "text"),
    [
        ("port", "a report"),
        ("rep", "a report"),
        ("he is", "he isn't here"),
        ("compliant with law", "non-compliant with law"),
        ("a cafe", "a café"),
        ("bar", "foo_bar"),
    ],
)
def test_quote_is_not_found_when_it_ends_within_a_word(quote, text):
    assert not stands(quote, text)


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quote", "text"),
    [
        ("1,234.50", "costs 1234.5 now"),
        ("1 234.50", "costs 1,234.50 now"),
        ("1234.5", "costs 1 234.50 now"),
        ("1'234", "costs 1,234 now"),
        ("5.0", "exactly 5"),
        ("5 %", "up 5% now"),
        ("5%", "up 5 % now"),
        ("5", "up 5% now"),
        ("€ 5", "it is €5"),
        ("5", "it is $5"),
        ("-5", "it is −5 today"),
        ("-$5", "it is -$5"),
        ("5", "from 3 - 5 days"),
        ("3-5 days", "from 3–5 days"),
        ("- 5 apples", "- 5 apples"),
        ("2024-01-05", "on 2024‑01‑05 at"),
        ("10^2", "some 10² of"),
        ("2 1/2", "and 2½ of"),
        ("p <= .05", "where p ≤ 0.05"),
        ("٣ days", "3 days"),
        ("3x5", "a 3 × 5 card"),
        ("A4", "A 4"),
    ],
)
def test_number_is_found_when_it_is_the_same(quote, text):
    assert stands(quote, text)


@pytest.mark.parametrize(
    ("quote", "text"),
    [
        ("12", "123"),
        ("23", "123"),
        ("234", "1,234"),
        ("1", "1,234"),
        ("1", "1.5"),
        ("5", "1.5"),
        ("1.5", "15"),
        ("15", "1.5"),
        ("15", "1,5"),
        ("1.5", "1,5"),
        ("12 34", "1234"),
        ("1234", "12 34"),
        ("1,2345", "12345"),
        ("5%", "5 now"),
        ("5‰", "5%"),
        ("$5", "€5"),
        ("$5", "5"),
        ("-5", "5"),
        ("5", "it is -5"),
        ("$5", "-$5"),
        ("3 5", "3-5"),
        ("2024-01-5", "2024-01-05"),
        ("2024-01-06", "2024-01-05"),
        ("01-05", "2024-01-05"),
        ("1.2.1", "1.2.10"),
        ("10:3", "10:30"),
        ("102", "10²"),
        ("21/2", "2½"),
        ("x > 5", "x < 5"),
        ("x ≤ 5", "x < 5"),
        ("x 5", "x < 5"),
        ("x = 5", "x ≠ 5"),
        ("5", "x < 5"),
    ],
)
def test_number_is_not_found_when_it_is_another(quote, text):
    assert not stands(quote, text)


def test_cells_are_numbers_of_their_own_when_the_text_is_a_row():
    rows = ["Sheet A!A1:D3, columns: row, A x, B y", '2,Gov,$3,1234,345,-5,"1,500"', "3,Can,12,345"]
    quotable = Quotable(rows)
    for quote in ("345", "Gov | $3 | 1,234", "1234 | 345 | -5", "2,Gov,$3,1234", "1500"):
        assert quotable.find(quote) == range(1, 2), quote
    assert quotable.find("Can, 12, 345") == range(2, 3)
    assert quotable.find("12345") is None
    # Without a heading, the number of the next row tells.
    assert Quotable(rows[1:]).find("345") == range(1)
    assert not stands("345", "12,345")


# --- ellipses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dots", ["...", "…", "[...]", "[…]", ". . .", "(...)"])
def test_pieces_are_found_in_order_when_words_are_left_out(dots):
    assert stands(f"The cat sat {dots} did not move", CAT)
    assert not stands(f"did not move {dots} The cat sat", CAT)
    assert not stands(f"The cat sat {dots} did move", CAT)


def test_pieces_are_found_across_a_few_texts_only():
    texts = ["first words here", "a", "b", "c", "last words there"]
    assert Quotable(texts[:3] + texts[4:]).find("first words ... last words") == range(4)
    assert Quotable(texts).find("first words ... last words") is None


def test_piece_is_too_short_when_it_is_one_word():
    assert not stands("The cat ... evening", CAT)
    assert stands("It cost ... 5", "It cost them only 5 a day")


def test_ellipsis_joins_no_word_when_it_is_left_out():
    assert not stands("no ... thing", "nothing")
    assert stands("wait... what", "Wait ... what?")


# --- scripts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quote", "text", "is_found"),
    [
        ("東京都", "これは東京都です。", True),
        ("東京 都", "これは東京都です。", True),
        ("京東", "これは東京都です。", False),
        ("2024年", "２０２４年の", True),
        ("ハ゜ン", "パン", False),
        ("ﾊﾟﾝ", "パン", True),
        ("البرمجة بلغة", "تعتبر البرمجة بلغة R", True),
        ("لبرمجة", "تعتبر البرمجة بلغة R", False),
        ("مرحبا", "مـــرحبا", True),
        ("क", "कि", False),
        ("कि", "वह कि", True),
        ("שלום", "\u200fשלום עולם", True),
        ("ไทย", "ภาษาไทยดี", True),
    ],
)
def test_other_scripts_are_compared_by_their_words(quote, text, is_found):
    assert stands(quote, text) is is_found


# --- at random ------------------------------------------------------------------------------------


def test_every_run_of_words_is_found_and_no_changed_one_when_made_at_random():
    chance = random.Random(7)
    words = ["".join(chance.choices("bcdfghjklm", k=chance.randint(3, 8))) for _ in range(400)]
    words += [str(chance.randint(0, 9999)) for _ in range(60)]
    for _ in range(60):
        lines = [chance.choices(words, k=chance.randint(1, 9)) for _ in range(30)]
        flat = [(word, i) for i, line in enumerate(lines) for word in line]
        quotable = Quotable([" ".join(line) for line in lines])
        for _ in range(20):
            size = chance.randint(2, 12)
            first = chance.randrange(len(flat) - size)
            taken = flat[first : first + size]
            quote = chance.choice([" ", "  ", "\n", " | "]).join(word for word, _ in taken)
            named = chance.choice(taken)[1]
            found = quotable.find(quote.upper(), among={named})
            assert found is not None
            assert named in found
            at = chance.randrange(size)
            other = [word for word, _ in taken]
            other[at] = "zzz" if other[at].isalpha() else other[at] + "7"
            assert quotable.find(" ".join(other)) is None


def test_quotes_of_real_files_are_judged_rightly_when_they_are_true_or_altered():
    demo = ROOT / "config" / "demo_corpus"
    files = [
        demo / "reports" / "airworthiness-proposal.pdf",
        demo / "reports" / "geometrie-und-topologie.pdf",
        demo / "tables" / "harbour-accounts.xlsx",
        demo / "tables" / "newark-weather.csv",
        ROOT / "tests" / "corpora" / "merged_cells.ods",
        ROOT / "tests" / "corpora" / "counter.mp4",
    ]
    sources = read_sources(files)
    assert {source.kind for source in sources} == {"pdf", "sheet", "video"}
    verdicts = list(judge(sources, 800, "test"))
    assert len(verdicts) >= 500
    overall = scores(verdicts)[0]
    wrong = [(v.quote, v.source.name) for v in verdicts if not v.is_right]
    assert overall["precision"] >= 0.99, wrong
    assert overall["recall"] >= 0.97, wrong
