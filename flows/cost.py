"""What a corpus costs: in each mode, at a host's prices and on own GPUs, and from which volume own GPUs pay.

Tokens are those of a plan; what turns them into money or hours is beside each number, with its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.profile import Profile, Throughput

HOURS_A_MONTH = 730
_SECONDS_AN_HOUR = 3_600

PUBLISHED = Throughput(prompt_tokens_per_s=9_977, output_tokens_per_s=486)
PUBLISHED_GPUS = 8
PUBLISHED_SOURCE = (
    "vLLM recipes, Kimi-K2-Think.md: Kimi K2 Thinking in INT4 on 8xH200, 8k in; both counted as if"
    " one waited for the other, so that the time is an upper bound"
)

BY_TURNS = frozenset({"agent", "swarm"})
ORCHESTRATOR_TURNS = 15
SUBAGENTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """How an agent is assumed to go about one question, where nothing has been measured."""

    count: int = 10
    """Turns of the model; each reads all that came before it."""
    call_tokens: int = 150
    """Generated in a turn: the thinking that leads to a call, and the call."""
    result_tokens: int = 1_000
    """What a call adds to the prompt."""

    def told(self) -> str:
        """Return it as the assumption that it is."""
        return (
            f"an agent takes {self.count} turns to a question, each of {self.call_tokens} tokens and a"
            f" result of {self.result_tokens:,}; what it has read is a cache hit in the next turn"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Tokens that a corpus takes in one mode."""

    requests: int
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt tokens, planned to be served from the prefix cache."""
    output_tokens: int
    is_expected: bool
    """By answers that are there; else the output is the most that it may be."""
    by_turns: bool = False
    """Whether agents are in it: a host's batch API would take a day for each of their turns."""
    assumed: tuple[str, ...] = ()

    def times(self, factor: float) -> Load:
        """Return the load of so many times the corpus."""
        return replace(
            self,
            requests=round(self.requests * factor),
            prompt_tokens=round(self.prompt_tokens * factor),
            cached_tokens=round(self.cached_tokens * factor),
            output_tokens=round(self.output_tokens * factor),
        )


def load_of(
    plan: Mapping[str, Any], turns: Turns, measured: Mapping[str, Any] | None = None
) -> Load:
    """Return the load of a plan: of each stage as expected where that is known, else the most it may be.

    Args:
        plan: On the host that is asked about.
        turns: How agents are assumed to work.
        measured: The plan on an engine of which there are answers: they will be as long on the host, where
            nothing is known of it.
    """
    known = {stage["stage"]: stage for stage in measured["stages"]} if measured else {}
    engine = measured["engine"] if measured else ""
    loads = [_of_stage(stage, turns, known.get(stage["stage"]), engine) for stage in plan["stages"]]
    assumed = [one for load in loads for one in load.assumed]
    if plan["tokens_counted"] != "exactly":
        # Not by which counter: the name of one that masks holds the key of its placeholders.
        assumed.append("tokens counted by estimate, with a margin")
    return Load(
        requests=sum(load.requests for load in loads),
        prompt_tokens=sum(load.prompt_tokens for load in loads),
        cached_tokens=sum(load.cached_tokens for load in loads),
        output_tokens=sum(load.output_tokens for load in loads),
        is_expected=all(load.is_expected for load in loads),
        by_turns=any(load.by_turns for load in loads),
        assumed=tuple(dict.fromkeys(assumed)),
    )


def _of_stage(
    stage: Mapping[str, Any], turns: Turns, measured: Mapping[str, Any] | None, engine: str
) -> Load:
    if stage["output_tokens_expected"] is not None:
        return _expected(stage)
    if (
        measured is not None
        and measured["output_tokens_expected"] is not None
        and measured["mode"] == stage["mode"]
    ):
        told = f"{stage['stage']}: requests and answers as measured on {engine}"
        return replace(_expected(measured), assumed=(told,))
    load = Load(
        requests=stage["requests"],
        prompt_tokens=stage["prompt_tokens"],
        cached_tokens=stage["planned_cached_tokens"],
        output_tokens=stage["output_tokens_at_most"],
        is_expected=False,
    )
    if stage["mode"] in BY_TURNS:
        load = (as_agents if stage["mode"] == "agent" else as_swarm)(load, turns)
    told = f"{stage['stage']}: answers as long as they may be; --pilot 5 measures how long they are"
    return replace(load, assumed=(*load.assumed, told))


def _expected(stage: Mapping[str, Any]) -> Load:
    return Load(
        requests=stage["requests_expected"],
        prompt_tokens=stage["prompt_tokens_expected"],
        cached_tokens=stage["planned_cached_tokens_expected"],
        output_tokens=stage["output_tokens_expected"],
        is_expected=True,
        by_turns=stage["mode"] in BY_TURNS,
    )


def as_agents(load: Load, turns: Turns) -> Load:
    """Return the load where each question goes to an agent instead of being one turn.

    A turn's prompt is the one before it with a call and its result behind, so that all but these are hits.
    """
    grown = turns.call_tokens + turns.result_tokens
    later = turns.count - 1
    again = later * load.prompt_tokens + load.requests * grown * later * (later + 1) // 2
    new = load.requests * grown * later
    return Load(
        requests=load.requests * turns.count,
        prompt_tokens=load.prompt_tokens + again,
        cached_tokens=load.cached_tokens + again - new,
        output_tokens=load.output_tokens + load.requests * turns.call_tokens * later,
        is_expected=False,
        by_turns=True,
        assumed=(*load.assumed, turns.told()),
    )


def as_swarm(load: Load, turns: Turns) -> Load:
    """Return the load where each question goes to a sub-agent, ten of them under one orchestrator."""
    below = as_agents(load, turns)
    swarms = -(-load.requests // SUBAGENTS)
    each = load.prompt_tokens // max(1, load.requests)
    above = as_agents(
        replace(load, requests=swarms, prompt_tokens=swarms * each, cached_tokens=0),
        replace(turns, count=ORCHESTRATOR_TURNS),
    )
    return Load(
        requests=below.requests + above.requests,
        prompt_tokens=below.prompt_tokens + above.prompt_tokens,
        cached_tokens=below.cached_tokens + above.cached_tokens,
        output_tokens=below.output_tokens + above.output_tokens - load.output_tokens,
        is_expected=False,
        by_turns=True,
        assumed=(
            *below.assumed,
            f"an orchestrator of {ORCHESTRATOR_TURNS} turns to every {SUBAGENTS} questions (Moonshot allows"
            " it 15: arXiv 2602.02276)",
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rent:
    """What own or rented GPUs are taken to cost and to do; None: as the profile says, or not known."""

    gpu_hour_usd: float | None = None
    """Price of one GPU for an hour."""
    gpus: int | None = None
    servers: int = 1
    """Servers that share the GPUs out evenly."""
    throughput: Throughput | None = None
    capacity: str | None = None
    """The planner's verdict on these GPUs; None: not planned."""
    fits: bool | None = None
    """Whether they hold the model; None: not known."""


def price(load: Load, profile: Profile, rent: Rent, *, documents: int) -> dict[str, Any]:
    """Return what a load takes on a host, as JSON: dollars at its prices, or hours of its GPUs and their price."""
    row: dict[str, Any] = {
        "host": profile.name,
        "basis": "expected" if load.is_expected else "at most",
        "requests": load.requests,
        "prompt_tokens": load.prompt_tokens,
        "cached_tokens": load.cached_tokens,
        "output_tokens": load.output_tokens,
    }
    found = _at_prices(load, profile) if profile.prices else _on_gpus(load, profile, rent)
    usd = found["usd"]
    per_document = None if usd is None or not documents else usd / documents
    return row | found | {"usd_per_document": per_document}


def _at_prices(load: Load, profile: Profile) -> dict[str, Any]:
    prices = profile.prices
    assert prices is not None
    tokens = {"prompt": load.prompt_tokens, "output": load.output_tokens}
    miss = prices.usd(cached=0, **tokens)
    assumed = [
        *load.assumed,
        f"{prices.input_usd:g} USD a million prompt tokens, {prices.cached_input_usd:g} where they are"
        f" hits, {prices.output_usd:g} generated (profile {profile.name})",
        "hits as planned: the host's cache keeps a chunk for the minutes its questions take",
    ]
    by_batch_api = prices.batch_factor is not None and not load.by_turns
    if by_batch_api:
        assumed.append(
            f"batch API: {prices.batch_factor:g} of the price without hits; whether it counts hits is not"
            " published"
        )
    return {
        "usd": prices.usd(cached=load.cached_tokens, **tokens),
        "usd_without_cache": miss,
        "usd_batch_api": miss * (prices.batch_factor or 1.0) if by_batch_api else None,
        "gpu_hours": None,
        "hours": None,
        "gpus": None,
        "assumed": assumed,
    }


def _on_gpus(load: Load, profile: Profile, rent: Rent) -> dict[str, Any]:
    assumed = [*load.assumed]
    gpus = rent.gpus or profile.gpus
    if profile.hosted_by is not None:
        assumed.append(
            f"prices of {profile.name} are not known, so it counts as GPUs that are rented: ask"
            f" {profile.hosted_by} for them, and enter `prices` into a copy of the profile"
        )
    if rent.capacity is not None:
        assumed.append(rent.capacity)
    pace = rent.throughput or profile.throughput
    if rent.throughput is not None:
        assumed.append(_pace_told(rent.throughput, "as given"))
    elif profile.throughput is not None:
        assumed.append(_pace_told(profile.throughput, f"profile {profile.name}"))
    elif gpus == PUBLISHED_GPUS * rent.servers:
        pace = _published(rent.servers)
        each = "" if rent.servers == 1 else f"{rent.servers} servers, each as in "
        assumed.append(_pace_told(pace, each + PUBLISHED_SOURCE))
    else:
        assumed.append(
            "throughput not known, so no time; give --throughput PROMPT,OUTPUT in tokens a second, as a"
            " run's report tells them"
        )
    if gpus is None:
        assumed.append("number of GPUs not known; give --gpus")
    hours = None if pace is None or rent.fits is False else _hours(load, pace)
    gpu_hours = None if hours is None or gpus is None else gpus * hours
    usd = None
    if rent.gpu_hour_usd is None:
        assumed.append("price of a GPU-hour not known, so hours only; give --gpu-hour USD")
    elif gpu_hours is not None:
        usd = gpu_hours * rent.gpu_hour_usd
        assumed.append(f"{rent.gpu_hour_usd:g} USD a GPU-hour, as given; full all the time")
    return {
        "usd": usd,
        "usd_without_cache": None,
        "usd_batch_api": None,
        "gpu_hours": gpu_hours,
        "hours": hours,
        "gpus": gpus,
        "assumed": assumed,
    }


def _published(servers: int) -> Throughput:
    return Throughput(
        prompt_tokens_per_s=PUBLISHED.prompt_tokens_per_s * servers,
        output_tokens_per_s=PUBLISHED.output_tokens_per_s * servers,
    )


def _pace_told(pace: Throughput, source: str) -> str:
    return (
        f"{pace.prompt_tokens_per_s:,.0f} prompt tokens computed and {pace.output_tokens_per_s:,.0f}"
        f" generated a second ({source})"
    )


def _hours(load: Load, pace: Throughput) -> float:
    computed = load.prompt_tokens - load.cached_tokens
    seconds = computed / pace.prompt_tokens_per_s + load.output_tokens / pace.output_tokens_per_s
    return seconds / _SECONDS_AN_HOUR


def break_even(
    api: Mapping[str, Any], own: Mapping[str, Any], rent: Rent, *, documents: int
) -> dict[str, Any]:
    """Return from how many documents a month own GPUs, paid for day and night, cost less than a host.

    Args:
        api: A row of `price` at a host's prices.
        own: The row of the same mode on own GPUs.
        rent: What these cost.
        documents: Of the corpus that both rows are about.
    """
    found: dict[str, Any] = {
        "mode": own["mode"],
        "host": api["host"],
        "own": own["host"],
        "documents_a_month": None,
        "most_documents_a_month": None,
        "usd_a_month": None,
    }
    if own["usd"] is None or not api["usd"] or not own["hours"]:
        verdict = f"cannot be told without {_missing(api, own, rent)}"
        return found | {"verdict": rent.capacity if rent.fits is False else verdict}
    monthly = HOURS_A_MONTH * own["gpus"] * (rent.gpu_hour_usd or 0.0)
    enough = monthly / (api["usd"] / documents)
    most = documents * HOURS_A_MONTH / own["hours"]
    if enough <= most:
        verdict = (
            f"{own['host']} on {own['gpus']} GPUs costs less than {api['host']} from {enough:,.0f} documents a"
            " month on"
            f" ({enough / most:.0%} of what they can do)"
        )
    else:
        verdict = (
            f"{api['host']} costs less than {own['host']} at any volume: {own['gpus']} GPUs are full at"
            f" {most:,.0f} documents a month, and would pay from {enough:,.0f} on"
        )
    return found | {
        "documents_a_month": round(enough),
        "most_documents_a_month": round(most),
        "usd_a_month": round(monthly, 2),
        "verdict": verdict,
    }


def _missing(api: Mapping[str, Any], own: Mapping[str, Any], rent: Rent) -> str:
    """Return what keeps two rows from being compared."""
    known = {
        f"a price of {api['host']}": api["usd"],
        f"the throughput of {own['host']} (--throughput)": own["hours"],
        f"the number of GPUs of {own['host']} (--gpus)": own["gpus"],
        "the price of a GPU-hour (--gpu-hour)": rent.gpu_hour_usd is not None,
    }
    return ", ".join(name for name, value in known.items() if not value)
