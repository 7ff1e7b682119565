"""Commands before a run: init, try."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from config.errors import ConfigError
from config.load import REPOSITORY
from flows.cli.app import (
    AsJson,
    EngineOption,
    ModeOption,
    PipelineArgument,
    SetOption,
    SinkOption,
    SourceOption,
    app,
    exit_codes,
    note,
    print_json,
    print_lines,
)

STARTER = REPOSITORY / "config" / "starter.yaml"

_MAX_LINES = 40


@app.command(rich_help_panel="Prepare")
def init(
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path("pipeline.yaml"),
    source: SourceOption = None,
    sink: SinkOption = None,
    engine: EngineOption = None,
    as_json: AsJson = False,
) -> None:
    """Write a commented pipeline that runs.

    Examples:
      headrace init

      headrace init invoices.yaml --source s3://lake/invoices --sink s3://lake/answers
    """
    with exit_codes():
        text = STARTER.read_text(encoding="utf-8")
        for key, value in (("source", source), ("sink", sink), ("engine", engine)):
            if value is not None:
                # JSON strings are YAML strings; the replacement's backslashes are its own.
                line = f"{key}: {json.dumps(value)}".replace("\\", r"\\")
                text = re.sub(rf"^{key}: .*$", line, text, flags=re.MULTILINE)
        text = text.replace("pipeline.yaml", file.name)
        _write_new(file, text)
        if as_json:
            print_json({"pipeline": str(file)})
            return
        print_lines([
            f"wrote {file}",
            f"next: headrace try {file} --document <one of your files>",
            f"then: headrace plan {file}   and   headrace run {file}",
        ])


def _write_new(file: Path, text: str) -> None:
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError as exc:
        raise ConfigError(f"{file} exists already; give another name: headrace init NAME") from exc
    except OSError as exc:
        raise ConfigError(f"{file} cannot be written: {exc.strerror}; check the path") from exc


@app.command("try", rich_help_panel="Prepare")
def try_(
    pipeline: PipelineArgument,
    document: Annotated[
        str, typer.Option("--document", "-d", help="Path below the source, or a local file.")
    ],
    stage: Annotated[str | None, typer.Option("--stage", help="Show this stage only.")] = None,
    chunk: Annotated[int, typer.Option("--chunk", min=0, help="Show this chunk, from 0.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be sent; send nothing.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Show long prompts whole, not their two ends.")
    ] = False,
    source: SourceOption = None,
    engine: EngineOption = None,
    mode: ModeOption = None,
    settings: SetOption = None,
    as_json: AsJson = False,
) -> None:
    """Show for one document what is sent, what comes back, and what it costs.

    Nothing is written to the sink.

    Examples:
      headrace try pipeline.yaml --document reports/2031.pdf --dry-run

      headrace try demo --document ./invoice.pdf --stage digest --engine moonshot
    """
    from flows.run.job import Options, load_config
    from flows.trial import Trial, try_document

    with exit_codes():
        options = Options(
            source=source, engine=engine, mode=mode, settings=tuple(settings or ())  # type: ignore[arg-type]
        )  # fmt: skip
        trial = Trial(
            pipeline=load_config(pipeline, options), document=document, stage=stage, chunk=chunk
        )
        shown = try_document(trial, dry_run=dry_run, notify=note)
        if as_json:
            print_json(shown)
        else:
            _print_trial(shown, full=full)


def _print_trial(shown: Mapping[str, Any], *, full: bool) -> None:
    from flows.report.words import counted

    head = (
        f"{shown['document']}: {shown['status']}, {counted(shown['chunks'], 'chunk')};"
        f" {shown['model']} ({shown['engine']}), context {shown['context_tokens']:,} tokens,"
        f" counted {shown['tokens_counted']}"
    )
    console = Console(highlight=False)
    console.print(head, markup=False, soft_wrap=True)
    if shown["error"]:
        console.print(f"  {shown['error']}", markup=False, soft_wrap=True)
    for request in shown["requests"]:
        console.rule(f"[bold]{request['stage']}[/] {request.get('unit', '')}", align="left")
        for line in _request_lines(request, full=full):
            console.print(line, markup=False, soft_wrap=True)
    if "spent" in shown:
        usd = shown["spent"]["usd"]
        price = "no price known" if usd is None else f"{usd:.4f} USD"
        console.rule()
        console.print(f"whole document: {shown['spent']['tokens']:,} tokens, {price}")


def _request_lines(request: Mapping[str, Any], *, full: bool) -> list[str]:
    from flows.report.words import counted

    if "waits_for" in request:
        return [f"asked after {', '.join(request['waits_for'])}; without --dry-run it is shown"]
    if "not_sent" in request:
        return [f"not sent: {request['not_sent']}"]
    lines: list[str] = []
    for message in request["messages"]:
        images = f", {counted(message['images'], 'image')}" if message.get("images") else ""
        lines += [f"--- {message['role']}{images}", *_shorten(message["content"], full=full)]
    tokens, shared = request["tokens"], request["shared"]
    lines += [
        "--- tokens",
        f"instructions {tokens['instructions']:,} (shared {shared['instructions']})",
        f"material {tokens['material']:,} (shared {shared['material']})",
        f"question {tokens['question']:,}, answer at most {tokens['answer_at_most']:,}",
    ]
    if "outcome" in request:
        cached = request["cached_tokens"]
        told = "not told" if cached is None else f"{cached:,}"
        price = request["cost_usd"]
        lines += [
            f"--- answer: {request['outcome']} in {request['seconds']:.1f} s,"
            f" {request['prompt_tokens']:,} prompt tokens ({told} cached),"
            f" {request['completion_tokens']:,} output tokens"
            + ("" if price is None else f", {price:.4f} USD"),
            json.dumps(request["answer"], ensure_ascii=False, indent=2, default=str)
            if request["answer"] is not None
            else str(request["error"]),
        ]
    return lines


def _shorten(text: str, *, full: bool) -> list[str]:
    lines = text.rstrip("\n").split("\n")
    if full or len(lines) <= _MAX_LINES:
        return lines
    half = _MAX_LINES // 2
    hidden = len(lines) - 2 * half
    return [*lines[:half], f"    ... {hidden} lines more; --full shows them", *lines[-half:]]
