"""What is masked, what is left, and that it comes back."""

import pytest

from connectors.masking import Masker, MaskRules

KEY = bytes(range(32))

FOUND = [
    ("EMAIL", "ada.lind+x@mail.example.org"),
    ("IBAN", "DE89 3704 0044 0532 0130 00"),
    ("IBAN", "GB82WEST12345698765432"),
    ("CARD", "4111 1111 1111 1111"),
    ("CARD", "5500-0000-0000-0004"),
    ("IP", "10.0.0.7"),
    ("IP", "2001:db8::1"),
    ("PHONE", "+49 (30) 123 45-67"),
    ("PHONE", "0049 171 1234567"),
    ("PHONE", "030 1234567"),
    ("PHONE", "(212) 555-0142"),
    ("IBAN", "DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000"),
    ("CARD", "4111\u00a01111\u00a01111\u00a01111"),
    ("PHONE", "+49\u00a030\u00a01234567"),
    ("PHONE", "+49 30 123\u201145\u201367"),
    ("EMAIL", "..ada.lind@example.org"),
    ("EMAIL", f"{'a' * 70}@example.org"),
    ("EMAIL", "anna(at)firm.example"),
    ("EMAIL", "anna.lind [AT] mail [dot] firm (punkt) example"),
    ("EMAIL", "anna\uff20firm\uff0eexample"),
    ("PHONE", "\uff0b\uff14\uff19 \uff13\uff10 \uff11\uff12\uff13\uff14\uff15\uff16\uff17"),
    ("PHONE", "\uff10\uff13\uff10\uff0d\uff11\uff12\uff13\uff14\uff15\uff16\uff17"),
    ("PHONE", "\u0660\u0663\u0660 \u0661\u0662\u0663\u0664\u0665\u0666\u0667"),
    ("IBAN", "DE89 3704 0044 0532 0130 \uff10\uff10"),
    ("CARD", "\uff14111 1111 1111 1111"),
    ("IP", "\uff11\uff10.0.0.\uff17"),
    ("PHONE", "\uff10\uff13\u3000\uff11\uff12\uff13\uff14\u3000\uff15\uff16\uff17\uff18"),
    ("CARD", "4111\u30001111\u30001111\u30001111"),
    ("EMAIL", "ada@10.0.0.7"),
    ("EMAIL", "anna [at] 3com.example"),
]

GLUED = [
    ("Tel.030 1234567", "Tel.PHONE_"),
    ("Fax/+49 30 1234567", "Fax/PHONE_"),
    ("Card no.4111 1111 1111 1111", "Card no.CARD_"),
    ("IP:10.0.0.7", "IP:IP_"),
    ("IP:2001:db8::1", "IP:IP_"),
]

LEFT = [
    "4111 1111 1111 1112",  # the check digit is wrong
    "GB82WEST12345698765433",
    "1,234,567.00",
    "0.12345678",
    "2031-05-12",
    "12:30:45",
    "[L12] row 7",
    "300.1.2.3",
    "rev. 1.2.3",
    "3.0301234567",
    "AZ-030-1234567",
    "example.org/0301234567",
    "a stop (at) midnight",
    "measured (at) 3.5 bar",
    "measured (at) 3 (dot) 5 bar",
    "row \uff11\uff12 of x\u00b2",
]


@pytest.fixture
def masker():
    return Masker(MaskRules(), KEY)


@pytest.mark.parametrize(("kind", "value"), FOUND)
def test_value_becomes_a_placeholder_and_comes_back_when_it_has_a_form(masker, kind, value):
    text = f"Before, {value}, and after."
    masked = masker.masked(text)
    assert value not in masked
    assert masked.startswith(f"Before, {kind}_")
    assert masked.endswith(", and after.")
    assert masker.restored(masked) == text


@pytest.mark.parametrize("text", LEFT)
def test_text_stays_when_it_only_looks_like_a_number_of_somebody(masker, text):
    assert masker.masked(f"It says {text} here") == f"It says {text} here"


@pytest.mark.parametrize(("text", "begins"), GLUED)
def test_value_becomes_a_placeholder_when_its_name_stands_close_before_it(masker, text, begins):
    assert masker.masked(text).startswith(begins)


@pytest.mark.parametrize(
    "name",
    [
        "Zoë Lind",
        "Zoe\u0308 Lind",
        "Zoë\u00a0Lind",
        "ZOË\nLind",
        "zoë_lind",
        "by_Zoë Lind_2",
        "Lind, Zoë",
        "LIND,Zoë",
        "Lind,\nZoe\u0308",
        "Zoë \uff2cind",
    ],
    ids=ascii,
)
def test_name_becomes_a_placeholder_when_it_is_written_otherwise(name):
    masked = Masker(MaskRules(words=["Zoë Lind"]), KEY).masked(f"It is {name} here")
    assert "lind" not in masked.lower()


def test_middle_names_stay_with_the_first_when_the_last_comes_first():
    masked = Masker(MaskRules(words=["Ada Maria Lind"]), KEY).masked("from Lind, Ada Maria, here")
    assert masked.startswith("from WORD_")
    assert masked.endswith(", here")


def test_patterns_find_what_they_say_when_digits_are_of_another_script():
    masker = Masker(MaskRules(kinds=(), patterns={"wide": "\uff11+"}), KEY)
    assert masker.masked("11 \uff11\uff11").startswith("11 WIDE_")


def test_iban_ends_where_its_check_digits_say(masker):
    masked = masker.masked("IBAN DE89 3704 0044 0532 0130 00 BIC COBADEFF and more")
    assert masked.endswith(" BIC COBADEFF and more")


def test_placeholder_is_the_same_in_every_text_and_process_with_one_key(masker):
    other = Masker(MaskRules(kinds=("email",)), KEY)
    assert masker.masked("a@b.example") == other.masked("a@b.example")
    assert Masker(MaskRules(), bytes(32)).masked("a@b.example") != masker.masked("a@b.example")


def test_masked_text_stays_as_it_is_when_masked_again():
    rules = MaskRules(patterns={"upper": "[A-Z]{4,}"}, words=("email",))
    masker = Masker(rules, KEY)
    once = masker.masked("WRITE to a@b.example by email")
    assert masker.masked(once) == once
    assert masker.restored(once) == "WRITE to a@b.example by email"


def test_words_are_whole_and_in_any_case_when_they_are_listed():
    masker = Masker(MaskRules(words=("Ada Lind", "Ada")), KEY)
    masked = masker.masked("ada  lind, ADA, Adaption, Ada\nLind")
    first, second, rest = masked.split(", ", 2)
    assert masker.restored(first) == "ada  lind"
    assert masker.restored(second) == "ADA"
    assert rest.startswith("Adaption, WORD_")


def test_placeholder_stays_when_this_masker_has_not_made_it(masker):
    assert masker.restored("EMAIL_BCDFGHJKLM") == "EMAIL_BCDFGHJKLM"
