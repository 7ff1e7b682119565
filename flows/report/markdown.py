"""The report as Markdown, for places that show text: pull requests, chats, run pages."""

from __future__ import annotations

from flows.report.data import Citation, DocumentCard, ReportData, StageSummary
from flows.report.words import duration, place, verdict

_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>|#"})


def render_markdown(data: ReportData) -> str:
    """Return the report's figures and one section per document."""
    lines = [
        f"# {_text(data.title)}",
        "",
        f"{verdict(data.verdict)} in {duration(data.seconds)}. Run `{data.run_id}`, source"
        f" `{data.source}`, engine {_text(data.engine)} ({_text(data.model)}).",
        "",
        *[f"> {_text(note)}\n" for note in data.notes],
        "| stage | outcomes | modes | prompt tokens | cached | output tokens |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for stage in data.stages:
        outcomes = ", ".join(f"{count} {name}" for name, count in stage.outcomes.items())
        cached = "not reported" if stage.cached_tokens is None else f"{stage.cached_tokens:,}"
        lines.append(
            f"| {stage.name} | {outcomes} | {_text(_modes(stage))} | {stage.prompt_tokens:,} | {cached}"
            f" | {stage.completion_tokens:,} |"
        )
    for card in data.documents:
        lines += ["", *_document(card)]
    return "\n".join(lines) + "\n"


def _modes(stage: StageSummary) -> str:
    rest = (f"{name}: {told}" for name, told in stage.modes.items() if name != "observed")
    return "; ".join([stage.modes["observed"], *rest])


def _document(card: DocumentCard) -> list[str]:
    lines = [f"## {_text(card.path)}", ""]
    if card.error:
        lines.append(f"- {card.status}: {_text(card.error)}")
    for answer in card.answers:
        if answer.over != "document":
            continue
        if answer.error:
            lines.append(f"- {answer.stage}: {answer.outcome}: {_text(answer.error)}")
        lines += [
            f"- {field.name}: {_text(str(field.value))}{_where(field.citation)}"
            for field in answer.fields
        ]
    return lines


def _where(citation: Citation | None) -> str:
    return f" ({_text(place(citation.span))})" if citation else ""


def _text(value: str) -> str:
    return " ".join(value.split()).translate(_SPECIAL)
