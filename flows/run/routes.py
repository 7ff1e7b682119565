"""The routes of a job: which engines may be sent which documents, and why.

A route is `open`, `masked` (personal data becomes placeholders first) or `sensitive` (engines on one's own
premises only). What would break the pipeline's policy is refused here, before anything is opened.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal
from urllib.parse import urlsplit

from config.errors import ConfigError
from config.load import known_profiles, load_profile
from config.pipeline import PipelineConfig, StageConfig
from config.policy import PolicyConfig
from engine.profile import Profile
from flows.run.globs import glob_regex
from flows.run.vectors import vectors_engine

_ANY_CASE = re.IGNORECASE | re.DOTALL

RouteName = Literal["open", "masked", "sensitive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One route of a job, before its engines are opened."""

    name: RouteName
    engines: tuple[str, ...]
    """The first is asked, the others stand in for it."""
    why: str
    """Why documents may go there."""


@dataclass(frozen=True)
class Routes:
    """All routes of a job."""

    passages: tuple[Passage, ...]
    """That of documents which are not sensitive first, where there is one."""
    sensitive: tuple[str, ...] = field(default=())
    """Globs of sensitive documents."""

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        if not self.sensitive:
            return None
        return re.compile("|".join(f"(?:{glob_regex(g)})" for g in self.sensitive), _ANY_CASE)

    def find(self, paths: Iterable[str]) -> Passage:
        """Return the route of documents that go together: the sensitive one if any of them is."""
        return self.passages[-1 if any(map(self.is_sensitive, paths)) else 0]

    def is_sensitive(self, path: str) -> bool:
        """Tell whether a document may go to engines on one's own premises only."""
        return self._pattern is not None and self._pattern.fullmatch(path) is not None

    @property
    def of_gathered(self) -> Passage:
        """Return the route of what rests on all documents."""
        return self.passages[-1]


def routes_of(pipeline: PipelineConfig) -> Routes:
    """Return the routes of a pipeline.

    Raises:
        ConfigError: It would break its own policy, or there is no such profile.
    """
    policy = pipeline.policy
    engines = (pipeline.engine, *pipeline.fallback)
    if policy is None:
        return Routes((Passage(name="open", engines=engines, why="the pipeline has no policy"),))
    profiles = {engine: load_profile(engine) for engine in (*engines, *policy.on_premises)}
    _check_premises(policy, profiles)
    _check_vectors(pipeline, policy)
    if policy.is_all_sensitive:
        return Routes((_all_sensitive(pipeline, policy),), policy.sensitive)
    away = [engine for engine in engines if not _is_own(engine, profiles[engine], policy)]
    _check_certifications(policy, away, profiles)
    if away and policy.mask is not None:
        _check_masked(pipeline)
        why = f"not sensitive, and masked for {away[0]}"
        passages = [Passage(name="masked", engines=engines, why=why)]
    else:
        why = "not sensitive" if policy.sensitive else "no document is sensitive"
        passages = [Passage(name="open", engines=engines, why=why)]
    if policy.sensitive:
        _check_servers(pipeline, policy)
        passages.append(
            Passage(name="sensitive", engines=policy.on_premises, why=_named(policy.on_premises))
        )
    return Routes(tuple(passages), policy.sensitive)


def _named(engines: Iterable[str]) -> str:
    return f"policy.on_premises names {', '.join(engines)}"


def _all_sensitive(pipeline: PipelineConfig, policy: PolicyConfig) -> Passage:
    """Return the one route of a pipeline whose documents are all sensitive.

    Raises:
        ConfigError: Its engine, a fallback or a tool is not on the premises.
    """
    keys = {"engine": pipeline.engine} | {
        f"fallback[{number}]": engine for number, engine in enumerate(pipeline.fallback)
    }
    for key, engine in keys.items():
        if engine not in policy.on_premises:
            raise ConfigError(
                f"{key}: {engine!r} would be sent documents that policy.sensitive marks, and"
                f" policy.on_premises allows {', '.join(policy.on_premises)} only; set {key} to one of"
                " them, or name it there if it is yours"
            )
    _check_servers(pipeline, policy)
    engines = (pipeline.engine, *pipeline.fallback)
    return Passage(name="sensitive", engines=engines, why=_named(engines))


def _check_premises(policy: PolicyConfig, profiles: Mapping[str, Profile]) -> None:
    """Check that no engine is called one's own that somebody hosts.

    Raises:
        ConfigError: One is.
    """
    for engine in policy.on_premises:
        profile = profiles[engine]
        host = profile.hosted_by or _hosts().get(_host_of(profile))
        if host is not None:
            raise ConfigError(
                f"policy.on_premises: {engine!r} is hosted by {host}, so that what is sent leaves your"
                " premises; name an engine on your own machines, such as kimi-k2.5"
            )


def _hosts() -> dict[str, str]:
    """Return who runs the hosts that are known, by the host's name."""
    found = {}
    for name in known_profiles():
        profile = load_profile(name)
        if profile.hosted_by is not None:
            found[_host_of(profile)] = profile.hosted_by
    return found


def _host_of(profile: Profile) -> str:
    return urlsplit(profile.base_url or "").hostname or ""


def _is_own(engine: str, profile: Profile, policy: PolicyConfig) -> bool:
    """Tell whether an engine is known to be on one's own premises."""
    if engine in policy.on_premises or profile.serve is not None:
        return True
    if profile.hosted_by is not None:
        return False
    host = _host_of(profile)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_certifications(
    policy: PolicyConfig, away: Iterable[str], profiles: Mapping[str, Profile]
) -> None:
    """Check that engines elsewhere are certified as the policy wants it.

    Raises:
        ConfigError: One is not, as far as its profile says.
    """
    for engine in away:
        held = profiles[engine].data_sheet.certifications
        missing = missing_certifications(policy.certifications, held)
        if missing:
            raise ConfigError(
                f"policy.certifications asks for {', '.join(missing)}, and the data sheet of engine"
                f" {engine!r} has {', '.join(held) or 'none'}; choose an engine that is certified, one of"
                " your own under policy.on_premises, or enter the certificate into data_sheet of a copy of"
                " the profile once you have seen it"
            )


def missing_certifications(wanted: Iterable[str], held: Iterable[str]) -> list[str]:
    """Return what is wanted and not held; `SOC 2` is held by whoever has `SOC 2 Type II`."""
    has = [_plain(one) for one in held]
    return [one for one in wanted if not any(_begins(name, _plain(one)) for name in has)]


def _plain(name: str) -> str:
    return " ".join(re.findall(r"[a-z]+|\d+", name.lower()))


def _begins(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(f"{wanted} ")


def _asking(pipeline: PipelineConfig) -> list[StageConfig]:
    return [stage for stage in pipeline.stages if stage.compute is None]


def _check_vectors(pipeline: PipelineConfig, policy: PolicyConfig) -> None:
    """Check that whoever makes vectors may see what agents search.

    Raises:
        ConfigError: It may not.
    """
    engine = vectors_engine(pipeline)
    if engine is None:
        return
    if policy.sensitive and engine not in policy.on_premises:
        raise ConfigError(
            f"search.vectors: {engine!r} would be sent passages of documents that policy.sensitive marks, and"
            f" policy.on_premises allows {', '.join(policy.on_premises)} only; name it there if it is yours, or"
            " drop search.vectors"
        )
    profile = load_profile(engine)
    if _is_own(engine, profile, policy):
        return
    if policy.mask is not None:
        raise ConfigError(
            f"search.vectors: {engine!r} would be sent passages unmasked, and is not on your premises; name it"
            " under policy.on_premises if it is yours, or drop search.vectors"
        )
    _check_certifications(policy, [engine], {engine: profile})


def _check_masked(pipeline: PipelineConfig) -> None:
    """Check that nothing leaves that is not masked.

    Raises:
        ConfigError: A stage uses tools, whose results are as the documents are.
    """
    policy = pipeline.policy
    for stage in _asking(pipeline):
        if stage.require == "images":
            raise ConfigError(
                f"stage {stage.name!r}: require: images, and with policy.mask no image is sent to an engine"
                " that is not on your premises, since nothing in it could be masked; drop one of the two"
            )
        # What rests on all documents goes the sensitive way, where there is one.
        if stage.tools and not (policy and policy.sensitive and stage.is_gathered):
            raise ConfigError(
                f"stage {stage.name!r}: tools show a model what documents say, unmasked, and"
                " policy.mask is set for an engine that is not on your premises; drop the tools, or"
                " mark its documents as sensitive and name an engine under policy.on_premises"
            )


def _check_servers(pipeline: PipelineConfig, policy: PolicyConfig) -> None:
    """Check that no tool carries sensitive text away.

    Raises:
        ConfigError: A stage uses a server that is not said to be on the premises.
    """
    for stage in _asking(pipeline):
        for tool in stage.tools:
            server, is_remote, _ = tool.partition("__")
            if is_remote and server not in policy.mcp:
                raise ConfigError(
                    f"stage {stage.name!r}: tools: {tool!r} would carry what sensitive documents say to"
                    f" the MCP server {server!r}; name it under policy.mcp if it is on your premises, or"
                    " drop the tool"
                )
