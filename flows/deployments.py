"""Puts the deployments of prefect.yaml onto a Prefect server of this machine, with closed run forms."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from config.load import REPOSITORY, known_pipelines, known_profiles
from engine.errors import PrerequisiteError
from flows.web import fetch

WORK_POOL = "headrace"
DEPLOYMENTS = ("process-corpus", "retry-failed", "resume-crashed", "report")

_LIMIT_S = 120.0
_PATIENCE_S = 90.0
"""On a busy machine a write waits long for SQLite's lock: 30 s were seen."""
_BUSY, _TRIES, _PAUSE_S = 503, 20, 0.5
_FILES = (
    "prefect.yaml",
    "flows/corpus.py",
    "flows/parameters.py",
    "flows/deployments.py",
    "flows/automations.py",
)


def call(
    api_url: str, path: str, body: Mapping[str, Any] | None = None, method: str | None = None
) -> list[dict[str, Any]]:
    """Return the list that the server's API answers; none where it answers with nothing.

    Raises:
        PrerequisiteError: It does not answer, or refuses.
    """
    for attempt in range(_TRIES):
        try:
            answer = fetch(f"{api_url}/{path}", body, method=method, timeout_s=_PATIENCE_S)
            return list(json.loads(answer or b"[]"))
        except HTTPError as exc:
            # SQLite was locked by another write; Prefect's own client tries again too.
            if exc.code == _BUSY and attempt + 1 < _TRIES:
                time.sleep(_PAUSE_S)
                continue
            text = exc.read().decode(errors="replace")[:500]
            raise PrerequisiteError(
                f"the Prefect server answers {path} with {exc.code}: {text}"
            ) from exc
        except (OSError, ValueError) as exc:
            raise PrerequisiteError(
                f"the Prefect server at {api_url} does not answer: {exc}"
            ) from exc
    raise PrerequisiteError(f"the Prefect server at {api_url} is busy")


def fingerprint() -> str:
    """Return a hash of everything that the deployments are made of."""
    digest = hashlib.sha256()
    for name in _FILES:
        digest.update((REPOSITORY / name).read_bytes())
    digest.update(json.dumps([*known_pipelines(), *known_profiles()]).encode())
    return digest.hexdigest()


def are_deployed(api_url: str) -> bool:
    """Tell whether the server has all deployments."""
    return deployment_ids(api_url).keys() >= set(DEPLOYMENTS)


def deployment_ids(api_url: str) -> dict[str, str]:
    """Return the ids of the deployments that the server has, by name.

    Raises:
        PrerequisiteError: It does not answer.
    """
    return {item["name"]: item["id"] for item in _deployments(api_url)}


def deploy(api_url: str, environment: Mapping[str, str], log: Path) -> None:
    """Put the deployments of prefect.yaml onto the server, and close their run forms.

    Raises:
        PrerequisiteError: Prefect refuses them.
    """
    argv = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    with log.open("wb") as out:
        done = subprocess.run(
            argv,
            cwd=REPOSITORY,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            timeout=_LIMIT_S,
            check=False,
        )
    if done.returncode != 0 or not are_deployed(api_url):
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise PrerequisiteError(f"the deployments were refused; log {log} ends with:\n{tail}")
    close_forms(api_url)


def close_forms(api_url: str) -> None:
    """Give each deployment the form that it shows and that the server holds parameters against.

    Prefect's own schema leaves room for any name, and a run with a misspelt one is created, takes
    its slot, and crashes.
    """
    for item in _deployments(api_url):
        body = {"parameter_openapi_schema": form(item["parameter_openapi_schema"])}
        call(api_url, f"deployments/{item['id']}", body, method="PATCH")


def form(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema closed to other names, with one plain field for each optional parameter.

    As `str | None`, a parameter would be shown as two tabs, the empty one in front, and no list.
    Without a default the server lets it be left out, which means the same.
    """
    properties = {name: _plain(value) for name, value in schema["properties"].items()}
    return {**schema, "properties": properties, "additionalProperties": False}


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in value.get("anyOf", ()) if kind.get("type") != "null"]
    if len(kinds) != 1 or value.get("default") is not None:
        return dict(value)
    plain = {**kinds[0], **value}
    for name in ("anyOf", "const", "default"):
        plain.pop(name, None)
    if "enum" in plain:
        plain["enum"] = [choice for choice in plain["enum"] if choice is not None]
    return plain


def _deployments(api_url: str) -> list[dict[str, Any]]:
    chosen = {"deployments": {"name": {"any_": list(DEPLOYMENTS)}}}
    return call(api_url, "deployments/filter", chosen)
