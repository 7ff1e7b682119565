"""A report's data with everything in it that can go wrong, for tests and for looking at."""

from collections import Counter

import cv2
import numpy as np

from connectors.document import Span
from flows.report.data import Answer, Citation, DocumentCard, Field, Flaw, ReportData, StageSummary

HOSTILE = '<script>alert("x")</script></style>\x00\x07 "quoted" & \u05e9\u05dc\u05d5\u05dd'


def jpeg(width, height):
    pixels = np.full((height, width, 3), 240, dtype=np.uint8)
    cv2.putText(pixels, "page", (10, height // 2), cv2.FONT_HERSHEY_SIMPLEX, 1, (20, 60, 90), 2)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def citation(quote, span, preview=None):
    return Citation(
        quote=quote, span=span, tier="native", before=("before",), after=("after",), preview=preview
    )


def card(path, *answers, status="read", error=None, preview=None):
    return DocumentCard(
        path=path,
        uri=f"s3://lake/{path}",
        media_type="application/pdf",
        status=status,
        error_class="damaged" if error else None,
        error=error,
        num_chunks=len(answers),
        num_tokens=1234,
        tiers=("native", "ocr"),
        answers=answers,
        preview=preview,
    )


def flaw(card):
    return Flaw(
        path=card.path, uri=card.uri, status=card.status,
        error_class=card.error_class, error=card.error, failed_units=(),
    )  # fmt: skip


def answer(stage, over, *fields, outcome="succeeded", error=None):
    return Answer(
        stage=stage,
        over=over,
        unit="page 1",
        outcome=outcome,
        error=error,
        saw="text",
        fields=fields,
    )


def sample(**changes):
    page = Span(page=1, bbox=(0.1, 0.2, 0.9, 0.3))
    quoted = Field(name="title", value="A title", citation=citation("A title", page, "doc-p1"))
    summary = Field(name="summary", value=HOSTILE, citation=citation(HOSTILE, page, "doc-p1"))
    topic = Field(name="topic", value="nature", citation=None)
    row = Field(
        name="title", value="12,3", citation=citation("12,3", Span(sheet="S", cells="A2:B2"))
    )
    documents = (
        card(
            "a.pdf",
            answer("merge", "document", quoted, summary),
            answer("topic", "chunk", topic),
            preview="doc-p1",
        ),
        card("tables/b.xlsx", answer("merge", "document", row), preview="missing-key"),
        card("c.pdf", answer("merge", "document", outcome="failed", error="no answer in time")),
        card("d.pdf", status="rejected", error=HOSTILE),
        card("very/" + "long/" * 60 + "path.pdf"),
    )
    values = {
        "title": "A sample",
        "run_id": "20260101T000000Z-abcd",
        "source": "s3://lake/in",
        "sink": "s3://lake/out",
        "engine": "embedded",
        "model": "m",
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 83.5,
        "verdict": "complete",
        "documents": documents,
        "stages": (
            StageSummary(
                name="merge", over="document", mode="instant",
                modes={"observed": "1 instant, 1 thinking", "escalated": "1 of 3 (33%)"}, outcomes={"succeeded": 2, "failed": 1},
                prompt_tokens=1000, cached_tokens=400, completion_tokens=60, latencies_s=(0.5, 1.2, 9.0),
            ),
            StageSummary(
                name="topic", over="chunk", mode="instant", modes={"observed": "no answer"}, outcomes={"skipped": 1},
                prompt_tokens=0, cached_tokens=None, completion_tokens=0, latencies_s=(),
            ),
        ),
        "planned_cached_ratio": 0.5,
        "notes": ("A note.",),
        "previews": {"doc-p1": jpeg(300, 400)},
        "versions": {"headrace": "0.1.0"},
    }  # fmt: skip
    values |= changes
    shown = values["documents"]
    found = {
        "flawed": tuple(flaw(one) for one in shown if one.status != "read"),
        "statuses": dict(Counter(one.status for one in shown)),
    }
    return ReportData(**(found | values))
