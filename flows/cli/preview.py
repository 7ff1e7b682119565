"""The command `plan`: what a run would take, before it is paid for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from config.errors import ConfigError
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
    stderr,
)

if TYPE_CHECKING:
    from flows.run.job import Job


NO_SINK = "(none)"
"""Stands for the sink of a plan that names none; nothing is written there."""


@app.command(rich_help_panel="Prepare")
def plan(
    pipeline: PipelineArgument,
    source: SourceOption = None,
    sink: SinkOption = None,
    engine: EngineOption = None,
    mode: ModeOption = None,
    limit: LimitOption = None,
    sample: Annotated[
        int, typer.Option("--sample", min=1, help="Most documents to read for the estimate.")
    ] = 24,
    whole: Annotated[
        bool, typer.Option("--all", help="Read all documents: no estimate of sizes.")
    ] = False,
    pilot: Annotated[
        int | None,
        typer.Option(
            "--pilot",
            min=1,
            help="Ask about the first N documents now, so that the estimate rests on answers.",
        ),
    ] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", help="Write the graph of the stages to this file.")
    ] = None,
    settings: SetOption = None,
    as_json: AsJson = False,
) -> None:
    """Show the graph of a run, and estimate documents, tokens, cost and time, before anything is sent.

    With --pilot the first documents are asked about: their answers stay in the sink, and the run that
    follows does not pay for them again.

    Examples:
      headrace plan pipeline.yaml

      headrace plan pipeline.yaml --pilot 5

      headrace plan pipeline.yaml --svg graph.svg

      headrace plan demo --source s3://lake/in --engine moonshot --all --json
    """
    from flows.estimate import estimate
    from flows.graph_drawing import draw_svg, draw_text
    from flows.run.job import Options, job_of, load_config

    with exit_codes():
        options = Options(
            source=source, sink=sink, engine=engine, mode=mode, settings=tuple(settings or ())  # type: ignore[arg-type]
        )  # fmt: skip
        config = load_config(pipeline, options)
        config = config.model_copy(update={"sink": config.sink or NO_SINK})
        if svg is not None:
            _write(svg, draw_svg(config))
            note(f"wrote {svg}")
        job = job_of(config, origin=pipeline, limit=limit)
        asked = pilot_of(job, pilot, as_json=as_json) if pilot is not None else None
        planned = estimate(job, sample=None if whole else sample, notify=note, pilot=asked)
        if as_json:
            print_json(planned)
            return
        Console(highlight=False).print(draw_text(config), markup=False, soft_wrap=True)
        _print_plan(planned)


def pilot_of(job: Job, num_documents: int, *, as_json: bool) -> Mapping[str, Any]:
    """Return what a run on the first documents took.

    Raises:
        ConfigError: There is no sink to keep its answers in.
    """
    from flows.pilot import run_pilot
    from flows.run.progress import Progress
    from flows.terminal import ProgressBar

    if job.pipeline.sink == NO_SINK:
        raise ConfigError("--pilot keeps its answers for the run that follows; give --sink")
    with ProgressBar(stderr(), enabled=not as_json) as bar:
        return run_pilot(job, num_documents, Progress(bar.show), bar.note)


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
    names = ["requests", "prompt_tokens", "planned_cached_tokens", "output_tokens_at_most"]
    shown = ["stage", "over", "requests", "prompt tokens", "from cache", "output at most"]
    if any(stage["calibrated_by"] for stage in planned["stages"]):
        names.append("output_tokens_expected")
        shown.append("output expected")
    stages = Table()
    for name in shown:
        stages.add_column(name, justify="left" if name in {"stage", "over"} else "right")
    for stage in planned["stages"]:
        stages.add_row(stage["stage"], stage["over"], *(_count(stage[name]) for name in names))
    stages.add_section()
    stages.add_row("all", "", *(_count(planned["total"][name]) for name in names))
    console.print(stages)
    for line in _plan_lines(planned):
        console.print(line, markup=False, soft_wrap=True)
    if "sensitive" in planned:
        console.rule("sensitive documents, and what rests on all of them", align="left")
        _print_plan(planned["sensitive"])


def _plan_lines(planned: Mapping[str, Any]) -> list[str]:
    from flows.run.prepare import AS_GIVEN

    lines = [
        f"engine  {planned['model']} ({planned['engine']}); chunks of at most"
        f" {planned['chunk_max_tokens']:,} tokens, counted {planned['tokens_counted']}"
    ]
    lines += _capacity_lines(planned["capacity"])
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
    lines += [line for stage in planned["stages"] for line in _approval_lines(stage)]
    lines += [
        f"assumed {stage['stage']}: {assumed}"
        for stage in planned["stages"]
        for assumed in stage["assumed"]
    ]
    lines += _price_lines(planned)
    lines += [line for finding in planned["layout"] for line in _layout_lines(finding)]
    lines += [f"turned down: {path}: {why}" for path, why in planned["rejected"].items()]
    return lines


def _approval_lines(stage: Mapping[str, Any]) -> Iterator[str]:
    if stage["approval"]:
        yield f"waits   {stage['stage']}: until a person agrees to its requests, in each run"
    if stage["approve_calls"]:
        tools = ", ".join(stage["approve_calls"])
        yield f"waits   {stage['stage']}: until a person agrees to a call, at each one of {tools}"


def _capacity_lines(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return []
    if not found["fits"]:
        return [f"holds   {found['reason']}"]
    where = "the engine's" if found["gpus"] is None else f"{found['gpus']}:"
    return [
        f"holds   {where} KV cache has {found['kv_tokens']:,} tokens, {found['requests_at_once']:,} requests of"
        f" {found['request_tokens']:,} (the longest chunk, question and answer) at once"
    ]


def _price_lines(planned: Mapping[str, Any]) -> list[str]:
    lines = [_basis(planned)]
    cost, usd = planned["cost_usd"], planned["budget"]["usd"]
    if cost is None:
        lines.append("cost    not known: the profile has no prices")
    else:
        expected = cost["expected"]
        likely = "" if expected is None else f"about {_dollars(expected)}; "
        lines.append(
            f"cost    {likely}at most {_dollars(cost['without_cache'])};"
            f" {_dollars(cost['with_planned_cache'])} with the planned cache hits"
        )
    most, likely_s = planned["seconds_at_most"], planned["seconds_expected"]
    if most is None and likely_s is None:
        lines.append(
            "time    not known: the profile has no throughput; --pilot measures it, or a run with --limit"
        )
    else:
        told = [f"about {_duration(likely_s)}"] if likely_s is not None else []
        told += [f"at most about {_duration(most)}"] if most is not None else []
        lines.append(f"time    {'; '.join(told)}, reading apart")
    if cost is not None and usd is not None:
        needed = cost["with_planned_cache"] if cost["expected"] is None else cost["expected"]
        if needed > usd:
            lines.append(f"budget  {_dollars(usd)} may not do; the run would stop there, resumable")
    return lines


def _basis(planned: Mapping[str, Any]) -> str:
    """Return what the estimate of the answers rests on."""
    pilot = planned["pilot"]
    known = [stage["calibrated_by"] for stage in planned["stages"] if stage["mode"] != "sql"]
    if pilot is not None:
        price = "" if pilot["cost_usd"] is None else f", {pilot['cost_usd']:.4f} USD"
        told = f"pilot   {pilot['documents']:,} documents, {pilot['tokens']:,} tokens{price}"
        told += f", {_duration(pilot['seconds'])}; their answers are kept"
        if pilot["verdict"] != "complete":
            told += f" ({pilot['verdict'].replace('_', ' ')})"
        return told
    if not any(known):
        return (
            "output  only the limit is known: no answers yet; --pilot 5 asks about five documents"
        )
    missing = "" if all(known) else "; of some stages there are none"
    return f"output  expected by {sum(known):,} records in the sink{missing}"


def _dollars(usd: float) -> str:
    return f"{usd:,.2f} USD" if usd == 0 or usd >= 1 else f"{usd:.4f} USD"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _layout_lines(finding: Mapping[str, Any]) -> list[str]:
    usd = finding["usd_lost"]
    price = "" if usd is None else f" ({_dollars(usd)})"
    when = "once edited" if finding["kind"] == "volatile" else "computed again"
    return [
        f"layout  {finding['where']}: {finding['what']}",
        f"        {finding['tokens_lost']:,} prompt tokens{price} {when}; {finding['advice']}",
    ]
