import re
from html.parser import HTMLParser

import pytest

from flows.report.charts import histogram, quantile
from flows.report.markdown import render_markdown
from flows.report.page import jpeg_size, render_html
from flows.report.words import clock, compact, duration
from tests.flows.report_sample import HOSTILE, card, jpeg, sample

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Balance(HTMLParser):
    """Fails on a tag that is not closed in order."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag


@pytest.fixture(
    params=[
        {},
        {"documents": ()},
        {"documents": tuple(card(f"{i}.pdf", status="rejected", error="x") for i in range(3))},
        {"statuses": {"read": 205}},
        {"stages": (), "planned_cached_ratio": None, "verdict": "incomplete"},
    ],
    ids=["full", "empty", "all rejected", "many", "no stages"],
)
def page(request):
    return render_html(sample(**request.param))


def test_tags_are_balanced_when_rendered(page):
    parser = Balance()
    parser.feed(page)
    assert parser.open == []


def test_nothing_is_loaded_from_elsewhere_when_opened(page):
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert "url(" not in page
    assert "<script" not in page


def test_text_of_documents_is_shown_as_text_when_it_is_hostile():
    page = render_html(sample())
    assert "&lt;script&gt;alert(" in page
    assert page.count("</style>") == 1
    assert "\x00" not in page


def test_quote_is_marked_where_its_box_is_when_there_is_a_picture():
    page = render_html(sample())
    assert '<rect class="hit" x="28.0" y="78.0" width="244.0" height="44.0"/>' in page
    assert page.count("data:image/jpeg;base64,") == 1


def test_each_place_leads_to_its_evidence_when_clicked():
    page = render_html(sample())
    targets = re.findall(r'href="#(d\d+q\d+)"', page)
    assert targets == ["d1q0", "d1q1", "d2q0"]
    assert all(f'<figure id="{target}">' in page for target in targets)


def test_rest_is_named_when_there_are_too_many_documents():
    data = sample(statuses={"read": 1200, "rejected": 34})
    page, text = render_html(data), render_markdown(data)
    for told in (page, text):
        assert "1,229 more documents, not shown here" in told
    assert "33 more are in" in page


def test_rejected_documents_have_their_reason_when_listed():
    assert "Not read, or read in part" in render_html(sample())
    assert "rejected: damaged" in render_html(sample())
    assert "Not read" not in render_html(sample(documents=()))


def test_markdown_is_escaped_when_text_is_hostile():
    text = render_markdown(sample())
    assert "\\<script\\>" in text
    assert HOSTILE not in text
    assert (
        "| merge | 2 succeeded, 1 failed | 1 instant, 1 thinking; escalated: 1 of 3 (33%) |" in text
    )


@pytest.mark.parametrize("size", [(300, 400), (17, 5)])
def test_size_is_read_when_a_jpeg_is_given(size):
    assert jpeg_size(jpeg(*size)) == size
    assert jpeg_size(b"\xff\xd8 not a jpeg") is None


def test_quantile_is_a_value_of_the_data_when_asked():
    values = [1.0, 2.0, 3.0, 4.0]
    assert [quantile(values, share) for share in (0.0, 0.5, 0.51, 0.95, 1.0)] == [1, 2, 3, 4, 4]
    assert histogram([]) == ""
    assert histogram(values).count("<rect") == 4


def test_numbers_are_worded_for_people_when_shown():
    assert [duration(s) for s in (3.14, 83.5, 7300)] == ["3.1 s", "1 min 24 s", "2 h 1 min"]
    assert [compact(n) for n in (812, 9999, 38_193, 2_500_000)] == [
        "812",
        "9,999",
        "38.2 k",
        "2.5 M",
    ]
    assert clock(83.25) == "1:23.2"
