"""Builds the `vllm serve` command of a set-up. Flags are those of vLLM 0.32 and of its recipes.

A test has vLLM's own parser read what is built here.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from engine.capacity import Layout, Plan, ways_out
from engine.errors import SetUpImpossible
from engine.profile import Profile

_HERE = frozenset({"localhost", "127.0.0.1", "0.0.0.0", "::1"})

DRAIN_S = 120
"""Seconds that requests under way get when a server is asked to end."""

MASTER_PORT = 29_501
"""Port on which the machines of one server find each other (vLLM 0.32, config/parallel.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What is asked of a server beyond its plan."""

    weights: str | None = None
    """Folder or repository of the weights; None: as published."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """LoRA adapters: folder by the name that requests give."""
    speculate: bool = False
    """Whether the published small model guesses ahead."""
    offload_gib: float = 0.0
    """Main memory for cache that the GPUs have no room for, all of a server's GPUs together, in GiB."""
    node_rank: int = 0
    """Number of this machine, where one server spreads over several."""
    master_addr: str | None = None
    """Address of machine 0, reachable from the others."""
    drain_s: int = DRAIN_S
    """Seconds that requests under way get at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One server: its command, beside what is in the environment already."""

    argv: tuple[str, ...]
    """`vllm`, `serve` and what follows."""
    environment: Mapping[str, str]
    """Variables that it needs on top."""
    base_url: str | None
    """Where it will answer; None: another machine's server answers for it."""

    def shown(self) -> str:
        """Return it as a person would type it; it holds no key."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.argv)])


def launches_of(profile: Profile, plan: Plan, options: ServeOptions) -> list[Launch]:
    """Return a launch for each server that this machine runs, the first at the profile's `base_url`.

    Raises:
        SetUpImpossible: The plan does not fit, vLLM cannot serve what is asked for, or the profile has no
            address for each server.
    """
    layout = _servable(plan)
    addresses = _addresses(profile, layout)
    _check(plan, layout, options)
    launches = []
    for number, address in enumerate(addresses):
        headless = options.node_rank > 0
        where = [] if headless else _where(address)
        argv = ["vllm", "serve", _weights(plan, options), *where, *_flags(profile, plan, options)]
        launches.append(
            Launch(
                argv=tuple(argv),
                environment={**plan.file.environment, **_devices(layout, number)},
                base_url=None if headless else address,
            )
        )
    return launches


def _servable(plan: Plan) -> Layout:
    if plan.file.runs_on != "vllm":
        raise SetUpImpossible(
            f"{plan.file.title} is for {plan.file.runs_on}, not vLLM; start that yourself and give its URL"
            " with --engine, or take another --precision"
        )
    if not plan.starts or plan.layout is None:
        ways = [way.option for way in ways_out(plan)]
        change = f"; it fits with {', or with '.join(ways)}" if ways else ""
        raise SetUpImpossible(f"{plan.reasons[0]}{change}")
    return plan.layout


def _addresses(profile: Profile, layout: Layout) -> list[str]:
    known = [url for url in (profile.base_url, *profile.replicas) if url is not None]
    here = [url for url in known if urlsplit(url).hostname in _HERE]
    if not here:
        raise SetUpImpossible(
            f"profile {profile.name!r} is at {profile.base_url}, not on this machine; run the command there, or"
            " copy the profile with a base_url of this one, such as http://localhost:8000/v1"
        )
    if len(here) < layout.replicas:
        port = urlsplit(here[-1]).port or 8000
        raise SetUpImpossible(
            f"--replicas {layout.replicas} needs as many addresses; profile {profile.name!r} has {len(here)} on"
            f" this machine: copy it and add replicas: [http://localhost:{port + 1}/v1, ...]"
        )
    return here[: layout.replicas]


def _check(plan: Plan, layout: Layout, options: ServeOptions) -> None:
    if options.adapters and not plan.model.lora:
        raise SetUpImpossible(
            f"vLLM 0.32 serves no LoRA adapters of {plan.model.title}; merge the adapter into the weights and"
            " give their folder with --weights"
        )
    if options.speculate and plan.model.speculation is None:
        raise SetUpImpossible(f"no speculative decoding is published for {plan.model.title}")
    if layout.nodes > 1 and options.master_addr is None:
        raise SetUpImpossible(
            f"{layout.gpus_per_server} GPUs of one server are {layout.nodes} machines (--nodes); run the command"
            " on each, with --node-rank 0, 1, ... and --master-addr, the address of machine 0"
        )
    if layout.nodes > 1 and layout.replicas > 1:
        raise SetUpImpossible(
            "replicas of servers that spread over machines are started one by one; leave --replicas out"
        )
    if not 0 <= options.node_rank < layout.nodes:
        raise SetUpImpossible(
            f"--node-rank {options.node_rank} is none of the {layout.nodes} machines, counted from 0"
        )


def _weights(plan: Plan, options: ServeOptions) -> str:
    weights = options.weights or plan.file.repository
    if weights is None:
        raise SetUpImpossible(
            f"where {plan.file.title} of {plan.model.title} is published is not known; give the folder or"
            " repository with --weights"
        )
    return weights


def _where(address: str) -> list[str]:
    parts = urlsplit(address)
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    return [f"--host={host}", f"--port={parts.port or 80}"]


def _flags(profile: Profile, plan: Plan, options: ServeOptions) -> list[str]:
    assert plan.layout is not None
    model, wish = plan.model, plan.wish
    flags = [
        f"--served-model-name={profile.model or profile.name}",
        f"--max-model-len={plan.context_tokens}",
        f"--gpu-memory-utilization={wish.utilization:g}",
        *_parallel(plan.layout, options),
    ]
    if wish.kv_type in {"fp8", "bfloat16"}:
        flags.append(f"--kv-cache-dtype={wish.kv_type}")
    if model.shape is not None and model.shape.vision is not None:
        flags += model.vision_flags if wish.with_vision else ["--language-model-only"]
    flags += [*model.server_flags, *plan.file.server_flags, *profile.server_flags]
    if options.offload_gib:
        flags.append(f"--kv-offloading-size={options.offload_gib:g}")
    if options.speculate and model.speculation is not None:
        flags.append(f"--speculative-config={model.speculation.config}")
    if options.adapters:
        modules = [f"{name}={folder}" for name, folder in options.adapters.items()]
        flags += ["--enable-lora", "--lora-modules", *modules]
    return [*flags, f"--shutdown-timeout={options.drain_s}"]


def _parallel(layout: Layout, options: ServeOptions) -> Sequence[str]:
    sizes = {
        "tensor-parallel-size": layout.tp,
        "pipeline-parallel-size": layout.pp,
        "data-parallel-size": layout.dp,
        "decode-context-parallel-size": layout.dcp,
    }
    flags = [f"--{name}={size}" for name, size in sizes.items() if size > 1]
    if layout.ep:
        flags.append("--enable-expert-parallel")
    if layout.nodes > 1:
        flags += [
            f"--nnodes={layout.nodes}",
            f"--node-rank={options.node_rank}",
            f"--master-addr={options.master_addr}",
            f"--master-port={MASTER_PORT}",
        ]
        flags += [f"--data-parallel-address={options.master_addr}"] if layout.dp > 1 else []
        flags += ["--headless"] if options.node_rank else []
    return flags


def _devices(layout: Layout, number: int) -> Mapping[str, str]:
    """Return which GPUs a server takes, where several share a machine."""
    if layout.replicas == 1:
        return {}
    first = number * layout.gpus_per_server
    indexes = range(first, first + layout.gpus_per_server)
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, indexes))}
