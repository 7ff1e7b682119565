"""What a person sees in the terminal: a progress bar while a run goes on, a table at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from flows.report.took import Took, took
from flows.report.words import (
    approval_story,
    batch_story,
    cached_share,
    counted,
    failure_words,
    mode_story,
    outcome_words,
    route_story,
    waits,
)
from flows.run.progress import Snapshot

NON_TERMINAL_INTERVAL_S = 10.0
"""Seconds between lines where the output is no terminal and cannot redraw a bar."""

_MOST_BATCHES = 5
_MOST_APPROVALS = 5
_OPTIONS = {f"budget.{name.replace('-', '_')}": name for name in ("usd", "tokens", "gpu-seconds")}
"""Limits of a run that have an option of their own."""

_Answer = TypeVar("_Answer")


class ProgressBar:
    """Draws snapshots: a bar on a terminal, a line now and then elsewhere, nothing if disabled."""

    def __init__(self, console: Console, *, enabled: bool) -> None:
        self._console = console
        self._enabled = enabled
        self._bar: Progress | None = None
        self._phase = ""
        self._told_s = 0.0
        if enabled and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[counts]}"),
                console=console,
            )
            self._task = self._bar.add_task("starting", total=1.0, counts="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def asking(self, ask: Callable[..., _Answer]) -> Callable[..., _Answer]:
        """Return the same question, asked while nothing is drawn."""

        def asked(*arguments: object) -> _Answer:
            if self._bar is None:
                return ask(*arguments)
            self._bar.stop()
            try:
                return ask(*arguments)
            finally:
                self._bar.start()

        return asked

    def note(self, line: str) -> None:
        """Show one line about something slow."""
        if self._enabled:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def show(self, snapshot: Snapshot) -> None:
        """Show the counts."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.update(
                self._task,
                description=snapshot.phase,
                completed=snapshot.fraction,
                counts=_counts(snapshot),
            )
            return
        new_phase = snapshot.phase != self._phase
        if new_phase or snapshot.elapsed_s - self._told_s >= NON_TERMINAL_INTERVAL_S:
            self._phase, self._told_s = snapshot.phase, snapshot.elapsed_s
            self.note(f"{snapshot.phase:<11}{snapshot.fraction:>5.0%}  {_counts(snapshot)}")


def _counts(snapshot: Snapshot) -> str:
    parts = [
        f"{snapshot.num_documents_read}/{counted(snapshot.num_documents, 'document')}",
        counted(snapshot.num_chunks, "chunk"),
        f"{snapshot.num_results}/{counted(snapshot.num_requests, 'answer')}",
    ]
    if snapshot.num_unanswered:
        parts.append(f"{snapshot.num_unanswered} without answer")
    if snapshot.prompt_tokens:
        parts.append(f"{snapshot.prompt_tokens:,} prompt tokens")
        parts.append(cached_share(snapshot.cached_tokens, snapshot.prompt_tokens))
    if snapshot.cost_usd is not None:
        parts.append(f"{dollars(snapshot.cost_usd)} USD")
    if snapshot.gpu_seconds is not None:
        parts.append(f"{snapshot.gpu_seconds:,.1f} GPU-s")
    if snapshot.remaining_s is not None and snapshot.phase == "processing":
        parts.append(f"about {snapshot.remaining_s:.0f} s left")
    return ", ".join(parts)


def print_summary(manifest: Mapping[str, Any]) -> None:
    """Print the run's figures: a table of its stages, then where everything is."""
    console = Console(highlight=False)
    title = f"{manifest['pipeline']}: {manifest['verdict'].replace('_', ' ')}"
    table = Table(title=title, title_justify="left")
    for name in ("stage", "inputs", "outcomes"):
        table.add_column(name, justify="right" if name == "inputs" else "left")
    for name, stage in manifest["stages"].items():
        outcomes = ", ".join(f"{count} {word}" for word, count in outcome_words(stage).items())
        table.add_row(name, f"{stage['inputs']:,}", outcomes)
    console.print(table)
    _print_took(console, took(manifest))
    print_facts(summary_lines(manifest))


def _print_took(console: Console, told: Took) -> None:
    table = Table()
    for name in ("stage", *told.columns):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for name, cells in told.rows:
        table.add_row(name, *("\n".join(filter(None, cell)) for cell in cells))
    console.print(table)
    if told.note:
        console.print(told.note, markup=False, soft_wrap=True)


def print_facts(facts: Mapping[str, object], width: int = 10) -> None:
    """Print one fact a line, their names set flush right in a column of `width` characters."""
    console = Console(highlight=False)
    for name, value in facts.items():
        console.print(f"{name:>{width}}  {value}", markup=False, soft_wrap=True)


def summary_lines(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return what a person wants to know at the end of a run: counts, failures, where to look."""
    run_id = manifest["run_id"]
    documents = ", ".join(f"{count} {status}" for status, count in manifest["documents"].items())
    rejected = ", ".join(f"{count} {reason}" for reason, count in manifest["rejected"].items())
    lines = {
        "documents": documents + (f" ({rejected})" if rejected else ""),
        "chunks": f"{manifest['chunks']:,} in {counted(manifest['shards'], 'shard')}",
        "seconds": f"{manifest['seconds']:.1f}",
    }
    replayed, cached = (
        sum(stage.get(name, 0) for stage in manifest["stages"].values())
        for name in ("replayed", "from_cache")
    )
    if replayed:
        lines["replayed"] = f"{counted(replayed, 'answer')} at no cost, {cached} from the cache"
    if manifest["spent"]["usd"] is not None:
        lines["cost"] = f"{dollars(manifest['spent']['usd'])} USD"
    if manifest["spent"].get("gpu_seconds") is not None:
        lines["GPU time"] = f"{manifest['spent']['gpu_seconds']:,.1f} GPU-seconds"
    for name, stage in manifest["stages"].items():
        story = mode_story(stage)
        observed = story.pop("observed")
        if story:
            rest = "; ".join(f"{what}: {words}" for what, words in story.items())
            lines[f"stage {name}"] = f"observed {observed}; {rest}"
    # Manifests of before there were batches have none.
    for batch in manifest.get("batches", ())[:_MOST_BATCHES]:
        lines[f"batch {batch['batch_id'] or 'not begun'}"] = batch_story(batch)
    for number, asked in enumerate(manifest.get("approvals", ())[:_MOST_APPROVALS]):
        lines[f"approval {number + 1}"] = approval_story(asked)
    lines |= route_story(manifest)
    for number, failure in enumerate(manifest["failures"][:3]):
        text = f"{failure['count']} {failure_words(failure)} in stage {failure['stage']}"
        name = "waiting" if waits(failure) else "failure"
        lines[f"{name} {number + 1}"] = f"{text}, such as {failure['example']}"
    if manifest["rejected"]:
        where = "\"status = 'rejected'\""
        lines["rejected"] = f"headrace records {run_id} documents --where {where}"
    lines |= _how_to_go_on(manifest)
    lines["look at"] = f"headrace records {run_id}"
    lines["tables"] = _tables(manifest)
    lines["report"] = manifest["report"]["html"]
    return lines


def _how_to_go_on(manifest: Mapping[str, Any]) -> dict[str, str]:
    run_id, resume = manifest["run_id"], f"headrace run --resume {manifest['run_id']}"
    if manifest["verdict"] == "awaiting_approval":
        return {"decide": f"headrace approve {run_id}", "go on": resume}
    if manifest["verdict"] == "awaiting_batch":
        return {"go on": f"{resume}, when the host has answered"}
    if manifest["verdict"] == "budget_reached":
        more = [f" {_option(key)}" for key in manifest["spent"].get("reached", ())]
        return {"go on": f"{resume}{''.join(more)}"}
    return {"go on": f"headrace retry {run_id}"} if manifest["failures"] else {}


def _option(key: str) -> str:
    """Return the option that raises a limit of a budget, given as a key of the pipeline."""
    return f"--budget-{_OPTIONS[key]} <more>" if key in _OPTIONS else f"--set {key}=<more>"


def _tables(manifest: Mapping[str, Any]) -> str:
    """Return globs of the run's records: one for all, unless a stage has had other columns before."""
    tables = [str(stage["table"]) for stage in manifest["stages"].values()]
    if not any("@" in table for table in tables):
        tables = ["records/stage=*"]
    return ", ".join(f"{manifest['sink']}/{table}/*.parquet" for table in tables)


def dollars(value: float | None) -> str:
    """Return a sum of US dollars, a dash where it is not known."""
    return "-" if value is None else f"{value:.2f}" if value >= 1 else f"{value:.4f}"
