"""What a Prefect server does by itself when a flow run dies: say so, and go on with it once.

`headrace up` puts both automations onto its server. A worker tells the server when one of its flow
processes is killed. Where the worker goes down with it, nobody does, and the run would stay Running,
with its slot taken: the first automation misses the heartbeat. Knows no Prefect, as it only makes JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows.deployments import DEPLOYMENTS, call, deployment_ids

HEARTBEAT_S = 30
"""Seconds between two heartbeats of a flow run; Prefect 3.8 takes no fewer."""

MISSING_S = 90
"""Seconds without a heartbeat after which a flow run is taken for dead: three in a row."""

STATE_NAMES = {
    "over_failure_limit": "OverFailureLimit",
    "budget_reached": "BudgetReached",
    "awaiting_approval": "AwaitingApproval",
    "awaiting_batch": "AwaitingBatch",
    "incomplete": "Incomplete",
}
"""Names of Failed states, by the verdict of the run's manifest."""

MARK_DEAD = "headrace: a run without heartbeat is Crashed"
GO_ON = "headrace: a crashed run is gone on with, once"

RESUMED, RESUMER = "process-corpus", "resume-crashed"
"""The deployment whose crashed runs are gone on with, and the one that does it. They are two, so
that a run which crashes again is left to a person."""


def mark_dead(missing_s: float = MISSING_S) -> dict[str, Any]:
    """Return the automation that ends a flow run whose process and worker are gone."""
    # A suspended run has no process, and no heart to beat.
    ends = ("Completed", "Failed", "Cancelled", "Crashed", "Suspended", *STATE_NAMES.values())
    return {
        "name": MARK_DEAD,
        "description": f"No heartbeat for {missing_s:.0f} s: process and worker were killed.",
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            # Flows of others on this server may beat more slowly.
            "match_related": {
                "prefect.resource.role": "flow",
                "prefect.resource.name": list(DEPLOYMENTS),
            },
            "for_each": ["prefect.resource.id"],
            "after": ["prefect.flow-run.heartbeat"],
            "expect": ["prefect.flow-run.heartbeat", *(f"prefect.flow-run.{end}" for end in ends)],
            "threshold": 1,
            "within": missing_s,
        },
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": "CRASHED",
                "message": f"no heartbeat for {missing_s:.0f} s: process and worker were killed. A run of"
                f" {RESUMED} is gone on with by {RESUMER}, once; by hand: start {RESUMED} with"
                " resume: the run's id, see the artifact `progress`, or latest",
            }
        ],
    }


def go_on(resumed_id: str, resumer_id: str) -> dict[str, Any]:
    """Return the automation that hands a crashed run of one deployment to the other one."""
    return {
        "name": GO_ON,
        "description": f"Runs of {RESUMED} only, not those that {RESUMER} has gone on with.",
        "trigger": {
            "type": "event",
            "posture": "Reactive",
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "match_related": {
                "prefect.resource.role": "deployment",
                "prefect.resource.id": f"prefect.deployment.{resumed_id}",
            },
            "for_each": ["prefect.resource.id"],
            "expect": ["prefect.flow-run.Crashed"],
            "threshold": 1,
            "within": 0,
        },
        "actions": [
            {
                "type": "run-deployment",
                "source": "selected",
                "deployment_id": resumer_id,
                "parameters": {
                    "flow_run": {"__prefect_kind": "jinja", "template": "{{ flow_run.id }}"}
                },
            }
        ],
    }


def are_automated(api_url: str) -> bool:
    """Tell whether the server has both automations.

    Raises:
        PrerequisiteError: It does not answer.
    """
    return {item["name"] for item in _known(api_url)} >= {MARK_DEAD, GO_ON}


def automate(api_url: str, missing_s: float = MISSING_S) -> None:
    """Put the automations onto a server that has the deployments; those it has are brought up to date.

    One that was switched off stays so.

    Raises:
        PrerequisiteError: It does not answer, or refuses.
    """
    known = {item["name"]: item for item in _known(api_url)}
    ids = deployment_ids(api_url)
    for wanted in (mark_dead(missing_s), go_on(ids[RESUMED], ids[RESUMER])):
        _put(api_url, wanted, known.get(wanted["name"]))


def _put(api_url: str, wanted: Mapping[str, Any], held: Mapping[str, Any] | None) -> None:
    if held is None:
        call(api_url, "automations/", {**wanted, "enabled": True})
    else:
        body = {**wanted, "enabled": held["enabled"]}
        call(api_url, f"automations/{held['id']}", body, method="PUT")


def _known(api_url: str) -> list[dict[str, Any]]:
    chosen = {"automations": {"name": {"any_": [MARK_DEAD, GO_ON]}}, "limit": 100}
    return call(api_url, "automations/filter", chosen)
