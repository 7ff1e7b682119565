"""`headrace ask`: one question as a pipeline of its own, and its answers as a table."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from config.errors import ConfigError
from config.load import load_profile, pipeline_from
from config.pipeline import DEFAULT_ENGINE
from config.shorthand import parse_fields
from connectors.sinks.parquet import span_from_row
from connectors.storage import open_source
from flows.report.words import counted, place, unit_name
from flows.run.globs import glob_regex
from flows.run.job import Job, Options, is_inside, job_of
from flows.run.record_tables import find_record_tables
from flows.run.resume import manifest_path
from flows.terminal import print_facts, summary_lines

STAGE = "answer"
MAX_SHOWN_ROWS = 50

_MAX_ROWS_PER_ANSWER = 30
_TOKENS_PER_ANSWER = 400
_MAX_LISTED = 10_000
"""Files looked at before a run for one that `include` fits: ten requests to a bucket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question about a corpus."""

    text: str
    source: str
    fields: str | None = None
    many: bool = False
    """Whether one chunk may give several rows."""
    include: tuple[str, ...] = ()
    chunks: int | None = None
    """Most chunks of one document to ask; None: all."""


def job_for(question: Question, options: Options, run_id: str) -> Job:
    """Return the job that asks the question of every chunk of every document.

    Raises:
        ConfigError: Question and source are swapped, a field is wrong, `include` fits no file, or
            the sink lies in the source.
    """
    _check_order(question)
    source, include = _source_and_globs(question)
    if question.include:
        _check_include(source, include)
    profile = load_profile(options.engine or DEFAULT_ENGINE)
    schema = parse_fields(question.fields or profile.ask_fields, "--fields")
    prompt = f"{_as_template(question.text)}\n{_wanted(schema, many=question.many)}"
    if question.many:
        rows = {"type": "array", "items": schema, "maxItems": _MAX_ROWS_PER_ANSWER}
        schema = {
            "type": "object",
            "properties": {"rows": rows},
            "required": ["rows"],
            "additionalProperties": False,
        }
    identity = [question.text, source, include, schema, question.chunks]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    data = {
        "name": f"ask_{digest}",
        "source": source,
        "sink": options.sink or _default_sink(question.text, source, digest),
        "include": list(include),
        "chunk": {"max_per_document": question.chunks},
        "budget": {
            "usd": options.budget_usd,
            "tokens": options.budget_tokens,
            "gpu_seconds": options.budget_gpu_seconds,
        },
        "stages": [
            {
                "name": STAGE,
                "over": "chunk",
                "prompt": prompt,
                "output": schema,
                "max_output_tokens": _TOKENS_PER_ANSWER * (4 if question.many else 1),
            }
        ],
        "report": {"title": question.text.strip()},
    }
    config = pipeline_from(
        data, Path("headrace ask"), {"engine": options.engine, "cache": options.cache}
    )
    return job_of(config, origin="headrace ask", limit=options.limit, run_id=run_id)


def _check_order(question: Question) -> None:
    """Check that there is a question, and that it comes first.

    Raises:
        ConfigError: It is empty, or is a place while the source is none.
    """
    if not question.text.strip():
        raise ConfigError('the question is empty; ask one, such as "What is it about?"')
    if _is_place(question.text) and not _is_place(question.source):
        command = shlex.join(["headrace", "ask", question.source, question.text])
        raise ConfigError(
            f"the question {question.text!r} is a place, and the source {question.source!r} is none;"
            f" the question comes first: {command}"
        )


def _is_place(text: str) -> bool:
    """Tell whether the text is an address, or names a file or folder that is there."""
    if re.match(r"[a-z0-9]+://", text):
        return True
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        # Too long for a path, or `~name` of nobody.
        return False


def _check_include(source: str, include: Sequence[str]) -> None:
    """Check that a file is to be read, by a look at the first ones.

    Raises:
        ConfigError: No glob fits any, and there are no more.
    """
    listed = islice(open_source(source).list(), _MAX_LISTED)
    paths = []
    for item in listed:
        if any(re.fullmatch(glob_regex(glob), item.path) for glob in include):
            return
        paths.append(item.path)
    # Of an empty source, and one that holds more, the run itself says what it finds.
    if not paths or len(paths) == _MAX_LISTED:
        return
    deep = [f"**/{glob}" for glob in include]
    fits = [glob for glob in deep if any(re.fullmatch(glob_regex(glob), path) for path in paths)]
    what = ", ".join(repr(glob) for glob in include)
    mend = (
        f"`*` stays in one folder, `**/` goes through all: --include {fits[0]!r}"
        if fits
        else "give another glob, or leave it out to read all"
    )
    raise ConfigError(
        f"--include {what} fits no file of source {source!r}, which holds"
        f" {counted(len(paths), 'file')}, such as {paths[0]!r}; {mend}"
    )


def _source_and_globs(question: Question) -> tuple[str, tuple[str, ...]]:
    """Return the source and what of it to read; a single file is its folder with one glob."""
    if urlsplit(question.source).scheme in {"", "file"}:
        file = Path(question.source.removeprefix("file://")).expanduser()
        if file.is_file():
            return str(file.parent), (file.name,)
    return question.source, question.include or ("**/*",)


def _default_sink(text: str, source: str, digest: str) -> str:
    """Return a folder for the answers: below the current one, or beside a source that holds it."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    name = "-".join([*words[:5], digest])
    here = Path.cwd()
    if is_inside(str(here), source):
        top = Path(source.removeprefix("file://")).expanduser().resolve()
        here = top.parent
    return str(here / "headrace-answers" / name)


def _as_template(text: str) -> str:
    """Return a template that renders to the text: braces of a question are no template's."""
    return text.strip().replace("{", "{{ '{' }}")


def _wanted(schema: Mapping[str, Any], *, many: bool) -> str:
    """Return a sentence that names the fields, for a model that is not shown the schema."""
    fields = ", ".join(_in_words(name, spec) for name, spec in schema["properties"].items())
    if many:
        return f"Answer with one row for each that the excerpt holds, each with: {fields}."
    return f"Answer with: {fields}."


def _in_words(name: str, spec: Mapping[str, Any]) -> str:
    kinds = spec.get("type", "string")
    optional = "null" in kinds or None in (spec.get("enum") or [])
    notes = {
        "segment-label": "the line that says so",
        "date": "as YYYY-MM-DD",
        "decimal": "a number",
    }
    says = notes.get(str(spec.get("format")), "")
    if "enum" in spec:
        says = "one of " + ", ".join(str(choice) for choice in spec["enum"] if choice is not None)
    says += ("; " if says else "") + "null if the excerpt does not say" if optional else ""
    return f"{name} ({says})" if says else name


def answer_rows(job: Job) -> list[dict[str, Any]]:
    """Return the answers, one row each: document, place, then the fields; in reading order.

    Unanswered chunks are rows too, with their `outcome` and `error`.
    """
    lake = job.open_lake()
    manifest = lake.find_json(manifest_path(job.run_id))
    table = find_record_tables(lake, job.pipeline.stages, manifest)[STAGE]
    records, chunks = lake.read_table(table), lake.read_table("chunks")
    if records is None:
        return []
    places = {} if chunks is None else {c["chunk_key"]: c["segments"] for c in chunks.to_dicts()}
    names = list(job.pipeline.stages[0].output["properties"])
    rows = []
    for record in sorted(records.to_dicts(), key=lambda r: (str(r["path"]), str(r["unit"]))):
        head = {"document": record["path"], "place": _where(record, places)}
        if record["outcome"] != "succeeded":
            rows.append({**head, "outcome": record["outcome"], "error": record["error"]})
            continue
        found = record["rows"] if names == ["rows"] else [{name: record[name] for name in names}]
        rows += [{**head, **row} for row in found or ()]
    return rows


def _where(record: Mapping[str, Any], places: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    cited = list(record["citations"] or [])
    if len(cited) == 1:
        return place(span_from_row(cited[0]["span"]))
    segments = places.get(str(record["chunk_key"]), ())
    return unit_name([span_from_row(segment["span"]) for segment in segments])


def print_answers(rows: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any]) -> None:
    """Print the answers as a table, and what became of everything else."""
    console = Console(highlight=False)
    answered = [row for row in rows if "outcome" not in row]
    shown = [row for row in answered if any(_says(row, name) for name in _fields(row))]
    if shown:
        table = Table(show_lines=False, row_styles=("", "dim"))
        for name in shown[0]:
            table.add_column(name, overflow="fold")
        for row in shown[:MAX_SHOWN_ROWS]:
            table.add_row(*(cell(value) for value in row.values()))
        console.print(table)
    lines = {}
    if len(shown) > MAX_SHOWN_ROWS:
        lines["shown"] = (
            f"{MAX_SHOWN_ROWS} of {len(shown):,} rows; all: headrace records {manifest['run_id']}"
        )
    if len(answered) > len(shown):
        lines["empty"] = f"{counted(len(answered) - len(shown), 'chunk')} without an answer"
    skipped = Counter(row["error"] for row in rows if row.get("outcome") == "skipped")
    for number, (why, count) in enumerate(skipped.most_common(3), start=1):
        lines["skipped" + " " * (number - 1)] = f"{count:,} x {why}"
    print_facts(lines | summary_lines(manifest))


def _fields(row: Mapping[str, Any]) -> list[str]:
    return [name for name in row if name not in {"document", "place"}]


def _says(row: Mapping[str, Any], name: str) -> bool:
    return row[name] not in (None, "", [])


def cell(value: object) -> str:
    """Return a value as a cell of a table in the terminal."""
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(cell(item) for item in value)
    text = f"{value:f}".rstrip("0").rstrip(".") if type(value).__name__ == "Decimal" else str(value)
    return text.replace("[", "\\[")
