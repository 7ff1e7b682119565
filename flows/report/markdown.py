"""The report as Markdown, for places that show text: pull requests, chats, run pages."""

from __future__ import annotations

from typing import Any

from config.pipeline import ReportTemplate
from flows.report.data import ReportData, StageSummary
from flows.report.templates import render
from flows.report.words import skip_word


def render_markdown(data: ReportData, own: ReportTemplate | None = None) -> str:
    """Return the answers, the report's figures and one section per document.

    Every text from a document is escaped.

    Raises:
        TemplateFailed: The user's own template cannot be rendered.
    """
    return render("markdown", own, {"data": data, "stages": [_stage(s) for s in data.stages]})


def _stage(stage: StageSummary) -> dict[str, Any]:
    return {
        "name": stage.name,
        "outcomes": ", ".join(f"{count} {name}" for name, count in stage.outcomes.items()),
        "modes": _modes(stage),
        "claims": ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in stage.claims.items()),
        "skipped": ", ".join(f"{n:,} {skip_word(why)}" for why, n in stage.skipped.items()),
    }


def _modes(stage: StageSummary) -> str:
    rest = (f"{name}: {told}" for name, told in stage.modes.items() if name != "observed")
    return "; ".join([stage.modes.get("observed", stage.mode), *rest])
