"""Reports over groups, the corpus and computed tables, from a sink whose rows are written by hand."""

import json
import re

import pytest
from typer.testing import CliRunner

from config.errors import ConfigError
from config.load import TEMPLATE_FILES, load_template
from flows.cli import app
from flows.report import overview
from flows.report.build import rebuild
from flows.report.evidence import MAX_PREVIEWS
from flows.report.gathered import MAX_REFERENCES, References
from flows.report.page import POLICY
from flows.report.templates import markdown_cell, markdown_text, write_template
from flows.report.words import rests_on
from tests.flows.report_sink import BIDI, HOSTILE, RUN_ID, Sample, sampled, written
from tests.flows.test_report import Balance

ASKED = ("pick", "by_kind", "early", "briefing")
RAW = ("<img", 'src="x"', *BIDI)


def test_page_goes_from_the_corpus_to_the_documents_when_read_from_the_top(tmp_path):
    page, text = written(sampled(tmp_path))
    order = ["What the letters say</h1>", "briefing <span", "early <span", "Sources (5)",
             "by kind <span", "totals <span", "What the documents say", "How the engine worked"]  # fmt: skip
    places = [page.index(part) for part in order]
    assert places == sorted(places)
    assert text.index("## briefing") < text.index("## early") < text.index("## by\\_kind")
    parser = Balance()
    parser.feed(page)
    assert parser.open == []


def test_sentences_lead_to_their_sources_and_are_marked_when_they_were_not_found(tmp_path):
    page, text = written(sampled(tmp_path))
    refs = set(re.findall(r'href="#(r\d+)"', page))
    assert refs == set(re.findall(r'<li id="(r\d+)"', page)) == {f"r{n}" for n in range(1, 6)}
    for mark in ("quote not found in the source", "no source given", "quote verified"):
        assert mark in page
    assert "Invented. (no source given)" in text
    assert "V3 has most. \\[2\\] \\[3\\] (quote not found in the source)" in text
    assert "quoted as <q><bdi>V3 has all of it</bdi></q>" in page


def test_documents_of_all_parts_are_counted_when_few_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(overview, "MAX_CARDS", 1)
    page, text = written(sampled(tmp_path))
    assert len(re.findall('<article class="card[^"]*"', page)) == 1
    assert "<b>2</b>" in page
    assert "1 more document, not shown here" in page
    assert "1 more document, not shown here" in text
    # Those that are cited are found, shown or not.
    assert 'href="#r2"' in page


def test_evidence_is_a_picture_or_the_neighbouring_rows_when_cited(tmp_path):
    page, _ = written(sampled(tmp_path))
    entry = page[page.index('<li id="r1"') : page.index('<li id="r2"')]
    assert '<use href="#pic-' in entry
    assert '<rect class="hit"' in entry
    sheet = page[page.index('<li id="r2"') : page.index('<li id="r3"')]
    assert re.findall(r"<th scope=\"row\">(\w+:\w+)", sheet) == [f"A{n}:B{n}" for n in range(2, 7)]
    assert sheet.count('class="cited"') == 1


def test_picture_is_left_out_when_the_source_has_changed(tmp_path):
    sample = sampled(tmp_path)
    (sample.source / "letters/a.png").write_bytes(b"another")
    page, _ = written(sample)
    entry = page[page.index('<li id="r1"') : page.index('<li id="r2"')]
    assert "<use" not in entry
    assert "The harbour closes on 3 May" in entry


def test_basis_is_told_when_inputs_have_no_answer(tmp_path):
    page, text = written(sampled(tmp_path))
    assert '<p class="basis partial">Rests on 97 of 100 chunks</p>' in page
    assert '<p class="basis">Rests on 2 of 2 chunks</p>' in page
    assert "Rests on 97 of 100 chunks" in text
    assert rests_on(97, 100, "document") == "Rests on 97 of 100 documents"
    assert rests_on(None, 100, "document") == ""


def test_rest_is_named_when_there_are_many_groups_and_rows(tmp_path):
    page, text = written(sampled(tmp_path))
    assert "3 more groups, not shown here" in page
    assert "10 more rows, not shown here" in page
    assert page.count('<td class="num">') == 100
    assert "&#34;" not in page
    assert "| V1 | 1.5 |" in text


def test_figures_of_cost_and_claims_are_told_when_the_manifest_has_them(tmp_path):
    sample = sampled(tmp_path)
    page, text = written(sample)
    assert "<dd>200</dd>" in page
    assert "250 over 2 pages" in page
    assert "1 verified, 1 not found, 1 unsourced" in page
    assert "4 no modality" in page
    assert "- briefing, sentences: 1 verified, 1 not found, 1 unsourced" in text
    sample.manifest["spent"] = {"tokens": 60, "usd": None}
    assert "has no prices" in written(sample)[0]


def test_nothing_of_a_document_is_markup_when_it_is_hostile(tmp_path):
    page, text = written(sampled_hostile(tmp_path / "all"))
    assert not any(raw in page for raw in RAW)
    assert not any(mark in text for mark in BIDI)
    assert page.count(POLICY) == 1
    assert page.count("</style>") == 1
    assert "onerror=alert(1)&gt;" in page
    assert "\\<img src=x onerror=alert(1)\\>" in text
    assert "https://" not in text
    assert not re.search(r"(?<!\\)[<>\[\]]", text.replace("> ", ""))


def sampled_hostile(folder):
    """Return a sample with hostile text in fields, quotes, paths and groups."""
    folder.mkdir()
    sample = sampled(folder, value=HOSTILE, group=HOSTILE)
    path = f"bad/<img src=x>[a](b){BIDI}|`.csv"
    sample.add(path, b"x", [(HOSTILE, sample.lines["lists/b.csv"][0][1])], "s00002")
    sample.records(
        "briefing",
        {
            "unit": "corpus",
            "output": {"summary": HOSTILE, "points": [HOSTILE], "tags": [HOSTILE]},
            "citations": [sample.cite("summary", path, 0)],
            "claims": [
                {"field": "summary", "text": HOSTILE, "quote": f"{HOSTILE}!", "verdict": "verified"}
            ],
        },
    )
    return sample


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_cell_is_no_formula_when_it_begins_like_one(start):
    assert markdown_cell(f"{start}1+1 | x") == f"'{start}1+1 \\| x"
    assert markdown_cell(-5) == "-5"
    assert markdown_text("see https://a.example and www.b.example") == (
        "see https:/\\/a.example and www\\.b.example"
    )


def test_list_of_references_is_bounded_when_much_is_cited(tmp_path):
    sample = Sample(tmp_path)
    line = sample.cite("summary", "letters/a.png", 1)
    references = References()
    for number in range(MAX_REFERENCES + 7):
        references.add([{**line, "quote": f"quote {number}"}], None, 8)
    assert references.num_unlisted == 7
    assert references.add([line], None, 8) == ((), 1)
    assert MAX_PREVIEWS < MAX_REFERENCES


def own_template(folder, **texts):
    folder.mkdir()
    for key, text in texts.items():
        (folder / TEMPLATE_FILES[key]).write_text(text)
    return str(folder)


def test_template_of_ones_own_travels_with_the_pipeline_and_is_held_in_when_it_is_used(tmp_path):
    text = "<html><head></head>{{ data.corpus[0].answers[0].findings[0]['items'][0][0].value }}"
    own_template(tmp_path / "ours", html=text, stylesheet="p {}")
    page, markdown = written(sampled(tmp_path, value=HOSTILE, report={"template": "ours"}))
    assert page.startswith(f"<html><head>{POLICY}</head>&lt;img src=x")
    assert "## briefing" in markdown


def test_blocks_of_the_shipped_template_can_be_changed_when_it_is_extended(tmp_path):
    text = '{% extends "briefing/report.html.j2" %}{% block cards %}<p>none</p>{% endblock %}'
    own_template(tmp_path / "ours", html=text)
    page, _ = written(sampled(tmp_path, report={"template": "ours"}))
    assert "<p>none</p>" in page
    assert "What the documents say" not in page
    assert "Sources (5)" in page


@pytest.mark.parametrize(
    "text", ["{{ data.nothing }}", "{{ ''.__class__.__mro__ }}", "{{ 1 / 0 }}", "{{ words.x() }}"]
)
def test_run_keeps_its_report_when_a_template_fails(tmp_path, text):
    own_template(tmp_path / "ours", html=text)
    page, _ = written(sampled(tmp_path, report={"template": "ours"}))
    assert "could not be used: report.html.j2" in page
    assert "Sources (5)" in page


def test_template_is_refused_when_it_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="neither the name of a template"):
        load_template(str(tmp_path / "nowhere"), "--template")
    broken = own_template(tmp_path / "ours", html="\n{% if %}")
    with pytest.raises(ConfigError, match=r"html: line 2"):
        load_template(broken, "--template")


def test_shipped_template_is_copied_and_gives_the_same_page_when_asked(tmp_path):
    write_template(tmp_path / "ours")
    (tmp_path / "sample").mkdir()
    sample = sampled(tmp_path / "sample", stages=ASKED)
    page = sample.sink / "reports" / RUN_ID / "index.html"
    rebuild(RUN_ID, str(sample.sink))
    first = page.read_text()
    rebuild(RUN_ID, str(sample.sink), template=str(tmp_path / "ours"))
    assert page.read_text() == first
    with pytest.raises(ConfigError, match="is there already"):
        write_template(tmp_path / "ours")


def test_records_are_joined_with_their_sources_when_asked(tmp_path):
    sample = sampled(tmp_path, stages=ASKED)
    command = ["records", RUN_ID, "briefing", "--sources", "--sink", str(sample.sink)]
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    sources = found["records"][0]["sources"]
    assert [(s["field"], s["path"], s["place"], s["verdict"]) for s in sources] == [
        ("summary", "letters/a.png", "page 1", "verified"),
        ("points[0]", "lists/b.csv", "table A4:B4", "not_found"),
        ("points[0]", "lists/b.csv", "table A5:B5", "not_found"),
        ("points[1]", None, None, "unsourced"),
    ]
    shown = CliRunner().invoke(app, command, env={"COLUMNS": "200"}).stdout
    assert "4 sources" in shown
    assert "quote not found in the source" in shown
    assert CliRunner().invoke(app, [*command, "--csv"]).exit_code == 2
