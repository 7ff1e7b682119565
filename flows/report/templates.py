"""Runs the templates of reports: the shipped one and those that users write.

Both run in a sandbox, and a text from a document is never markup: values are cleaned and escaped on
their way out, so that a template has to ask for anything else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from config.errors import ConfigError
from config.load import TEMPLATE_FILES
from config.pipeline import ReportTemplate
from flows.report import words

SHIPPED = Path(__file__).parent / "templates" / "briefing"
_TRANSCRIPT = SHIPPED.parent / "transcript"

WORDS: Mapping[str, Callable[..., str]] = MappingProxyType({
    "claim_verdict": words.claim_verdict,
    "compact": words.compact,
    "counted": words.counted,
    "duration": words.duration,
    "place": words.place,
    "rests_on": words.rests_on,
    "shown": words.shown,
    "verdict": words.verdict,
})

# Besides control characters those that turn the direction of what follows them, and halves of surrogate pairs,
# which have no UTF-8.
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>|#~$"})
_ENTITY = re.compile(r"&(?=[#a-zA-Z])")
_AUTOLINK = re.compile(r"://|(?i:\bwww\.)")
_FORMULA = re.compile(r"[=+\-@]")


class TemplateFailed(Exception):
    """A template could not be rendered; the message says which, and why."""


def clean(text: str) -> str:
    """Return the text without control characters and marks that turn its direction."""
    return _UNSEEN.sub("", text)


def markdown_text(text: str) -> Markup:
    """Return a text in one line that Markdown shows as it is: no HTML, no links, no markup."""
    line = " ".join(clean(text).split()).translate(_MARKDOWN)
    line = _ENTITY.sub(r"\\&", line)
    return Markup(_AUTOLINK.sub(lambda found: f"{found.group()[:-1]}\\{found.group()[-1]}", line))


def markdown_cell(value: object) -> Markup:
    """Return a value as the cell of a Markdown table; a text is no formula where it is pasted."""
    line = markdown_text(words.shown(value))
    risky = _FORMULA.match(line) and not words.is_number(value)
    return Markup(f"'{line}") if risky else line


def markdown_code(text: str) -> Markup:
    """Return a text as Markdown code, which nothing in it can end."""
    line = " ".join(clean(text).split()).replace("`", "'").replace("|", "\\|")
    return Markup(f"`{line}`")


def _finalize_html(value: Any) -> Any:  # noqa: ANN401 - whatever a template puts out
    return clean(value) if type(value) is str else value


def _finalize_markdown(value: Any) -> Any:  # noqa: ANN401 - whatever a template puts out
    if isinstance(value, Markup) or type(value) in {int, float}:
        return value
    return markdown_text(str(value))


def render(key: str, own: ReportTemplate | None, values: Mapping[str, Any]) -> str:
    """Return the rendered template `html` or `markdown`, the user's own where there is one.

    Raises:
        TemplateFailed: It is the user's own, and cannot be rendered with these values.
    """
    name = TEMPLATE_FILES[key]
    text = getattr(own, key) if own is not None else None
    environment = _environment(key, {} if text is None else {name: text})
    if text is None:
        return environment.get_template(name).render(values, words=WORDS)
    try:
        return environment.get_template(name).render(values, words=WORDS)
    except (
        jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError,
        TypeError, ValueError,
    ) as exc:  # fmt: skip
        raise TemplateFailed(f"{name}: {type(exc).__name__}: {exc}") from exc


def render_transcript(values: Mapping[str, Any]) -> str:
    """Return the page of what an agent did, in the look of the shipped report."""
    styles = stylesheet(None) + Markup((_TRANSCRIPT / "page.css").read_text(encoding="utf-8"))
    page = _environment("html", {}).get_template("transcript/page.html.j2")
    return page.render(values, words=WORDS, stylesheet=styles)


def _environment(key: str, own: Mapping[str, str]) -> jinja2.Environment:
    shipped = jinja2.FileSystemLoader(SHIPPED)
    environment = ImmutableSandboxedEnvironment(
        # `{% extends "briefing/report.html.j2" %}` changes blocks of the shipped one.
        loader=jinja2.ChoiceLoader([
            jinja2.DictLoader(own),
            shipped,
            jinja2.PrefixLoader({
                "briefing": shipped,
                "transcript": jinja2.FileSystemLoader(_TRANSCRIPT),
            }),
        ]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=key == "markdown",
        undefined=jinja2.StrictUndefined,
        finalize=_finalize_html if key == "html" else _finalize_markdown,
    )
    if key == "markdown":
        environment.filters["cell"] = markdown_cell
        environment.filters["code"] = markdown_code
    return environment


def stylesheet(own: ReportTemplate | None) -> Markup:
    """Return the page's CSS; its author is trusted, documents have no part in it."""
    text = own.stylesheet if own is not None else None
    return Markup(text or (SHIPPED / TEMPLATE_FILES["stylesheet"]).read_text(encoding="utf-8"))


def write_template(folder: Path) -> list[Path]:
    """Copy the shipped template into `folder`, to be changed there, and return its files.

    Raises:
        ConfigError: One of the files is there already, or the folder cannot be written.
    """
    files = [folder / name for name in TEMPLATE_FILES.values()]
    held = [file for file in files if file.exists()]
    if held:
        raise ConfigError(
            f"--write-template: {str(held[0])!r} is there already; name another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            file.write_bytes((SHIPPED / file.name).read_bytes())
    except OSError as exc:
        raise ConfigError(f"--write-template: {str(folder)!r}: {exc.strerror}") from exc
    return files
