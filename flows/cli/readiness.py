"""`headrace engine check`: whether an engine is ready for a batch, by sending it what a batch sends."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.app import (
    AsJson,
    BudgetUsdOption,
    complete_profiles,
    end_on_no,
    exit_codes,
    note,
    print_json,
    print_lines,
    print_verdict,
)
from flows.cli.engine import engine_app


@engine_app.command("check")
def check_readiness(
    profile: Annotated[
        str,
        typer.Argument(
            help="Profile, by name or file, or URL of an OpenAI-compatible endpoint.",
            autocompletion=complete_profiles,
        ),
    ] = "embedded",
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            min=1,
            help="Longest prompt and answer that the batch will have, in tokens.",
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", min=1, help="Requests of that length under way at once."),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option("--requests", min=1, help="Long requests in all; twice as many as at once."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            help="Send the prompts of an earlier check again; its report names the number.",
        ),
    ] = None,
    budget_usd: BudgetUsdOption = None,
    as_json: AsJson = False,
) -> None:
    """Say whether an engine is ready for a batch: sends long prompts at the planned concurrency, and looks.

    Reports the KV cache's peak and preemptions, whether modes, JSON Schemas and tool calls are kept, the time to
    the first token, tokens a second, and hits of the prefix cache; with what to change. On a host with prices
    nothing is sent unless --budget-usd covers the worst case. Exits with 0 where a batch can start.

    Examples:
      headrace engine check

      headrace engine check kimi-k2.5 --context 131072 --concurrency 5

      headrace engine check moonshot --context 8192 --requests 8 --budget-usd 0.50 --json
    """
    from engine.check import CheckWish
    from flows.cli.readiness_text import check_lines, copied_lines
    from flows.engine_check import EngineCheck, check

    with exit_codes():
        wish = CheckWish(context_tokens=context, concurrency=concurrency, num_requests=requests)
        asked = EngineCheck(engine=profile, wish=wish, budget_usd=budget_usd, seed=seed)
        found = check(asked, note)
        shown = found.as_json()
        if as_json:
            print_json(shown)
        else:
            print_verdict(check_lines(shown))
            print_lines(copied_lines(shown))
        end_on_no(is_no=not found.report.is_ready)
