"""Puts a capacity plan together: a profile's model, the GPUs meant, and what a running server says.

Called by the commands `engine plan`, `engine serve` and `plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from config.errors import ConfigError
from config.load import load_surroundings
from config.model_facts import model_of
from engine.capacity import (
    Gpus,
    Plan,
    Sizes,
    Wish,
    as_json,
    find_gpus,
    on_cpu,
    parse_gpus,
    plan,
)
from engine.errors import SetUpImpossible
from engine.local_models import LOCAL_MODELS
from engine.profile import Profile
from engine.server import KV_CACHE_GIB, cache_tokens, find_server

FOUND = "found"
"""Stands for the GPUs that this machine has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a person asks the planner."""

    gpus: str | None = None
    """As written; None: those found here, else those that the profile names."""
    wish: Wish = field(default_factory=Wish)


def capacity(profile: Profile, asked: Asked) -> Plan:
    """Return the plan of a profile's model, judged.

    Raises:
        ConfigError: The profile names no facts of its model.
        SetUpImpossible: No GPUs are known, or something asked for cannot be.
    """
    model = model_of(profile)
    if profile.serve is not None:
        if asked.gpus is not None:
            raise SetUpImpossible(
                f"profile {profile.name!r} is served on this machine's CPU; leave --gpus out"
            )
        dtype = LOCAL_MODELS[profile.serve].dtype()
        return on_cpu(
            model,
            cache_bytes=KV_CACHE_GIB * 2**30,
            kv_type="float32" if dtype == "float32" else "bfloat16",
            context_tokens=asked.wish.context_tokens or profile.context_tokens,
        )
    wish = asked.wish
    if asked.gpus is None and profile.replicas and find_gpus() is None:
        wish = as_served(profile, wish)
    return plan(model, gpus_of(profile, asked.gpus), wish)


def as_served(profile: Profile, wish: Wish) -> Wish:
    """Return the wish for the profile's own GPUs: it counts those of all its servers."""
    if not profile.replicas or wish.sizes != Sizes():
        return wish
    return replace(wish, sizes=Sizes(replicas=1 + len(profile.replicas)))


def gpus_of(profile: Profile, text: str | None) -> Gpus:
    """Return the GPUs that are meant: as written, deployed to, found on this machine, or the profile's.

    Raises:
        SetUpImpossible: There are none, or they are not known.
    """
    if text is not None and text != FOUND:
        return parse_gpus(text)
    if text is None and profile.deploy is not None:
        return parse_gpus(profile.deploy.gpus)
    found = find_gpus()
    if found is not None:
        return found
    if text is None and profile.gpus is not None and profile.gpu_kind is not None:
        return parse_gpus(f"{profile.gpus}x{profile.gpu_kind}")
    raise SetUpImpossible(
        "nvidia-smi lists no GPU on this machine; say which are meant, such as --gpus 8xH200, or"
        " --gpus 8x96GiB for a kind that is not in the catalogue"
    )


def served_tokens(profile: Profile) -> int | None:
    """Return the tokens of the cache that the profile's server reports; None: it does not run or tell."""
    if profile.serve is not None:
        running = find_server(profile, load_surroundings().cache)
        return cache_tokens(running.base_url) if running is not None else None
    if profile.deploy is not None:
        # A host's API tells nothing of the caches behind it.
        return None
    return cache_tokens(profile.base_url) if profile.base_url is not None else None


def with_served(found: Plan, served: int | None) -> dict[str, Any]:
    """Return a plan as JSON, beside what the profile's server reports, in tokens of one engine's cache."""
    difference = None
    if served is not None and found.engine_tokens is not None:
        difference = round(100 * (found.engine_tokens / served - 1), 2)
    return {
        **as_json(found),
        "served": None
        if served is None
        else {"kv_tokens": served, "planner_differs_percent": difference},
    }


def pipeline_capacity(profile: Profile, request_tokens: int) -> Mapping[str, Any] | None:
    """Return what the profile's own hardware holds of a pipeline; None where that is not known.

    Args:
        profile: The pipeline's engine, with `facts` and, for GPUs, `gpus` and `gpu_kind`.
        request_tokens: Its longest chunk with question and answer.
    """
    known = profile.serve is not None or (profile.gpus is not None and profile.gpu_kind is not None)
    if profile.facts is None or not known:
        return None
    gpus = None if profile.serve is not None else f"{profile.gpus}x{profile.gpu_kind}"
    told: dict[str, Any] = {"gpus": gpus, "request_tokens": request_tokens}
    try:
        found = capacity(
            profile,
            Asked(gpus=gpus, wish=as_served(profile, Wish(context_tokens=profile.context_tokens))),
        )
    except (SetUpImpossible, ConfigError) as exc:
        return {
            **told,
            "fits": None,
            "reason": str(exc),
            "kv_tokens": None,
            "requests_at_once": None,
        }
    return {
        **told,
        "fits": found.fits,
        "reason": found.reasons[0],
        "kv_tokens": found.kv_tokens,
        "requests_at_once": found.requests_at_once(request_tokens),
    }
