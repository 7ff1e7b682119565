"""What rows follow from besides the documents' bytes: equal keys, and there is nothing to do."""

from __future__ import annotations

from dataclasses import asdict

from connectors.chunker import VERSION as CHUNKER_VERSION
from connectors.chunker import ChunkRule
from connectors.readers import VERSIONS
from engine.request import content_key
from flows.run.ask import Asker
from flows.run.job import Job


def reading_key(job: Job, rule: ChunkRule) -> str:
    """Return the key of what a document's chunks follow from."""
    options = asdict(job.pipeline.reader.options())
    options.pop("password")
    passwords = dict(job.pipeline.reader.passwords)
    cut = [
        CHUNKER_VERSION,
        rule.name,
        rule.max_tokens,
        rule.overlap_tokens,
        bool(rule.image_tokens),
    ]
    return content_key("reading", dict(VERSIONS), options, passwords, cut)


def work_key(job: Job, rule: ChunkRule, asker: Asker) -> str:
    """Return the key of what a document's rows follow from: its chunks, the stages, the engine."""
    stages = [
        [
            stage.asked(),
            asker.stages[stage.name].way.fingerprint,
            again.fingerprint if (again := asker.stages[stage.name].again) else None,
        ]
        for stage in job.pipeline.stages
        if not stage.is_gathered
    ]
    capabilities = asker.endpoint.profile.capabilities.model_dump(mode="json")
    limit = job.pipeline.chunk.max_per_document
    # Each new run has something to do where a stage is asked afresh; going on with one has not.
    run = job.run_id if any(s.fresh for s in job.pipeline.stages if not s.is_gathered) else None
    return content_key(
        "work",
        *(reading_key(job, rule), stages, limit, capabilities["images"], run),
        *policy_key(job, asker),
    )


def policy_key(job: Job, asker: Asker) -> list[object]:
    """Return what rows follow from by the pipeline's policy, besides keys of questions; nothing without one."""
    return [] if job.pipeline.policy is None else ["routed", asker.route, asker.restores]
