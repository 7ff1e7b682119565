"""The report as one HTML file that needs nothing else: styles, pictures and charts are inside."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from config.pipeline import ReportTemplate
from connectors.document import Span
from flows.report import charts, words
from flows.report.data import Answer, Citation, DocumentCard, Field, Reference, ReportData
from flows.report.templates import render, stylesheet

MAX_CARD_ROWS = 100
"""Answers about chunks and rows on one card; the page says how many more the tables hold."""

_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:;'
    " style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">"
)
"""Whatever a template holds: nothing is loaded from elsewhere, and no script runs."""

_HEAD = re.compile(r"<head(\s[^<>]*)?>", re.IGNORECASE)


def render_html(data: ReportData, own: ReportTemplate | None = None) -> str:
    """Return the page. Every text from a document is escaped.

    Raises:
        TemplateFailed: The user's own template cannot be rendered.
    """
    sizes = {key: size for key, jpeg in data.previews.items() if (size := jpeg_size(jpeg))}
    page = render("html", own, {
        "data": data,
        "cards": [_card(card, sizes) for card in data.documents if card.status != "rejected"],
        "references": [_entry(reference, sizes) for reference in data.references],
        "pictures": [_picture(key, data.previews[key], size) for key, size in sizes.items()],
        "figures": _figures(data),
        "stages": [_stage(data, index) for index in range(len(data.stages))],
        "is_number": words.is_number,
        "policy": Markup(POLICY),
        "stylesheet": stylesheet(own),
    })  # fmt: skip
    return page if POLICY in page else _protected(page)


def _protected(page: str) -> str:
    """Return the page of a template that leaves the policy out, with it."""
    head = _HEAD.search(page)
    at = head.end() if head else 0
    return f"{page[:at]}{POLICY}{page[at:]}"


def _entry(reference: Reference, sizes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    citation = reference.citation
    return {
        "number": reference.number,
        "path": citation.path,
        "place": words.place(citation.span),
        "citation": citation,
        "verdicts": reference.verdicts,
        # What is quoted as a whole is shown once.
        "quotes": [quote for quote in reference.quotes if quote != citation.quote],
        "picture": _evidence(citation, sizes),
    }


def _figures(data: ReportData) -> list[tuple[str, str, str]]:
    """Return the tiles: value, name, detail."""
    outcomes: Counter[str] = Counter()
    for stage in data.stages:
        outcomes.update(stage.outcomes)
    prompt = sum(stage.prompt_tokens for stage in data.stages)
    output = sum(stage.completion_tokens for stage in data.stages)
    return [
        (f"{data.num_documents:,}", "documents", _counts(data.statuses)),
        (words.compact(sum(outcomes.values())), "records", _counts(outcomes)),
        (words.compact(prompt), "prompt tokens", f"{prompt:,}, and {output:,} of output"),
        (
            _cached(data),
            "from the prefix cache",
            f"{_percent(data.planned_cached_ratio)} planned",
        ),
        (words.duration(data.seconds), "from start to report", data.started),
    ]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())) or "none"


def _percent(ratio: float | None) -> str:
    return "n/a" if ratio is None else f"{ratio:.0%}"


def _cached(data: ReportData) -> str:
    known = [stage for stage in data.stages if stage.cached_tokens is not None]
    cached = sum(stage.cached_tokens or 0 for stage in known) if known else None
    return words.share(cached, sum(stage.prompt_tokens for stage in known))


def _stage(data: ReportData, index: int) -> dict[str, Any]:
    stage = data.stages[index]
    return {
        "stage": stage,
        "outcomes": _counts(stage.outcomes),
        "claims": _claims(stage.claims),
        "skipped": ", ".join(f"{n:,} {words.skip_word(why)}" for why, n in stage.skipped.items()),
        "outcome_bar": Markup(charts.outcome_bar(stage.outcomes)),
        "token_bar": Markup(
            charts.token_bar(stage.cached_tokens, stage.prompt_tokens, stage.completion_tokens)
        ),
        "histogram": Markup(charts.histogram(stage.latencies_s)),
    }


def _claims(claims: Mapping[str, int]) -> str:
    """Return how many sentences were found, not found or had no source; empty where none was asked."""
    names = ("verified", "not_found", "unsourced")
    told = (f"{claims.get(name, 0):,} {name.replace('_', ' ')}" for name in names)
    return ", ".join(told) if claims else ""


def _card(card: DocumentCard, sizes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    document = [answer for answer in card.answers if answer.over == "document"]
    chunks = [answer for answer in card.answers if answer.over != "document"]
    fields = [field for answer in document for field in answer.fields]
    headline = next((field for field in fields if field.name == "title"), None)
    return {
        "card": card,
        "headline": str(headline.value) if headline else card.path.rsplit("/", maxsplit=1)[-1],
        "quotes": [_quote(field, sizes) for field in fields if field is not headline],
        "headline_quote": _quote(headline, sizes) if headline else None,
        "unanswered": [answer for answer in document if answer.outcome != "succeeded"],
        "tags": _tags(chunks),
        "rows": _rows(chunks[:MAX_CARD_ROWS]),
        "num_more_rows": max(0, len(chunks) - MAX_CARD_ROWS),
        "picture": _picture_of(card, fields, sizes),
    }


def _picture_of(
    card: DocumentCard, fields: list[Field], sizes: Mapping[str, tuple[int, int]]
) -> dict[str, Any] | None:
    """Return the document's picture: the page of a quote, with all quotes on it marked."""
    citations = [field.citation for field in fields if field.citation]
    keys = [c.preview for c in reversed(citations)] + [card.preview]
    key = next((key for key in keys if key is not None and key in sizes), None)
    if key is None:
        return None
    return _shown_at(key, [c.span for c in citations if c.preview == key], sizes)


def _quote(field: Field, sizes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    citation = field.citation
    return {
        "name": field.name.replace("_", " "),
        "value": words.shown(field.value),
        "doubt": field.doubt,
        "place": words.place(citation.span) if citation else "",
        "tier": citation.tier if citation else "",
        "context": citation if citation and _has_context(citation) else None,
        "picture": _evidence(citation, sizes) if citation else None,
    }


def _evidence(citation: Citation, sizes: Mapping[str, tuple[int, int]]) -> dict[str, Any] | None:
    """Return the picture of the quoted place, the quote marked where its box is known."""
    if citation.preview is None or citation.preview not in sizes:
        return None
    return _shown_at(citation.preview, [citation.span], sizes)


def _shown_at(key: str, spans: list[Span], sizes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Return a picture with the boxes of `spans` marked on it."""
    return {
        "key": key,
        "size": sizes[key],
        "marks": [span.bbox for span in spans if span.bbox],
        "place": words.place(spans[0]) if spans else "",
    }


def _has_context(citation: Citation) -> bool:
    return bool(citation.before or citation.after)


def _tags(answers: list[Answer]) -> list[tuple[str, int]]:
    """Return the values of fields from closed lists (no citation, short), most frequent first."""
    values = Counter(
        str(field.value)
        for answer in answers
        for field in answer.fields
        if field.citation is None and isinstance(field.value, str) and len(field.value) <= 24
    )
    return values.most_common(3)


def _rows(answers: list[Answer]) -> list[dict[str, Any]]:
    """Return the chunk answers, one row per unit and stage."""
    units = {unit: place for place, unit in enumerate(dict.fromkeys(a.unit for a in answers))}
    ordered = sorted(answers, key=lambda answer: units[answer.unit])
    return [
        {
            "unit": answer.unit,
            "stage": answer.stage,
            "outcome": answer.outcome,
            "error": answer.error,
            "saw": answer.saw,
            "fields": [
                (
                    f.name.replace("_", " "),
                    words.shown(f.value),
                    words.place(f.citation.span) if f.citation else "",
                    f.doubt,
                )
                for f in answer.fields
            ],
        }
        for answer in ordered
    ]


def _picture(key: str, jpeg: bytes, size: tuple[int, int]) -> dict[str, Any]:
    return {"key": key, "size": size, "base64": base64.b64encode(jpeg).decode()}


def jpeg_size(jpeg: bytes) -> tuple[int, int] | None:
    """Return width and height in pixels from a JPEG's frame header; None if it has none."""
    at = 2
    while at + 9 < len(jpeg) and jpeg[at] == 0xFF:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker in _SOF:
            height = int.from_bytes(jpeg[at + 5 : at + 7], "big")
            width = int.from_bytes(jpeg[at + 7 : at + 9], "big")
            return (width, height) if width and height else None
        at += 2 + length
    return None
