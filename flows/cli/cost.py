"""The command `cost`: one corpus on several hosts and in several modes, and whether own GPUs pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from config.errors import ConfigError
from flows.cli.app import (
    AsJson,
    EngineOption,
    LimitOption,
    PipelineArgument,
    SetOption,
    SinkOption,
    SourceOption,
    app,
    complete_profiles,
    exit_codes,
    note,
    print_json,
    print_verdict,
)
from flows.cli.preview import NO_SINK, pilot_of


@app.command(rich_help_panel="Prepare")
def cost(
    pipeline: PipelineArgument,
    source: SourceOption = None,
    sink: SinkOption = None,
    engine: EngineOption = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            help="Profile or address to compare; as often as needed. Else moonshot and kimi-k2.5, or what"
            " policy.on_premises names where all documents are sensitive.",
            autocompletion=complete_profiles,
        ),
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option("--mode", help="Mode to compare; as often as needed. Else all of them."),
    ] = None,
    gpu_hour: Annotated[
        float | None,
        typer.Option(
            "--gpu-hour", min=0.0, help="Price of one own GPU for an hour, in US dollars."
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(
            "--gpus",
            help="Own GPUs, such as 8xH200; `found`: those of this machine. Else the profile's.",
        ),
    ] = None,
    throughput: Annotated[
        str | None,
        typer.Option(
            "--throughput",
            help="PROMPT,OUTPUT: tokens a second that own GPUs compute and generate.",
        ),
    ] = None,
    documents: Annotated[
        int | None, typer.Option("--documents", min=1, help="Price so many, by those listed.")
    ] = None,
    turns: Annotated[
        int, typer.Option("--turns", min=1, help="Turns an agent is taken to need for a question.")
    ] = 10,
    limit: LimitOption = None,
    sample: Annotated[
        int, typer.Option("--sample", min=1, help="Most documents to read for the estimate.")
    ] = 24,
    whole: Annotated[bool, typer.Option("--all", help="Read all documents.")] = False,
    pilot: Annotated[
        int | None,
        typer.Option("--pilot", min=1, help="Ask about the first N documents now, for real."),
    ] = None,
    settings: SetOption = None,
    as_json: AsJson = False,
) -> None:
    """Compare what a corpus costs by host and mode, and tell from which volume own GPUs pay.

    Nothing is sent, but by --pilot.

    Examples:
      headrace cost pipeline.yaml --gpu-hour 3.50

      headrace cost pipeline.yaml --documents 1000000 --mode instant --gpu-hour 3.50

      headrace cost pipeline.yaml --pilot 5 --host moonshot --json
    """
    from engine.profile import Throughput
    from flows.cost import Rent, Turns
    from flows.host_costs import Asked, host_costs
    from flows.run.job import Options, job_of, load_config

    with exit_codes():
        options = Options(
            source=source, sink=sink, engine=engine, settings=tuple(settings or ())
        )  # fmt: skip
        config = load_config(pipeline, options)
        config = config.model_copy(update={"sink": config.sink or NO_SINK})
        pace = None
        if throughput is not None:
            prompt, output = _pace(throughput)
            pace = Throughput(prompt_tokens_per_s=prompt, output_tokens_per_s=output)
        asked = Asked(
            hosts=tuple(host or ()),
            modes=tuple(mode or ()),
            rent=Rent(gpu_hour_usd=gpu_hour, throughput=pace),
            gpus=gpus,
            turns=Turns(count=turns),
            documents=documents,
            sample=None if whole else sample,
            limit=limit,
        )
        if pilot is not None:
            pilot_of(job_of(config, origin=pipeline, limit=limit), pilot, as_json=as_json)
        found = host_costs(config, asked, origin=pipeline, notify=note)
        if as_json:
            print_json(found)
            return
        _print(found)


def _pace(text: str) -> tuple[float, float]:
    """Return prompt and output tokens a second.

    Raises:
        ConfigError: It is not two numbers above 0.
    """
    try:
        prompt, output = (float(part) for part in text.split(","))
    except ValueError:
        prompt = output = 0.0
    if prompt <= 0 or output <= 0:
        raise ConfigError(
            f"--throughput {text!r} is not two numbers above 0; such as --throughput 10000,500: prompt"
            " tokens computed and tokens generated a second"
        )
    return prompt, output


def _print(found: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    table = Table(
        box=SIMPLE,
        padding=(0, 0),
        pad_edge=False,
        collapse_padding=True,
        title=f"{found['pipeline']}: {found['documents']:,} documents; tokens in and out, US dollars (by the"
        " host's batch API, for 1,000 documents), hours of GPUs",
        title_justify="left",
    )
    names = ("mode", "host", "requests", "in", "out", "USD", "batch", "GPU h", "USD/1k")
    for name in names:
        left = name in {"mode", "host"}
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for row in found["rows"]:
        each = row["usd_per_document"]
        table.add_row(
            row["mode"],
            row["host"],
            *(_count(row[name]) for name in ("requests", "prompt_tokens", "output_tokens")),
            *(_number(row[name]) for name in ("usd", "usd_batch_api", "gpu_hours")),
            _number(None if each is None else 1_000 * each),
        )
    console.print(table)
    lines = [*found["left_out"]]
    evens: dict[str, list[str]] = {}
    for one in found["break_even"]:
        evens.setdefault(one["verdict"], []).append(one["mode"])
    lines += [f"{', '.join(dict.fromkeys(modes))}: {told}" for told, modes in evens.items()]
    lines += _assumed(found["rows"])
    print_verdict(lines)


def _assumed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return each assumption once, with the rows that rest on it, where not all do."""
    of: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        for one in row["assumed"]:
            of.setdefault(one, []).append((row["host"], row["mode"]))
    lines = []
    for one, places in of.items():
        hosts, modes = (list(dict.fromkeys(names)) for names in zip(*places, strict=True))
        own = [row for row in rows if row["host"] in hosts]
        names = [] if len(own) == len(rows) else hosts
        names = names if len(places) == len(own) else [*names, *modes]
        where = f" ({', '.join(names)})" if names else ""
        lines.append(f"assumed{where}: {one}")
    return lines


def _count(number: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 100 * size or (number >= size and size > 1e3):
            return f"{number / size:,.1f} {unit}"
    return f"{number:,}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 1_000:
        return f"{value:,.0f}"
    return f"{value:,.2f}" if value == 0 or value >= 1 else f"{value:.4f}"
