"""Plans that this machine keeps, so that the run that follows can be held against what was estimated.

One small JSON file per sink and pipeline below the state folder, taken by the first run that begins after
it. Losing one only means that no run is compared with it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config.load import load_surroundings
from connectors.sinks.lake import Lake
from engine.request import content_key
from flows.run.job import Job
from flows.run.resume import manifest_path

_BESIDE = frozenset({
    "budget", "cache", "failure_limit", "fallback", "report", "sink", "source", "storage",
})  # fmt: skip
"""Keys of a pipeline that change nothing of what is asked; the places are in the key as the job has them."""


def keep_plan(job: Job, plan: Mapping[str, Any]) -> None:
    """Keep a plan for the run that follows it; a state folder that cannot be written keeps none."""
    _write(_file(job), plan)


def take_plan(job: Job, lake: Lake) -> dict[str, Any] | None:
    """Return what was planned for this run; None where nothing was, or another run has taken it.

    What a pilot has asked already is under `already`, in the form of the plan's `stages`: the run has not
    asked it again.
    """
    file = _file(job)
    try:
        plan = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(plan, dict) or plan.get("run_id", job.run_id) != job.run_id:
        return None
    _write(file, {**plan, "run_id": job.run_id})
    plan.pop("run_id", None)
    pilot = plan.get("pilot")
    if pilot is not None and pilot != job.run_id:
        plan["already"] = _already(job, lake, str(pilot))
    return plan


def _already(job: Job, lake: Lake, pilot: str) -> dict[str, Any]:
    """Return what the pilot took for stages about documents; what is gathered is asked anew."""
    manifest = lake.find_json(manifest_path(pilot))
    gathered = {stage.name for stage in job.pipeline.stages if stage.is_gathered}
    told = {} if manifest is None else manifest["stages"]
    return {name: taken(stage) for name, stage in told.items() if name not in gathered}


def taken(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stage's entry in the manifest under the names that a plan has for its figures."""
    return {
        "requests": stage.get("requests", 0),
        "prompt_tokens": stage["prompt_tokens"],
        "cached_tokens": stage["cached_tokens"],
        "output_tokens": stage["completion_tokens"],
        "cost_usd": stage["cost_usd"],
    }


def _file(job: Job) -> Path:
    pipeline = job.pipeline.model_dump(mode="json", exclude=set(_BESIDE))
    for stage in pipeline["stages"]:
        del stage["budget"]
    key = content_key("plan", job.sink, job.source, job.limit, pipeline)
    return load_surroundings().state / "plans" / f"{key[:32]}.json"


def _write(file: Path, plan: Mapping[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        staged = file.with_name(f".{secrets.token_hex(8)}")
        staged.write_text(json.dumps(plan), encoding="utf-8")
        staged.replace(file)
    except OSError:
        # A comparison is a courtesy.
        return
