"""An endpoint: a profile bound to a live address, with what the server itself says of its model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from engine.errors import EngineMisconfigured, EngineUnavailable, PrerequisiteError
from engine.local_models import LOCAL_MODELS
from engine.profile import Profile
from engine.server import Server, ensure_server, find_server
from engine.status import authorization, map_errors, raise_for_status
from engine.tokens import TokenCounter
from engine.tokens.chat import CHAT_TOKENS, chat_tokens
from engine.tokens.opening import load_counter, open_counter

TEMPLATE_MARGIN_TOKENS = 64
"""Tokens set aside for the chat template's own marks; the templates seen need 10 to 30."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Everything needed to send requests."""

    profile: Profile
    base_url: str
    model: str
    context_tokens: int
    """Longest prompt and answer together, the smaller of what profile and server say."""
    counter: TokenCounter
    api_key: str | None = None
    server: Server | None = None
    """The engine behind it, where this machine runs it."""
    chat_tokens: int = CHAT_TOKENS
    """Tokens that the chat template puts around a prompt's texts; measured for a plan only."""

    def __repr__(self) -> str:
        """Return the address and model; never the key."""
        return f"Endpoint({self.base_url!r}, model={self.model!r})"

    def close(self) -> None:
        """End the engine, if opening the endpoint started it, and close connections."""
        self.counter.close()
        if self.server is not None:
            self.server.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_endpoint(
    profile: Profile,
    *,
    venv: Path,
    cache: Path,
    environment: Mapping[str, str],
    api_key: str | None,
    notify: Callable[[str], None],
) -> Endpoint:
    """Return the profile's endpoint, its server started where this machine serves it.

    Args:
        profile: The host.
        venv: The engine's environment, for a profile that this machine serves.
        cache: Folder of model weights and server state.
        environment: Environment variables for a server that is started.
        api_key: Key for the host, or None.
        notify: Called with lines about slow steps.

    Raises:
        EngineUnavailable: Nothing answers at the address.
        EngineMisconfigured: The address, the key or the model is wrong.
        PrerequisiteError: The server cannot be started here.
    """
    server: Server | None = None
    base_url = profile.base_url or ""
    if profile.serve is not None:
        server = ensure_server(
            profile, venv=venv, cache=cache, environment=environment, notify=notify
        )
        base_url = server.base_url
    try:
        model, served_context = _describe(base_url, profile, api_key)
        context = min(n for n in (profile.context_tokens, served_context) if n is not None)
        counter = _counter(profile, base_url, model, api_key, cache=cache, notify=notify)
    except BaseException:
        if server is not None:
            server.stop()
        raise
    return Endpoint(
        profile=profile,
        base_url=base_url,
        model=model,
        context_tokens=context,
        counter=counter,
        api_key=api_key,
        server=server,
    )


def replicas_of(endpoint: Endpoint, notify: Callable[[str], None]) -> list[Endpoint]:
    """Return the endpoints of further servers of the same model; one that is down may come back.

    Raises:
        EngineMisconfigured: One of them has another model, or refuses the key.
    """
    found = []
    for url in endpoint.profile.replicas:
        context = endpoint.context_tokens
        try:
            model, served = _describe(url, endpoint.profile, endpoint.api_key)
        except EngineUnavailable as exc:
            notify(f"replica {url} does not answer, the others stand in until it does: {exc}")
        else:
            if model != endpoint.model or (served is not None and served < context):
                raise EngineMisconfigured(
                    f"replica {url} serves {model!r} with a context of {served or context:,} tokens,"
                    f" {endpoint.base_url} {endpoint.model!r} with {context:,}; replicas must be alike"
                )
        found.append(replace(endpoint, base_url=url, server=None))
    return found


def plan_endpoint(
    profile: Profile, *, cache: Path, api_key: str | None, notify: Callable[[str], None]
) -> Endpoint:
    """Return the profile's endpoint for planning: nothing is started and no prompt is sent.

    An endpoint that does not answer is planned with what the profile says of it.

    Raises:
        EngineMisconfigured: The endpoint refuses the key, or has another model.
        PrerequisiteError: The profile's tokenizer is missing.
    """
    model, served_context, reached = profile.model or profile.name, None, ""
    base_url, template = profile.base_url or "", None
    if profile.serve is not None:
        template = LOCAL_MODELS[profile.serve].model_folder(cache) / "chat_template.jinja"
        # One that runs tells how much its cache holds, by which a run cuts chunks.
        running = find_server(profile, cache)
        base_url = running.base_url if running is not None else ""
    else:
        try:
            model, served_context = _describe(profile.base_url or "", profile, api_key)
            reached = profile.base_url or ""
        except EngineUnavailable as exc:
            notify(f"planning without the engine: {exc}")
    known = [n for n in (profile.context_tokens, served_context) if n is not None]
    counter = _counter(profile, reached, model, api_key, cache=cache, notify=notify)
    return Endpoint(
        profile=profile,
        base_url=base_url,
        model=model,
        context_tokens=min(known, default=DEFAULT_CONTEXT_TOKENS),
        counter=counter,
        chat_tokens=chat_tokens(counter, template),
    )


DEFAULT_CONTEXT_TOKENS = 32_768
"""Context assumed where neither profile nor endpoint names one; a longer prompt is refused there."""


def _describe(base_url: str, profile: Profile, api_key: str | None) -> tuple[str, int | None]:
    """Return the model and the context length that the endpoint lists, or the profile's where it may list none.

    Raises:
        EngineUnavailable: Nothing answers.
        EngineMisconfigured: It refuses, is no such API, or has another model.
    """
    with map_errors(base_url):
        answer = httpx.get(f"{base_url}/models", headers=authorization(api_key), timeout=10.0)
    unlisted = None if profile.context_tokens else DEFAULT_CONTEXT_TOKENS
    if answer.status_code == httpx.codes.NOT_FOUND and profile.model and not profile.listed:
        return profile.model, unlisted
    raise_for_status(answer, base_url, key=profile.key_in_words)
    try:
        models = {str(item["id"]): item.get("max_model_len") for item in answer.json()["data"]}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as exc:
        raise EngineMisconfigured(
            f"{base_url}/models does not answer like an OpenAI-compatible API; check the URL"
        ) from exc
    if not models:
        raise EngineUnavailable(f"{base_url} serves no model; check the server")
    model = profile.model or next(iter(models))
    if model not in models:
        if not profile.listed:
            return model, unlisted
        raise EngineMisconfigured(
            f"{base_url} has no model {model!r}; it has {', '.join(sorted(models))}"
        )
    length = models[model]
    return model, length if isinstance(length, int) else unlisted


def _counter(
    profile: Profile,
    base_url: str,
    model: str,
    api_key: str | None,
    *,
    cache: Path,
    notify: Callable[[str], None],
) -> TokenCounter:
    """Return what counts tokens; `base_url` is empty where the endpoint is not up.

    Raises:
        PrerequisiteError: The vocabulary is missing or broken.
    """
    if profile.serve is not None:
        file = LOCAL_MODELS[profile.serve].model_folder(cache) / "tokenizer.json"
        if not file.is_file():
            raise PrerequisiteError(
                f"the model of engine {profile.name!r} is not at {str(file.parent)!r} yet; run"
                " `headrace engine install`"
            )
        return load_counter(file)
    return open_counter(
        profile.tokenizer,
        base_url=base_url,
        model=model,
        api_key=api_key,
        cache=cache,
        notify=notify,
    )
