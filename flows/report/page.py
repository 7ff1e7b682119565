"""The report as one HTML file that needs nothing else: styles, pictures and charts are inside."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from connectors.document import Span
from flows.report import charts, words
from flows.report.data import Answer, Citation, DocumentCard, Field, ReportData

MAX_CARDS = 200
"""Documents shown in full; the page says how many more the tables hold."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    finalize=lambda value: _CONTROL.sub("", value) if type(value) is str else value,
)


def render_html(data: ReportData) -> str:
    """Return the page. Every text from a document is escaped."""
    template = _ENVIRONMENT.get_template("report.html.j2")
    sizes = {key: size for key, jpeg in data.previews.items() if (size := jpeg_size(jpeg))}
    return template.render(
        data=data,
        cards=[
            _card(card, sizes) for card in data.documents[:MAX_CARDS] if card.status != "rejected"
        ],
        num_hidden=max(0, len(data.documents) - MAX_CARDS),
        flawed=[card for card in data.documents if card.status != "read"],
        pictures=[_picture(key, data.previews[key], size) for key, size in sizes.items()],
        figures=_figures(data),
        stages=[_stage(data, index) for index in range(len(data.stages))],
        words=words,
        stylesheet=Markup(
            (Path(__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
        ),
    )


def _figures(data: ReportData) -> list[tuple[str, str, str]]:
    """Return the tiles: value, name, detail."""
    statuses = Counter(card.status for card in data.documents)
    outcomes: Counter[str] = Counter()
    for stage in data.stages:
        outcomes.update(stage.outcomes)
    prompt = sum(stage.prompt_tokens for stage in data.stages)
    output = sum(stage.completion_tokens for stage in data.stages)
    return [
        (f"{len(data.documents):,}", "documents", _counts(statuses)),
        (words.compact(sum(outcomes.values())), "records", _counts(outcomes)),
        (words.compact(prompt), "prompt tokens", f"{prompt:,}, and {output:,} of output"),
        (
            _percent(_cached_ratio(data)),
            "from the prefix cache",
            f"{_percent(data.planned_cached_ratio)} planned",
        ),
        (words.duration(data.seconds), "from start to report", data.started),
    ]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())) or "none"


def _percent(ratio: float | None) -> str:
    return "n/a" if ratio is None else f"{ratio:.0%}"


def _cached_ratio(data: ReportData) -> float | None:
    known = [stage for stage in data.stages if stage.cached_tokens is not None]
    prompt = sum(stage.prompt_tokens for stage in known)
    return sum(stage.cached_tokens or 0 for stage in known) / prompt if prompt else None


def _stage(data: ReportData, index: int) -> dict[str, Any]:
    stage = data.stages[index]
    cached = stage.cached_tokens or 0
    return {
        "stage": stage,
        "outcomes": _counts(stage.outcomes),
        "outcome_bar": Markup(charts.outcome_bar(stage.outcomes)),
        "token_bar": Markup(
            charts.token_bar(cached, stage.prompt_tokens - cached, stage.completion_tokens)
        ),
        "histogram": Markup(charts.histogram(stage.latencies_s)),
        "cached": _percent(
            None
            if stage.cached_tokens is None or not stage.prompt_tokens
            else stage.cached_tokens / stage.prompt_tokens
        ),
    }


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
        "rows": _rows(chunks),
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
        "value": _shown(field.value),
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


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_shown(item)}" for key, item in value.items())
    return str(value)


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
                    _shown(f.value),
                    words.place(f.citation.span) if f.citation else "",
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
