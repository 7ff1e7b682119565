"""What a flow run shows on its page in the Prefect UI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.run.progress import Snapshot


class ProgressArtifact:
    """A progress bar on the run page; a listener for flows.run.progress.Progress."""

    def __init__(self, run_id: str) -> None:
        self._id = create_progress_artifact(
            progress=0.0, key="progress", description=f"run {run_id}"
        )
        self._shown = 0.0

    def __call__(self, snapshot: Snapshot) -> None:
        """Move the bar, but not for less than a percent: each move is a call to the server."""
        percent = 100.0 if snapshot.phase == "done" else round(100 * snapshot.fraction, 1)
        if percent - self._shown < 1 and snapshot.phase != "done":
            return
        self._shown = percent
        update_progress_artifact(artifact_id=_uuid(self._id), progress=percent)


def _uuid(value: object) -> UUID:
    return value if isinstance(value, UUID) else UUID(str(value))


def publish_summary(manifest: Mapping[str, Any]) -> None:
    """Put the run's figures and its outcomes on the run page."""
    report = manifest["report"]
    documents = ", ".join(f"{count} {status}" for status, count in manifest["documents"].items())
    lines = [
        f"# {manifest['pipeline']}: {manifest['verdict'].replace('_', ' ')}",
        f"Documents: {documents}. Chunks: {manifest['chunks']}. Shards: {manifest['shards']}.",
        f"Report: `{report['html']}`",
        f"Sink: `{manifest['sink']}`",
    ]
    create_markdown_artifact(markdown="\n\n".join(lines), key="summary")
    create_table_artifact(table=_outcomes(manifest), key="outcomes")


def _outcomes(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    stages = [
        {"what": f"stage {name}", "outcome": outcome, "count": count}
        for name, stage in manifest["stages"].items()
        for outcome, count in stage["outcomes"].items()
    ]
    rejected = [
        {"what": "document", "outcome": f"rejected: {reason}", "count": count}
        for reason, count in manifest["rejected"].items()
    ]
    return stages + rejected
