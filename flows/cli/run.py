"""Commands that ask: run, ask, retry."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from config.errors import ConfigError
from config.load import known_pipelines, load_surroundings, set_environment
from engine.request import ModeName
from flows.cli.app import (
    EXIT_BUDGET,
    EXIT_INCOMPLETE,
    EXIT_OVER_LIMIT,
    AsJson,
    BudgetGpuSecondsOption,
    BudgetTokensOption,
    BudgetUsdOption,
    CacheOption,
    EngineOption,
    LimitOption,
    ModeOption,
    OptionalPipelineArgument,
    RunArgument,
    RunSinkOption,
    SetOption,
    SinkOption,
    SourceOption,
    app,
    complete_runs,
    exit_codes,
    print_json,
    stderr,
)

if TYPE_CHECKING:
    from flows.run.approvals import Ask
    from flows.run.job import Job, Options
    from flows.terminal import ProgressBar

Manifest = Mapping[str, Any]

_EXIT = {
    "over_failure_limit": EXIT_OVER_LIMIT,
    "budget_reached": EXIT_BUDGET,
    "awaiting_approval": EXIT_BUDGET,
    "awaiting_batch": EXIT_BUDGET,
    "complete": 0,
}


@app.command(rich_help_panel="Ask")
def run(
    pipeline: OptionalPipelineArgument = None,
    source: SourceOption = None,
    sink: SinkOption = None,
    engine: EngineOption = None,
    mode: ModeOption = None,
    limit: LimitOption = None,
    budget_usd: BudgetUsdOption = None,
    budget_tokens: BudgetTokensOption = None,
    budget_gpu_seconds: BudgetGpuSecondsOption = None,
    failure_limit: Annotated[
        float | None,
        typer.Option(
            "--failure-limit", min=0, max=1, help="Share of requests that may end unanswered."
        ),
    ] = None,
    cache: CacheOption = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Ask every stage anew: no answer of an earlier run counts."),
    ] = False,
    settings: SetOption = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            help="Go on with this run: what it has is kept.",
            autocompletion=complete_runs,
        ),
    ] = None,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes",
            help="With PIPELINE and --resume: go on although the pipeline has changed.",
        ),
    ] = False,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild", help="Write parts anew that were changed by hand or are missing."
        ),
    ] = False,
    prefect: Annotated[
        bool,
        typer.Option("--prefect", help="Report to the Prefect server of `headrace up`."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a pipeline over a folder or bucket of mixed files.

    Without a Prefect API (PREFECT_API_URL, or Prefect's own profile) it runs in this process at once;
    with one, as a flow run that its pages show. Ctrl-C keeps what is done: go on with --resume.

    Examples:
      headrace run pipeline.yaml --source ./papers --sink ./lake

      headrace run demo --source s3://lake/in --sink s3://lake/out --engine moonshot --budget-usd 5

      headrace run pipeline.yaml --set chunk.max_tokens=2000 --limit 20

      headrace run --resume 20261123T093000Z-4f2a --budget-usd 10
    """
    from flows.run.job import Options, make_job, new_run_id
    from flows.run.resume import reopen, with_pipeline

    options = Options(
        source=source,
        sink=sink,
        engine=engine,
        mode=_mode(mode),
        limit=limit,
        budget_usd=budget_usd,
        budget_tokens=budget_tokens,
        budget_gpu_seconds=budget_gpu_seconds,
        failure_limit=failure_limit,
        cache=cache,
        fresh=fresh,
        settings=tuple(settings or ()),
    )
    run_id = new_run_id()
    with exit_codes(_how_to_resume(resume or run_id), _how_to_go_on(resume or run_id)):
        if accept_changes and (resume is None or pipeline is None):
            raise ConfigError("--accept-changes goes with a pipeline and --resume")
        if resume is not None:
            job = reopen(resume, sink, "resume", options)
            if pipeline is not None:
                job = with_pipeline(job, pipeline, accept_changes=accept_changes)
            job = replace(job, rebuild=rebuild)
            finish(_in_process(job, as_json=as_json), as_json=as_json)
            return
        if pipeline is None:
            raise ConfigError(
                "which pipeline? give a YAML file or one of: " + ", ".join(known_pipelines())
            )
        job = replace(make_job(pipeline, options, run_id=run_id), rebuild=rebuild)
        # A mend is done here and now; the run form has no such choice.
        if not rebuild and _reports_to_prefect(wanted=prefect):
            manifest = _in_prefect(job, pipeline, options, as_json=as_json)
        else:
            manifest = _in_process(job, as_json=as_json)
        finish(manifest, as_json=as_json)


@app.command(rich_help_panel="Ask")
def retry(
    run: RunArgument = None,
    sink: RunSinkOption = None,
    engine: EngineOption = None,
    budget_usd: BudgetUsdOption = None,
    budget_tokens: BudgetTokensOption = None,
    budget_gpu_seconds: BudgetGpuSecondsOption = None,
    as_json: AsJson = False,
) -> None:
    """Ask again what a run left unanswered: failed, invalid and over-budget requests.

    Answers that the run has stay as they are and cost nothing; rows are replaced in place.

    Examples:
      headrace retry

      headrace retry 20261123T093000Z-4f2a --engine kimi-k2.5
    """
    from flows.run.job import Options
    from flows.run.resume import reopen

    with exit_codes(lambda: f"interrupted; go on with: headrace retry {run or ''}"):
        options = Options(
            engine=engine,
            budget_usd=budget_usd,
            budget_tokens=budget_tokens,
            budget_gpu_seconds=budget_gpu_seconds,
        )
        job = reopen(run, sink, "retry", options)
        finish(_in_process(job, as_json=as_json), as_json=as_json)


@app.command(rich_help_panel="Ask")
def ask(
    question: Annotated[str, typer.Argument(help="What to ask of each document.")],
    source: Annotated[str, typer.Argument(help="Folder, file or s3://bucket/prefix to read.")],
    fields: Annotated[
        str | None,
        typer.Option(
            "--fields",
            help='Columns of the answer, such as "vendor: string, amount: decimal, date: date?".',
        ),
    ] = None,
    many: Annotated[
        bool, typer.Option("--many", help="As many rows as a chunk of a document holds, not one.")
    ] = False,
    chunks: Annotated[
        int | None,
        typer.Option(
            "--chunks",
            min=1,
            help="Ask only the first N chunks of each document, pieces that fit into one prompt.",
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", help='Only paths that match, such as "**/*.pdf".'),
    ] = None,
    engine: EngineOption = None,
    sink: SinkOption = None,
    cache: CacheOption = None,
    limit: LimitOption = None,
    budget_usd: BudgetUsdOption = None,
    budget_tokens: BudgetTokensOption = None,
    budget_gpu_seconds: BudgetGpuSecondsOption = None,
    as_json: AsJson = False,
) -> None:
    r"""Ask one question of a folder or bucket: a table here, Parquet in the sink, no YAML.

    Types: string, integer, number, decimal, boolean, date, line (a line of the document, verbatim and
    with its place), a|b|c (a choice), \[type] (a list); a ? behind a type lets it be empty.

    Examples:
      headrace ask "What is it about?" ./papers --chunks 1

      headrace ask "Which invoices exceed 10,000 EUR?" s3://lake/invoices
        --fields "vendor: string, amount: decimal, date: date?" --engine moonshot

      headrace ask "Who signed it?" ./contracts --fields "signatory: line" --include "**/*.pdf"
    """
    from flows.question import Question, answer_rows, job_for, print_answers
    from flows.run.job import Options, new_run_id

    run_id = new_run_id()
    with exit_codes(_how_to_resume(run_id), _how_to_go_on(run_id)):
        asked = Question(
            text=question,
            source=source,
            fields=fields,
            many=many,
            include=tuple(include or ()),
            chunks=chunks,
        )
        options = Options(
            sink=sink,
            engine=engine,
            cache=cache,
            limit=limit,
            budget_usd=budget_usd,
            budget_tokens=budget_tokens,
            budget_gpu_seconds=budget_gpu_seconds,
        )
        job = job_for(asked, options, run_id)
        manifest = _in_process(job, as_json=as_json)
        rows = answer_rows(job)
        if as_json:
            print_json({**manifest, "answers": rows})
        else:
            print_answers(rows, manifest)
        _exit(manifest)


def _mode(name: str | None) -> ModeName | None:
    """Return the mode's name; the pipeline's own check tells whether there is such a mode."""
    return name  # type: ignore[return-value]


def _how_to_resume(run_id: str) -> Callable[[], str]:
    def tell() -> str:
        if not _has_begun(run_id):
            return "interrupted before anything was asked; run the same command again"
        return f"interrupted; what is done is kept. Go on with: headrace run --resume {run_id}"

    return tell


def _how_to_go_on(run_id: str) -> Callable[[], str]:
    def tell() -> str:
        mended = "what is done is kept. When that is mended, go on with"
        return f"{mended}: headrace run --resume {run_id}" if _has_begun(run_id) else ""

    return tell


def _has_begun(run_id: str) -> bool:
    from flows.run.registry import known_runs

    return any(run_id in entry.run_id for entry in known_runs())


def _in_process(job: Job, *, as_json: bool) -> Manifest:
    from flows.run.core import run_job
    from flows.run.progress import Progress
    from flows.terminal import ProgressBar

    with ProgressBar(stderr(), enabled=not as_json) as bar:
        ask = _asking(bar, as_json=as_json)
        return run_job(job, progress=Progress(bar.show), notify=bar.note, ask=ask)


def _asking(bar: ProgressBar, *, as_json: bool) -> Ask | None:
    """Return what asks somebody who looks on; None where nobody does, and what needs a decision waits."""
    from flows.cli.approve import ask_person

    return bar.asking(ask_person()) if sys.stdin.isatty() and not as_json else None


def _reports_to_prefect(*, wanted: bool) -> bool:
    """Tell whether the run is a flow run; points this process at `headrace up` where asked to.

    Raises:
        ConfigError: `--prefect` is given and there is no server.
    """
    if load_surroundings().prefect_api_url is not None:
        return True
    if not wanted:
        return False
    from flows.pieces import client_environment

    environment = client_environment()
    if environment is None:
        raise ConfigError("--prefect: no Prefect server is known; start one with: headrace up")
    set_environment(environment)
    return True


def _check_prefect(api_url: str) -> None:
    """Check that the configured Prefect server answers, before seconds go into importing Prefect.

    Raises:
        PrerequisiteError: It does not answer.
    """
    from urllib.error import HTTPError

    from engine.errors import PrerequisiteError
    from flows.web import fetch

    try:
        fetch(f"{api_url.rstrip('/')}/health", timeout_s=5)
    except HTTPError:
        # It answers; whether it lets us in, Prefect's client will say.
        return
    except (OSError, ValueError) as exc:
        raise PrerequisiteError(
            f"the Prefect server at {api_url} does not answer ({exc}); start one with `headrace up`,"
            " or unset PREFECT_API_URL to run without it"
        ) from exc


def _in_prefect(job: Job, pipeline: str, options: Options, *, as_json: bool) -> Manifest:
    """Run the job as a flow run; pipeline and options are the parameters that its page shows.

    Raises:
        ConfigError: The flow run wrote no manifest.
    """
    from config.load import find_pipeline
    from flows.run.resume import manifest_path
    from flows.terminal import ProgressBar

    _check_prefect(load_surroundings().prefect_api_url or "")
    with ProgressBar(stderr(), enabled=not as_json) as bar:
        url = (load_surroundings().prefect_api_url or "").removesuffix("/").removesuffix("/api")
        bar.note(f"reporting to the Prefect server, see {url}/runs")
        from flows.corpus import run_here

        path, ask = str(find_pipeline(pipeline).resolve()), _asking(bar, as_json=as_json)
        run_here(path, options, job.run_id, bar.show, ask)
    manifest = job.open_lake().find_json(manifest_path(job.run_id))
    if manifest is None:
        raise ConfigError(f"run {job.run_id} left no manifest; its flow run says why")
    return manifest


def finish(manifest: Manifest, *, as_json: bool) -> None:
    """Print the manifest or its summary, and end with the exit code of its verdict.

    Raises:
        Exit: With a code other than 0.
    """
    from flows.terminal import print_summary

    if as_json:
        print_json(manifest)
    else:
        print_summary(manifest)
    _exit(manifest)


def _exit(manifest: Manifest) -> None:
    code = _EXIT.get(manifest["verdict"], EXIT_INCOMPLETE)
    if code:
        raise typer.Exit(code)
