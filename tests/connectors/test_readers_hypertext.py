"""HTML: what a reader of the page sees, with offsets that hold in its source."""

from __future__ import annotations

import html
import re

import pytest

from connectors.errors import DocumentRejected
from connectors.readers import ReaderOptions, detect_media_type, hypertext

PAGE = """<!DOCTYPE html>
<!-- a < b > c -->
<html lang="en"><head><title>The   log &amp; more</title>
<style>p { color: red }</style><script>if (1 < 2) document.write("<p>no</p>")</script></head>
<body>
<nav><ul><li>Home</li><li>Contact</li></ul></nav>
<h1>The <em>ship's</em> log</h1>
<p>She came in at 6 p.m. on <b>Mon</b>day. It&nbsp;left &mdash; late &#8212; on Tuesday!
<p>AT&T paid 3 < 4 &euro;.<br>In cash.
<ul><li>first item. It has two sentences<li>second item</ul>
<table><caption>Berths</caption>
<tr><th>Berth<th>Ship</tr>
<tr><td>3<td><p>Calypso</p><p>II</p></tr>
<tr><td>4</td><td></td><td>free</td></tr>
<tr><td colspan=2>No more rows.</td></tr></table>
<div hidden>Ignore all of this.</div><p style="display: none">Shown, it has no end</p>
<div style="display:none"><div>Nor this.</div>Nor that.</div>
<h2 class=x>Closed</h2>End<script>x</script>ing<footer>Port office</footer>
</body></html>
"""

SEGMENTS = [
    ("heading", "The ship's log"),
    ("paragraph", "She came in at 6 p.m. on Monday."),
    ("paragraph", "It left — late — on Tuesday!"),
    ("paragraph", "AT&T paid 3 < 4 €."),
    ("paragraph", "In cash."),
    ("paragraph", "first item."),
    ("paragraph", "It has two sentences"),
    ("paragraph", "second item"),
    ("paragraph", "Berths"),
    ("table", "| Berth | Ship |"),
    ("table", "| 3 | Calypso II |"),
    ("table", "| 4 | | free |"),
    ("paragraph", "No more rows."),
    ("paragraph", "Shown, it has no end"),
    ("heading", "Closed"),
    ("paragraph", "Ending"),
    ("paragraph", "Port office"),
]


def _read(tmp_path, data: bytes | str):
    path = tmp_path / "f"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return hypertext.read(path, "text/html", tmp_path, ReaderOptions())


def test_page_is_cut_into_what_a_reader_sees(tmp_path):
    content = _read(tmp_path, PAGE)
    assert [(s.kind, s.text) for s in content.segments] == SEGMENTS
    assert content.metadata == (("encoding", "utf-8-sig"), ("title", "The log & more"))
    assert [unit.status for unit in content.units] == ["read"]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_offsets_find_the_source_of_each_segment(tmp_path, encoding, newline):
    source = PAGE.replace("\n", newline).replace("log", "lög")
    segments = _read(tmp_path, source.encode(encoding)).segments
    assert len(segments) == len(SEGMENTS)
    for segment in segments:
        found = source[segment.span.char_start : segment.span.char_end]
        plain = re.sub(r"<script.*?</script>|</?(?:em|b)>", "", found)
        plain = html.unescape(re.sub(r"<(?=[a-z/])[^>]*>", " ", plain))
        words = segment.text.replace("|", " ") if segment.kind == "table" else segment.text
        assert plain.split() == words.split()


def test_a_table_that_arranges_the_page_is_no_table(tmp_path):
    page = (
        "<table><tr><td>Menu here<td><h1>News</h1>It rains. It pours."
        "<table><tr><td>a<td>b</table>After.<td>Right column</table>"
    )
    assert [(s.kind, s.text) for s in _read(tmp_path, page).segments] == [
        ("paragraph", "Menu here"),
        ("heading", "News"),
        ("paragraph", "It rains."),
        ("paragraph", "It pours."),
        ("table", "| a | b |"),
        ("paragraph", "After."),
        ("paragraph", "Right column"),
    ]


@pytest.mark.parametrize(
    ("declared", "codec", "found"),
    [
        ("windows-1251", "cp1251", "windows-1251"),
        ("ISO-8859-1", "cp1252", "cp1252"),
        ("Shift_JIS", "cp932", "cp932"),
        ("windows-9999", "cp1252", "cp1252"),
        ("unicode_escape", "cp1252", "cp1252"),
    ],
)
def test_encoding_is_the_declared_one_when_the_bytes_are_not_utf(tmp_path, declared, codec, found):
    words = {"cp1251": "Привет", "cp932": "こんにちは"}.get(codec, "Grüße")
    page = f'<html><meta charset="{declared}"><p>{words}</p></html>'
    content = _read(tmp_path, page.encode(codec))
    assert [s.text for s in content.segments] == [words]
    assert dict(content.metadata)["encoding"] == found


@pytest.mark.parametrize(
    "page", ["", "<html><script>document.write('x')</script></html>", "<nav>Home</nav>", "<p> </p>"]
)
def test_page_is_rejected_as_empty_when_it_shows_nothing(tmp_path, page):
    with pytest.raises(DocumentRejected) as caught:
        _read(tmp_path, page)
    assert caught.value.reason == "empty"


@pytest.mark.parametrize(
    "tail",
    [
        "<p",
        "<p class='",
        "<!-- never closed",
        "<script>never closed",
        "&#",
        "&am",
        "</",
        "<![CDATA[x",
    ],
)
def test_what_stands_in_front_is_read_when_the_page_is_torn(tmp_path, tail):
    content = _read(tmp_path, f"<p>First one.</p><p>Second.</p>{tail}")
    assert [s.text for s in content.segments][:2] == ["First one.", "Second."]


def test_the_rest_is_named_when_the_parser_gives_up(tmp_path, monkeypatch):
    content = _read(tmp_path, "<p>First one.</p>Open <![strange[x]]><p>Lost.</p>")
    assert [s.text for s in content.segments][:2] == ["First one.", "Open"]
    lost = [unit for unit in content.units if unit.status == "failed"]
    # A later Python reads on; this one names what it leaves out.
    assert lost or content.segments[-1].text == "Lost."
    assert all(unit.name.startswith("characters from") for unit in lost)


@pytest.mark.parametrize(
    ("data", "name", "media_type"),
    [
        (b"<!doctype html><p>x", "page", "text/html"),
        (
            b"\xef\xbb\xbf \n<?xml version='1.0'?><!-- a --><!-- b -->\n<HTML>",
            "page.txt",
            "text/html",
        ),
        ("<html><p>x".encode("utf-16"), "page", "text/html"),
        (b"<p>only a piece</p>", "piece.htm", "text/html"),
        (b"<h1 align=center>Readme</h1>", "README.md", "text/markdown"),
        (b"<!-- " * 5000, "notes.txt", "text/plain"),
        (b"<!-- x -->" * 5000, "notes.txt", "text/plain"),
        (b"<htmlx>", "notes.txt", "text/plain"),
    ],
)
def test_a_page_is_told_from_text_by_how_it_begins(tmp_path, data, name, media_type):
    path = tmp_path / "f"
    path.write_bytes(data)
    assert detect_media_type(path, name) == media_type


def test_an_error_page_is_rejected_when_a_pdf_was_wanted(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"<html><body>404 Not Found</body></html>")
    with pytest.raises(DocumentRejected) as caught:
        detect_media_type(path, "report.pdf")
    assert caught.value.reason == "damaged"
