"""`headrace cost`: one corpus on several hosts and in several modes, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from config.errors import ConfigError
from config.load import load_profile
from config.model_facts import model_of
from config.pipeline import PipelineConfig
from engine.capacity import Wish, parse_gpus, plan
from engine.profile import Profile
from flows.cost import Load, Rent, Turns, as_agents, as_swarm, break_even, load_of, price
from flows.estimate import plan_on_engine
from flows.run.job import job_of

AS_GIVEN = "as given"
"""Every stage in the mode that the pipeline names."""
FORCED = ("instant", "thinking")
BY_TURNS = {"agent": as_agents, "swarm": as_swarm}
MODES = (AS_GIVEN, *FORCED, *BY_TURNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be compared."""

    hosts: Sequence[str]
    """Profiles or addresses."""
    modes: Sequence[str] = ()
    """Of `MODES`; empty: all that the pipeline can be asked in."""
    rent: Rent = field(default_factory=Rent)
    turns: Turns = field(default_factory=Turns)
    gpus: str | None = None
    """Own GPUs, such as `8xH200`; None: as the profile says."""
    documents: int | None = None
    """Size of the corpus that is priced; None: as listed."""
    sample: int | None = None
    """Most documents to read; None: all."""
    limit: int | None = None


def host_costs(
    config: PipelineConfig, asked: Asked, *, origin: str, notify: Callable[[str], None]
) -> dict[str, Any]:
    """Return what the corpus costs on each host in each mode, and from which volume own GPUs pay.

    Args:
        config: The pipeline, with source and sink; the answers in its sink say how long those to come are.
        asked: What is compared.
        origin: The pipeline, as the user named it.
        notify: Called with a line per slow step.

    Raises:
        ConfigError: There is no such host or mode, or nothing fits.
    """
    modes = _modes(config, asked.modes)
    hosts = {name: load_profile(name) for name in asked.hosts}
    own = load_profile(config.engine)
    rents = {host.name: _rent(host, asked) for host in hosts.values()}
    found: list[tuple[str, Profile, Load]] = []
    documents = 0
    left_out: list[str] = []
    for mode in dict.fromkeys("instant" if mode in BY_TURNS else mode for mode in modes):
        notify(f"planning in mode {mode}" if mode != AS_GIVEN else "planning")
        measured = _plan(config, mode, asked, origin)
        documents = sum(group["count"] for group in measured["documents"])
        for name, host in hosts.items():
            if mode not in {AS_GIVEN, *host.modes}:
                left_out.append(f"{host.name} has no mode {mode}")
                continue
            planned = measured
            if host != own:
                on_host = config.model_copy(update={"engine": name})
                planned = _plan(on_host, mode, asked, origin)
            load = load_of(planned, asked.turns, measured)
            found += [(mode, host, load)] if mode in modes else []
            if mode == "instant":
                found += [
                    (later, host, BY_TURNS[later](load, asked.turns))
                    for later in modes
                    if later in BY_TURNS and host.offers(later)  # type: ignore[arg-type]
                ]
    scale = 1.0 if asked.documents is None or not documents else asked.documents / documents
    listed, documents = documents, asked.documents or documents
    rows = [
        {"mode": mode} | price(load.times(scale), host, rents[host.name], documents=documents)
        for mode, host, load in sorted(found, key=lambda one: MODES.index(one[0]))
    ]
    return {
        "pipeline": config.name,
        "source": config.source,
        "documents": documents,
        "documents_listed": listed,
        "rows": rows,
        "break_even": _evens(rows, [*hosts.values()], rents, documents),
        "left_out": left_out,
    }


def _modes(config: PipelineConfig, modes: Sequence[str]) -> Sequence[str]:
    """Return the modes that are compared.

    Raises:
        ConfigError: One of them is none, or stages that call tools are to be asked in another mode.
    """
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown:
        raise ConfigError(f"--mode {unknown[0]!r} is none of {', '.join(MODES)}")
    if not config.has_agents:
        return modes or (*FORCED, *BY_TURNS)
    other = [mode for mode in modes if mode != AS_GIVEN]
    if other:
        raise ConfigError(
            f"--mode {other[0]}: the pipeline's stages call tools, which only their own modes can; leave"
            " --mode out"
        )
    return (AS_GIVEN,)


def _plan(config: PipelineConfig, mode: str, asked: Asked, origin: str) -> Mapping[str, Any]:
    stages = config.stages
    if mode != AS_GIVEN:
        stages = tuple(
            stage if stage.compute is not None else stage.model_copy(update={"mode": mode})
            for stage in stages
        )
    config = config.model_copy(update={"stages": stages})
    job = job_of(config, origin=origin, limit=asked.limit)
    planned, _ = plan_on_engine(job, sample=asked.sample, notify=lambda _: None)
    return planned


def _rent(host: Profile, asked: Asked) -> Rent:
    """Return what own GPUs cost, with the planner's verdict on them where it knows the model.

    Raises:
        SetUpImpossible: There are no such GPUs.
    """
    text = asked.gpus
    if text is None and host.gpus is not None and host.gpu_kind is not None:
        text = f"{host.gpus}x{host.gpu_kind}"
    if host.prices is not None or host.serve is not None or text is None:
        return asked.rent
    gpus = parse_gpus(text)
    rent = replace(asked.rent, gpus=gpus.count)
    if host.facts is None:
        return rent
    found = plan(model_of(host), gpus, Wish())
    return replace(rent, capacity=found.reasons[0], fits=found.starts)


def _evens(
    rows: Sequence[Mapping[str, Any]],
    hosts: Sequence[Profile],
    rents: Mapping[str, Rent],
    documents: int,
) -> list[dict[str, Any]]:
    """Return the break-even of each mode, of every host with prices against every one without."""
    sold = {host.name for host in hosts if host.prices is not None}
    return [
        break_even(api, own, rents[own["host"]], documents=documents)
        for own in rows
        if own["host"] not in sold
        for api in rows
        if api["host"] in sold and api["mode"] == own["mode"]
    ]
