"""What answers that the sink holds teach a plan: how long they are, how many are left out, what they quote.

An answer counts where it was asked for as the pipeline asks now: by the fingerprint of its stage.
"""

from __future__ import annotations

import io
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple

import polars as pl

from config.pipeline import StageConfig
from connectors.chunker import render
from connectors.sinks.lake import Lake
from flows.run.ask import Asker
from flows.run.lines import relabelled
from flows.run.record_tables import find_record_tables
from flows.run.rows import given_of_row
from flows.run.units import Reply, inputs_of
from flows.stage_estimate import overhead_tokens

MOST_RECORDS = 2_000
"""Records of a stage that are looked at, parts in the order of their names: lengths settle long before."""

MOST_QUESTIONS = 64
"""Questions with earlier answers in them that are counted."""

NEVER_ASKED = ("no_modality", "beyond_limit", "upstream_unanswered")
"""Error classes that say nothing of a stage: no chunk like that is planned for, or another stage failed."""

Row = Mapping[str, Any]


class TurnTokens(NamedTuple):
    """Tokens of all turns of one agent, mean."""

    prompt_tokens: float
    cached_tokens: float


class LaterCalls(NamedTuple):
    """Prompts of repairs, of answers after thinking in a turn of its own, and of summaries."""

    share: float
    """Their tokens, for one of a first prompt."""
    hit_share: float | None
    """Share of them that were hits; None where the engine does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What the records of one stage say of it."""

    num_records: int
    """Those that it rests on, left out ones included."""
    asked_share: float
    """Share of units that are asked about; `when` and missing answers leave out the others."""
    output_tokens: float
    """Tokens generated for one of them, all samples together."""
    again_share: float
    """Share of them that were asked again in Thinking."""
    overhead_tokens: float | None
    """Of a prompt beside its material, with earlier answers in the question; None where it has none."""
    input_tokens: float
    """What one record of the stages needed adds to the prompt."""
    units_per_input: float
    """Groups, for one record of the stages needed."""
    later: LaterCalls | None = None
    """What calls after the first of a request add; None where no usage is on record."""
    hit_share: float | None = None
    """Share of its prompt tokens that were hits; None where the engine does not tell."""
    turns: TurnTokens | None = None
    """What agents took for one record; None for stages that are one turn."""


_Records = Mapping[str, tuple[StageConfig, Sequence[Row]]]
"""The records of each stage, by its name."""


def calibrate(
    lake: Lake,
    asker: Asker,
    stages: Sequence[StageConfig],
    usage: pl.DataFrame,
    *,
    most: int = MOST_RECORDS,
) -> dict[str, Calibration]:
    """Return by stage what the sink's records say of it; stages without any are missing.

    Args:
        lake: The sink.
        asker: The pipeline on its engine.
        stages: Of the pipeline.
        usage: Of earlier runs on the sink, as `load_usage` gives it.
        most: Records of a stage that are looked at.

    Raises:
        StorageError: The sink cannot be read.
    """
    tables = find_record_tables(lake, stages, routed=asker.is_routed)
    found = {
        stage.name: (
            stage,
            [*itertools.islice(_records(lake, asker, stage, tables[stage.name]), most)],
        )
        for stage in stages
    }
    return {
        stage.name: replace(
            _calibration(asker, stage, found),
            turns=_turns(stage, found[stage.name][1], usage),
            hit_share=_hit_share(stage, usage),
            later=_later(stage, found[stage.name][1], usage),
        )
        for stage in stages
        if stage.compute is None and found[stage.name][1]
    }


def _records(lake: Lake, asker: Asker, stage: StageConfig, table: str) -> Iterator[Row]:
    """Yield the records that were asked for as the pipeline asks now, part by part."""
    names = [
        "path", "unit", "outcome", "error_class", "escalated", "fingerprint", "completion_tokens",
        "prompt_tokens", "request_key",
        "num_inputs", "citations", "claims", *stage.output["properties"],
    ]  # fmt: skip
    wanted = asker.stages[stage.name].way.fingerprint if stage.compute is None else None
    for item in lake.storage.list(table):
        held = lake.storage.find(item.path) if item.path.endswith(".parquet") else None
        if held is None:
            continue
        frame = pl.read_parquet(io.BytesIO(held.data), columns=names)
        if wanted is not None:
            frame = frame.filter(fingerprint=wanted)
        unasked = pl.col("error_class").is_in(NEVER_ASKED).fill_null(value=False)
        frame = frame.filter(~unasked & (pl.col("outcome") != "over_budget"))
        yield from frame.iter_rows(named=True)


def _calibration(asker: Asker, stage: StageConfig, found: _Records) -> Calibration:
    _, rows = found[stage.name]
    asked = [row for row in rows if row["outcome"] != "skipped"]
    needed = sum(len(found[need][1]) for need in stage.needs)
    num_inputs, tokens = _inputs(asker, stage, found)
    # Not by the number of groups: a sample of their inputs may have them all.
    each = _mean(row["num_inputs"] or 0 for row in rows)
    return Calibration(
        num_records=len(rows),
        asked_share=len(asked) / len(rows),
        output_tokens=_mean(row["completion_tokens"] or 0 for row in asked),
        again_share=_mean(row["escalated"] is not None for row in asked),
        overhead_tokens=_overhead_tokens(asker, stage, found),
        input_tokens=tokens / needed if needed else 0.0,
        units_per_input=num_inputs / needed / each if needed and each else 0.0,
    )


def _hit_share(stage: StageConfig, usage: pl.DataFrame) -> float | None:
    """Return the share of hits in first prompts, of agents in those of all turns; None where it is not told."""
    told = usage.filter(pl.col("stage") == stage.name, pl.col("cached_tokens").is_not_null())
    tokens, hits = float(told["prompt_tokens"].sum()), float(told["cached_tokens"].sum())
    if stage.tools:
        # No prefix is looked up for vectors.
        tokens -= float(told["embedded_tokens"].sum())
    else:
        tokens -= float(told["later_prompt_tokens"].sum())
        hits -= float(told["later_cached_tokens"].sum())
    return hits / tokens if tokens else None


def _turns(stage: StageConfig, rows: Sequence[Row], usage: pl.DataFrame) -> TurnTokens | None:
    """Return what agents took for a record, with the share of hits that usage on record tells."""
    if not stage.tools:
        return None
    asked = [row for row in rows if row["outcome"] != "skipped"]
    own = usage.filter(pl.col("request_key").is_in([row["request_key"] for row in asked]))
    own = own.unique("request_key", keep="last")
    # A vector is paid once for all records, and not at the engine's price.
    embedded = float(own["embedded_tokens"].sum()) / max(1, len(own))
    prompt = _mean(row["prompt_tokens"] or 0 for row in asked) - embedded
    return TurnTokens(prompt, prompt * (_hit_share(stage, usage) or 0.0))


def _later(stage: StageConfig, rows: Sequence[Row], usage: pl.DataFrame) -> LaterCalls | None:
    """Return what calls after the first took; agents' turns are counted by `_turns`."""
    keys = [row["request_key"] for row in rows]
    own = usage.filter(
        pl.col("request_key").is_in(keys), pl.col("later_prompt_tokens").is_not_null()
    ).unique("request_key", keep="last")
    later = float(own["later_prompt_tokens"].sum())
    first = float(own["prompt_tokens"].sum()) - later
    if stage.tools or not first:
        return None
    told = own.filter(pl.col("later_cached_tokens").is_not_null())
    tokens = float(told["later_prompt_tokens"].sum())
    hits = float(told["later_cached_tokens"].sum()) / tokens if tokens else None
    return LaterCalls(later / first, hits)


def _mean(values: Iterator[float]) -> float:
    known = [*values]
    return fmean(known) if known else 0.0


def _replies(stage: StageConfig, found: _Records) -> dict[str, list[Reply]]:
    """Return the records that a stage rests on, by document."""
    by_path: dict[str, list[Reply]] = defaultdict(list)
    for need in stage.needs:
        needed, rows = found[need]
        names = list(needed.output["properties"])
        for row in rows:
            answered = row["outcome"] == "succeeded"
            by_path[row["path"] or ""].append(
                Reply(
                    stage=need,
                    path=row["path"] or "",
                    unit=row["unit"],
                    error_class=row["error_class"],
                    given=given_of_row(row, names) if answered else None,
                )
            )
    return by_path


def _inputs(asker: Asker, stage: StageConfig, found: _Records) -> tuple[int, int]:
    """Return what a reduce is shown of the records it rests on: inputs, and the tokens of their lines."""
    if stage.over in {"chunk", "rows"}:
        return 0, 0
    when = asker.stages[stage.name].when
    num_inputs, texts = 0, []
    for replies in _replies(stage, found).values():
        inputs = [*inputs_of(replies, when, titled=stage.is_gathered)]
        lines = relabelled([line for one in inputs for line in one.lines])
        texts.append(render(line.segment for line in lines))
        num_inputs += len(inputs)
    return num_inputs, sum(asker.endpoint.counter.count_many(texts))


def _overhead_tokens(asker: Asker, stage: StageConfig, found: _Records) -> float | None:
    """Return the mean tokens beside a chunk or row, with the answers that the question needs in it."""
    if stage.over not in {"chunk", "rows"} or not stage.needs:
        return None
    answers: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    for path, replies in _replies(stage, found).items():
        for reply in replies:
            if reply.given is not None:
                answers[path, reply.unit][reply.stage] = reply.given.output
    own = [row for row in found[stage.name][1] if row["outcome"] != "skipped"]
    texts = []
    for row in own[:MOST_QUESTIONS]:
        path, unit = row["path"] or "", row["unit"]
        # What was asked about the chunk holds for its rows too.
        upstream = {**answers[path, unit.partition("-row-")[0]], **answers[path, unit]}
        if {*stage.needs} <= upstream.keys():
            texts.append(asker.stages[stage.name].question.render(upstream=upstream, group=""))
    return _mean(overhead_tokens(asker, stage, text) for text in texts) if texts else None
