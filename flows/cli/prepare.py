"""Commands before a run: init, try, plan."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from config.errors import ConfigError
from config.load import REPOSITORY
from flows.cli.app import (
    AsJson,
    EngineOption,
    LimitOption,
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


@app.command(rich_help_panel="Prepare")
def plan(
    pipeline: PipelineArgument,
    source: SourceOption = None,
    engine: EngineOption = None,
    mode: ModeOption = None,
    limit: LimitOption = None,
    sample: Annotated[
        int, typer.Option("--sample", min=1, help="Most documents to read for the estimate.")
    ] = 24,
    whole: Annotated[
        bool, typer.Option("--all", help="Read all documents: no estimate of sizes.")
    ] = False,
    svg: Annotated[
        Path | None, typer.Option("--svg", help="Write the graph of the stages to this file.")
    ] = None,
    settings: SetOption = None,
    as_json: AsJson = False,
) -> None:
    """Show the graph of a run, and estimate documents, tokens, cost and time, before anything is sent.

    Examples:
      headrace plan pipeline.yaml

      headrace plan pipeline.yaml --svg graph.svg

      headrace plan demo --source s3://lake/in --engine moonshot --all --json
    """
    from flows.estimate import estimate
    from flows.graph_drawing import draw_svg, draw_text
    from flows.run.job import Options, job_of, load_config

    with exit_codes():
        options = Options(
            source=source, engine=engine, mode=mode, settings=tuple(settings or ())  # type: ignore[arg-type]
        )  # fmt: skip
        config = load_config(pipeline, options)
        config = config.model_copy(update={"sink": config.sink or "(none)"})
        if svg is not None:
            _write(svg, draw_svg(config))
            note(f"wrote {svg}")
        job = job_of(config, origin=pipeline, limit=limit)
        planned = estimate(job, sample=None if whole else sample, notify=note)
        if as_json:
            print_json(planned)
            return
        Console(highlight=False).print(draw_text(config), markup=False, soft_wrap=True)
        _print_plan(planned)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"{file} cannot be written: {exc.strerror}; check the path") from exc


def _print_plan(planned: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    documents = Table(title=f"{planned['pipeline']}: {planned['source']}", title_justify="left")
    for name in ("type", "documents", "MB", "read for this", "chunks", "tokens"):
        documents.add_column(name, justify="left" if name == "type" else "right")
    for group in planned["documents"]:
        documents.add_row(
            group["type"],
            f"{group['count']:,}",
            f"{group['bytes'] / 1e6:.1f}",
            f"{group['sampled']:,}",
            f"{group['chunks']:,}",
            f"{group['tokens']:,}",
        )
    console.print(documents)
    stages = Table()
    for name in ("stage", "over", "requests", "prompt tokens", "from cache", "output at most"):
        stages.add_column(name, justify="left" if name in {"stage", "over"} else "right")
    names = ("requests", "prompt_tokens", "planned_cached_tokens", "output_tokens_at_most")
    for stage in planned["stages"]:
        stages.add_row(stage["stage"], stage["over"], *(f"{stage[name]:,}" for name in names))
    stages.add_section()
    stages.add_row("all", "", *(f"{planned['total'][name]:,}" for name in names))
    console.print(stages)
    for line in _plan_lines(planned):
        console.print(line, markup=False, soft_wrap=True)


def _plan_lines(planned: Mapping[str, Any]) -> list[str]:
    from flows.run.prepare import AS_GIVEN

    lines = [
        f"engine  {planned['model']} ({planned['engine']}); chunks of at most"
        f" {planned['chunk_max_tokens']:,} tokens, counted {planned['tokens_counted']}"
    ]
    lines += [
        f"mode    {stage['stage']}: {stage['mode']}; {stage['mode_reason']}"
        for stage in planned["stages"]
        if stage["mode"] != "instant" or stage["mode_reason"] != AS_GIVEN
    ]
    lines += [
        f"again   {stage['stage']}: at most {stage['escalated_at_most']:,} questions a second time, in"
        " thinking"
        for stage in planned["stages"]
        if stage["escalated_at_most"]
    ]
    lines += [
        f"assumed {stage['stage']}: {assumed}"
        for stage in planned["stages"]
        for assumed in stage["assumed"]
    ]
    cost = planned["cost_usd"]
    if cost is None:
        lines.append("cost    not known: the profile has no prices")
    else:
        lines.append(
            f"cost    at most {cost['without_cache']:.2f} USD;"
            f" {cost['with_planned_cache']:.2f} USD with the planned cache hits"
        )
    seconds = planned["seconds_at_most"]
    lines.append(
        "time    not known: the profile has no throughput; a run with --limit measures it"
        if seconds is None
        else f"time    at most about {seconds / 60:.0f} min, reading apart"
        if seconds >= 90
        else f"time    at most about {seconds:.0f} s, reading apart"
    )
    usd = planned["budget"]["usd"]
    if usd is not None and cost is not None and cost["with_planned_cache"] > usd:
        lines.append(f"budget  {usd:.2f} USD may not do; the run would stop there, resumable")
    cache = planned["cache"]
    if cache is not None and cache["larger_of_sampled"]:
        lines.append(
            f"cache   {cache['larger_of_sampled']:,} of the chunks read, of up to"
            f" {cache['largest_chunk_tokens']:,} tokens, are larger than the engine's KV cache of"
            f" {cache['tokens']:,} tokens holds beside a question: each question computes them again;"
            " lower chunk.max_tokens"
        )
    lines += [f"turned down: {path}: {why}" for path, why in planned["rejected"].items()]
    return lines
