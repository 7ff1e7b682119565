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
from flows.capacity import as_served, gpus_of
from flows.cost import Load, Rent, Turns, as_agents, as_swarm, break_even, load_of, price
from flows.estimate import plan_on_engine
from flows.run.job import job_of
from flows.run.plan import list_sources
from flows.run.routes import routes_of

AS_GIVEN = "as given"
"""Every stage in the mode that the pipeline names."""
FORCED = ("instant", "thinking")
BY_TURNS = {"agent": as_agents, "swarm": as_swarm}
MODES = (AS_GIVEN, *FORCED, *BY_TURNS)
HOSTS = ("moonshot", "kimi-k2.5")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be compared."""

    hosts: Sequence[str] = ()
    """Profiles or addresses; empty: an API and own GPUs, or what may have documents that are all sensitive."""
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
    hosts = {name: load_profile(name) for name in asked.hosts or _allowed(config)}
    own = load_profile(config.engine)
    rents = {host.name: _rent(host, asked) for host in hosts.values()}
    found: list[tuple[str, Profile, Load]] = []
    documents = 0
    left_out = _kept(config, asked, origin)
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
                planned = _plan_on(on_host, mode, asked, origin)
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


def _allowed(config: PipelineConfig) -> Sequence[str]:
    """Return the hosts that are compared where none is named."""
    policy = config.policy
    return policy.on_premises if policy is not None and policy.is_all_sensitive else HOSTS


def _kept(config: PipelineConfig, asked: Asked, origin: str) -> list[str]:
    """Return a line about the sensitive part of a corpus, which no row is about; none where there is none."""
    if config.policy is None or not config.policy.sensitive or config.policy.is_all_sensitive:
        return []
    job = job_of(config, origin=origin, limit=asked.limit)
    routes = routes_of(job.pipeline)
    refs = list_sources(job.open_source(), job.pipeline.include)[: asked.limit]
    number = sum(routes.is_sensitive(ref.path) for ref in refs)
    if not number:
        return []
    stages = [stage.name for stage in config.stages if stage.is_gathered]
    over_all = f", and stages that rest on all of them ({', '.join(stages)})" if stages else ""
    return [
        f"not in these rows: {number:,} sensitive documents{over_all}; they stay on"
        f" {load_profile(config.policy.on_premises[0]).name}, and `headrace plan` counts them"
    ]


def _plan_on(config: PipelineConfig, mode: str, asked: Asked, origin: str) -> Mapping[str, Any]:
    """Return the plan on a host that is compared.

    Raises:
        ConfigError: The pipeline's policy forbids it, or nothing fits.
    """
    try:
        return _plan(config, mode, asked, origin)
    except ConfigError as exc:
        named = f"--host {config.engine}"
        if not asked.hosts:
            named = f"{config.engine}, which is compared where no --host is named"
        raise ConfigError(f"{named}: {exc}") from exc


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
    if host.prices is not None or host.serve is not None:
        return asked.rent
    # Left out, the profile's: what this machine has says nothing of what is rented for a corpus.
    if asked.gpus is None and (host.gpus is None or host.gpu_kind is None):
        return asked.rent
    if asked.gpus is None:
        gpus, wish = parse_gpus(f"{host.gpus}x{host.gpu_kind}"), as_served(host, Wish())
    else:
        gpus, wish = gpus_of(host, asked.gpus), Wish()
    rent = replace(asked.rent, gpus=gpus.count, servers=wish.sizes.replicas)
    if host.facts is None:
        return rent
    found = plan(model_of(host), gpus, wish)
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
