"""Checks of Prefect and of the ports that `headrace up` takes."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from config.load import load_secret
from flows.checks.finding import Finding, fail, ok, warn
from flows.deployments import DEPLOYMENTS, WORK_POOL
from flows.pieces import Piece, running_pieces
from flows.services import is_free
from flows.stack import DEFAULT_PORT
from flows.web import fetch

_TIMEOUT_S = 3.0
_LOCAL = {"127.0.0.1", "localhost"}


def check_ports(api_url: str | None, ports: Sequence[int] = ()) -> Sequence[Finding]:
    """Return whether the ports of `headrace up` are free, or held by what it has started."""
    held = {urlsplit(piece.address).port: name for name, piece in _served().items()}
    first = next((number for number, name in held.items() if name == "prefect"), DEFAULT_PORT)
    wanted = ports or (first or DEFAULT_PORT, (first or DEFAULT_PORT) + 1)
    return [_port(number, held.get(number), api_url) for number in wanted]


def _served() -> dict[str, Piece]:
    """Return what `headrace up` has running on ports of its own."""
    return {
        name: piece for name, piece in running_pieces().items() if name in {"prefect", "reports"}
    }


def _port(number: int, holder: str | None, api_url: str | None) -> Finding:
    check = f"port {number}"
    if holder is not None:
        return ok(check, f"held by `headrace up`: {holder}")
    if is_free(number):
        return ok(check, "free")
    parts = urlsplit(api_url or "")
    if parts.hostname in _LOCAL and parts.port == number:
        return ok(check, f"held by the Prefect server of {api_url}")
    return warn(check, "taken by another program", f"headrace up --port {number + 100}")


def check_prefect(api_url: str | None) -> Sequence[Finding]:
    """Return whether the Prefect server that runs report to answers and knows our deployments."""
    own = _served().get("prefect")
    if api_url is None and own is None:
        return [ok("prefect", "none configured; runs go on in the process of the command itself")]
    url = api_url or f"{own.address if own else ''}/api"
    try:
        return _server(url)
    except HTTPError as exc:
        mend = "export PREFECT_API_KEY=..." if exc.code in {401, 403} else f"curl {url}/health"
        return [fail("prefect", f"{url} answers with status {exc.code}", mend)]
    except (URLError, TimeoutError, ConnectionError) as exc:
        says = f"{url} does not answer ({getattr(exc, 'reason', exc)})"
        return [fail("prefect", says, _bring_back(url))]


def _bring_back(url: str) -> str:
    """Return the command that makes runs work again although this server is down."""
    parts = urlsplit(url)
    if parts.hostname in _LOCAL:
        port = parts.port or DEFAULT_PORT
        return "headrace up" if port == DEFAULT_PORT else f"headrace up --port {port}"
    # Named by the variable or by Prefect's own profile.
    named = load_secret("PREFECT_API_URL") is not None
    return "unset PREFECT_API_URL" if named else "prefect config unset PREFECT_API_URL"


def _server(api_url: str) -> Sequence[Finding]:
    served, ours = str(_ask(f"{api_url}/admin/version")), version("prefect")
    says = f"{api_url} answers, version {served}"
    if served.split(".")[:2] != ours.split(".")[:2]:
        mend = "headrace down && headrace up"
        return [warn("prefect", f"{says}; the client here is {ours}", mend), *_deployed(api_url)]
    return [ok("prefect", says), *_deployed(api_url)]


def _deployed(api_url: str) -> Sequence[Finding]:
    """Return whether the work pool and the deployments are there."""
    chosen = {"deployments": {"name": {"any_": list(DEPLOYMENTS)}}}
    found = _ask(f"{api_url}/deployments/filter", chosen)
    names = {item["name"] for item in found} if isinstance(found, list) else set()
    pools = _ask(f"{api_url}/work_pools/filter", {"work_pools": {"name": {"any_": [WORK_POOL]}}})
    missing = [name for name in DEPLOYMENTS if name not in names]
    if not pools:
        missing.append(f"work pool {WORK_POOL}")
    if missing:
        return [warn("deployments", f"missing: {', '.join(missing)}", "headrace up")]
    return [ok("deployments", f"{', '.join(DEPLOYMENTS)} on work pool {WORK_POOL}")]


def _ask(url: str, body: Mapping[str, object] | None = None) -> object:
    answer: object = json.loads(fetch(url, body, headers=_sign_in(), timeout_s=_TIMEOUT_S))
    return answer


def _sign_in() -> dict[str, str]:
    """Return the header that lets us in, as Prefect's client would send it."""
    key, user = load_secret("PREFECT_API_KEY"), load_secret("PREFECT_API_AUTH_STRING")
    if key:
        return {"Authorization": f"Bearer {key}"}
    if user:
        return {"Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}
    return {}
