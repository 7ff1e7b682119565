"""The command `decide`: which model, run where, and what is missing for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import (
    AsJson,
    app,
    complete_profiles,
    end_on_no,
    exit_codes,
    print_json,
    print_verdict,
)


@app.command(rich_help_panel="Prepare")
def decide(
    answers: Annotated[
        Path | None,
        typer.Argument(help="YAML file with answers; an option given too counts instead."),
    ] = None,
    work: Annotated[
        list[str] | None,
        typer.Option(
            "--work",
            help="extraction, classification, summaries, images, reasoning, agents or swarm; as often as"
            " needed.",
        ),
    ] = None,
    sensitive: Annotated[
        str | None, typer.Option("--sensitive", help="Documents that must stay: none, some or all.")
    ] = None,
    certification: Annotated[
        list[str] | None,
        typer.Option(
            "--certification", help="Certificate of whoever runs the engine, such as SOC 2."
        ),
    ] = None,
    own_certification: Annotated[
        list[str] | None,
        typer.Option("--own-certification", help="What your own operations are certified for."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            help="Profile of the engine that you would run; else kimi-k2.5.",
            autocompletion=complete_profiles,
        ),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            help="Profile of a host that comes into question; else moonshot and clarifai.",
            autocompletion=complete_profiles,
        ),
    ] = None,
    gpus: Annotated[str | None, typer.Option("--gpus", help="Your GPUs: 8xH200; or none.")] = None,
    gpu_hour: Annotated[
        float | None, typer.Option("--gpu-hour", min=0.0, help="US dollars for one GPU and hour.")
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option("--prompt-tokens", min=0, help="Prompt tokens a month.")
    ] = None,
    output_tokens: Annotated[
        int | None, typer.Option("--output-tokens", min=0, help="Tokens generated a month.")
    ] = None,
    budget_usd: Annotated[
        float | None, typer.Option("--budget-usd", min=0.0, help="US dollars a month.")
    ] = None,
    within: Annotated[
        float | None, typer.Option("--within", help="Longest time for one answer, in seconds.")
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", min=1, help="Tokens one question must see at once.")
    ] = None,
    operators: Annotated[
        int | None, typer.Option("--operators", min=0, help="People who can run GPU servers.")
    ] = None,
    on_call: Annotated[
        bool | None,
        typer.Option("--on-call/--no-on-call", help="Whether one is within reach at night."),
    ] = None,
    hosting: Annotated[
        str | None, typer.Option("--hosting", help="If decided: api, hosted or self_hosted.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="If decided: kimi-k2.5, small or proprietary.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say which model to run where, by hardware, compliance, budget, latency and crew, with the reasons.

    What is left out counts as not known. Nothing is sent. Exits with 1 where the verdict is no or contradiction.

    Examples:
      headrace decide --work agents --sensitive some --gpus 8xH200 --operators 2 --on-call

      headrace decide answers.yaml --budget-usd 5000

      headrace decide --certification "SOC 2" --hosting self_hosted --json
    """
    from config.answers import load_answers
    from flows.decision.verdict import as_lines
    from flows.decision.verdict import decide as decided

    with exit_codes():
        options = {
            "work": work,
            "sensitive": sensitive,
            "certifications": certification,
            "own_certifications": own_certification,
            "engine": engine,
            "hosts": host,
            "gpus": gpus,
            "gpu_hour_usd": gpu_hour,
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            "budget_usd": budget_usd,
            "within_s": within,
            "context_tokens": context,
            "operators": operators,
            "on_call": on_call,
            "hosting": hosting,
            "model": model,
        }
        found = decided(load_answers(answers, options))
        if as_json:
            print_json(found)
        else:
            print_verdict(as_lines(found))
        end_on_no(is_no=found["verdict"] in {"no", "contradiction"})
