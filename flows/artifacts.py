"""What a flow run shows on its page in the Prefect UI.

The page is a courtesy: a Prefect server that does not answer is a warning, once, and never the end of a
run. Numbers come from the manifest, never from task runs, whose records Prefect may lose.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.runtime import flow_run

from config.load import load_surroundings
from engine.errors import EngineError
from engine.status import map_errors
from flows.report.took import took
from flows.report.words import (
    batch_story,
    cached_share,
    counted,
    mode_story,
    outcome_word,
    outcome_words,
    route_story,
)
from flows.run.progress import Snapshot

logger = logging.getLogger(__name__)

_MOST_BATCHES = 20
INTERVAL_S = 3.0
"""Seconds between updates of the progress artifact; each is one PATCH on one row."""

_CLOSE_LIMIT_S = 5.0


class RunPage:
    """The page of one flow run: a progress bar with its counts, then what came out.

    Shards only leave their counts here; one thread of its own sends them, so that a slow server holds
    nobody up.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._latest: Snapshot | None = None
        self._changed, self._closing = threading.Event(), threading.Event()
        self._warned = False
        self._artifact: UUID | None = None
        self._thread = threading.Thread(target=self._send_all, name="run-page", daemon=True)

    def open(self, labels: Mapping[str, str] | None = None) -> None:
        """Put labels and an empty bar on the page of the flow run that this thread is in."""
        self._try(lambda: _label(labels or {}))
        self._try(self._create)
        self._thread.start()

    def show(self, snapshot: Snapshot) -> None:
        """Leave the counts for the next update."""
        self._latest = snapshot
        self._changed.set()

    def close(self) -> None:
        """Send the last counts; gives up on a server that takes longer than five seconds."""
        self._closing.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_LIMIT_S)

    def conclude(self, manifest: Mapping[str, Any]) -> None:
        """Put the run's figures, outcomes, failures and the link to its report onto the page."""
        self._try(lambda: _publish(manifest))

    def link(self, address: str) -> None:
        """Put the link to the run's report onto the page."""
        self._try(lambda: _link(self._run_id, served(self._run_id) or address))

    def _create(self) -> None:
        text = f"run {self._run_id}: starting"
        created = create_progress_artifact(progress=0.0, key="progress", description=text)
        self._artifact = created if isinstance(created, UUID) else UUID(str(created))

    def _send_all(self) -> None:
        while not self._closing.is_set():
            self._changed.wait()
            self._changed.clear()
            self._try(self._send)
            self._closing.wait(INTERVAL_S)
        self._try(self._send)

    def _send(self) -> None:
        snapshot = self._latest
        if snapshot is None or self._artifact is None:
            return
        percent = round(100 * snapshot.fraction, 1)
        update = ArtifactUpdate(data=percent, description=describe(self._run_id, snapshot))
        with get_client(sync_client=True) as client:
            client.update_artifact(self._artifact, update)

    def _try(self, send: Callable[[], None]) -> None:
        try:
            # The engine's map of HTTP errors serves for Prefect's client too: it uses the same one.
            with map_errors("the Prefect server"):
                send()
        except EngineError as exc:
            if not self._warned:
                logger.warning("run_id=%s: its page is not up to date: %s", self._run_id, exc)
            self._warned = True


def _label(labels: Mapping[str, str]) -> None:
    found = flow_run.get_id()
    if found is not None:
        with get_client(sync_client=True) as client:
            client.update_flow_run_labels(UUID(found), {**labels})


def describe(run_id: str, snapshot: Snapshot) -> str:
    """Return the counts as one line, which is all that a card shows, and a small Markdown table."""
    outcomes = ", ".join(f"{count:,} {name}" for name, count in sorted(snapshot.outcomes.items()))
    documents = f"{snapshot.num_documents_read:,} of {counted(snapshot.num_documents, 'document')}"
    rows = {
        "run": run_id,
        "phase": snapshot.phase,
        "documents": f"{snapshot.num_documents_read:,} of {snapshot.num_documents:,} read",
        "chunks": f"{snapshot.num_chunks:,}",
        "records": f"{snapshot.num_results:,} of {snapshot.num_requests:,} asked"
        + (f": {outcomes}" if outcomes else ""),
        "prompt tokens": _prompt_tokens(snapshot.prompt_tokens, snapshot.cached_tokens),
        "output tokens": f"{snapshot.completion_tokens:,}",
    }
    if snapshot.cost_usd is not None:
        rows["cost"] = f"{snapshot.cost_usd:.4f} USD"
    if snapshot.gpu_seconds is not None:
        rows["GPU time"] = f"{snapshot.gpu_seconds:,.1f} GPU-seconds"
    for batch in snapshot.batches[:_MOST_BATCHES]:
        rows[f"batch {batch['batch_id'] or 'not begun'}"] = batch_story(batch)
    rows["time"] = f"{snapshot.elapsed_s:,.0f} s"
    left = ""
    if snapshot.remaining_s is not None and snapshot.phase == "processing":
        left = f", about {snapshot.remaining_s:,.0f} s left"
        rows["time"] += left
    head = f"{snapshot.phase}: {documents}, {outcomes or 'no answer yet'}{left}"
    return f"{head}\n\n{_table(rows)}"


def _table(rows: Mapping[str, str]) -> str:
    (first, *rest) = (f"| {name} | {value} |" for name, value in rows.items())
    return "\n".join([first, "| --- | --- |", *rest])


def report_address(manifest: Mapping[str, Any]) -> str:
    """Return where the report can be read: served by `headrace up`, else in its sink."""
    return served(str(manifest["run_id"])) or str(manifest["report"]["html"])


def served(run_id: str) -> str | None:
    """Return the address of the run's report at `headrace up`; None where it does not serve."""
    base = load_surroundings().reports_url
    return f"{base}/runs/{run_id}/" if base is not None else None


def _link(run_id: str, address: str) -> None:
    create_link_artifact(
        link=address,
        link_text="Open the report",
        key="report",
        description=f"Report of run {run_id}",
    )


def _publish(manifest: Mapping[str, Any]) -> None:
    address = report_address(manifest)
    _link(manifest["run_id"], address)
    create_markdown_artifact(
        markdown=_summary(manifest, address),
        key="summary",
        description=f"{manifest['pipeline']}: {manifest['verdict'].replace('_', ' ')}",
    )
    create_table_artifact(
        table=_outcomes(manifest), key="outcomes", description="Every input has one outcome"
    )
    create_table_artifact(
        table=took(manifest).as_rows(),
        key="took",
        description="What it took, beside what was planned",
    )
    if manifest["batches"]:
        create_table_artifact(
            table=[dict(batch) for batch in manifest["batches"]],
            key="batches",
            description="Batches at the host that answers are to come from",
        )
    if manifest["approvals"]:
        create_table_artifact(
            table=[dict(one) for one in manifest["approvals"]],
            key="approvals",
            description="What a person was asked to agree to, and who decided what",
        )
    if manifest["failures"] or manifest["rejected"]:
        create_table_artifact(
            table=_failures(manifest), key="failures", description="What has no answer, by class"
        )


def _summary(manifest: Mapping[str, Any], address: str) -> str:
    documents = ", ".join(f"{count} {status}" for status, count in manifest["documents"].items())
    stages: Sequence[Mapping[str, Any]] = list(manifest["stages"].values())
    table = took(manifest)
    rows = {
        "run": manifest["run_id"],
        "documents": documents,
        "chunks": f"{manifest['chunks']:,} in {counted(manifest['shards'], 'shard')}",
        **mode_rows(manifest),
        **route_story(manifest),
        "GPU time": _gpu_time(manifest["spent"]),
        "plan": table.note or None,
        "seconds": f"{manifest['seconds']:.1f}",
        "sink": f"`{manifest['sink']}`",
        "records": ", ".join(f"`{stage['table']}`" for stage in stages),
        "report": f"[open]({address})" if address.startswith("http") else f"`{address}`",
    }
    return _table({name: value for name, value in rows.items() if value is not None})


def _prompt_tokens(prompt: int, cached: int | None) -> str:
    return f"{prompt:,}, {cached_share(cached, prompt)}" if prompt else "0"


def _gpu_time(spent: Mapping[str, Any]) -> str | None:
    seconds = spent.get("gpu_seconds")
    return None if seconds is None else f"{seconds:,.1f} GPU-seconds"


def mode_rows(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return one row per stage on the modes its answers came in."""
    return {
        f"stage {name}": f"{stage['mode']}; "
        + "; ".join(f"{what}: {told}" for what, told in mode_story(stage).items())
        for name, stage in manifest["stages"].items()
    }


def _outcomes(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    documents = [
        {"of": "documents", "outcome": status, "count": count}
        for status, count in manifest["documents"].items()
        if status != "listed"
    ]
    return documents + [
        {"of": f"stage {name}", "outcome": outcome, "count": count}
        for name, stage in manifest["stages"].items()
        for outcome, count in outcome_words(stage).items()
    ]


def _failures(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    rejected = [
        {
            "where": "documents",
            "outcome": "rejected",
            "class": reason,
            "count": count,
            "such as": "",
        }
        for reason, count in manifest["rejected"].items()
    ]
    return rejected + [
        {
            "where": f"stage {failure['stage']}",
            "outcome": outcome_word(failure["outcome"], failure["error_class"]),
            "class": failure["error_class"],
            "count": failure["count"],
            "such as": failure["example"],
        }
        for failure in manifest["failures"]
    ]
