"""Looks at the whole set-up and says, finding by finding, what is wrong and what mends it.

Checks run at the same time, each by itself: one that cannot be made becomes a warning with the reason.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http.client import HTTPException

from config.errors import ConfigError
from config.load import Surroundings, load_profile, load_secret, load_surroundings
from connectors.errors import ConnectorError
from connectors.storage import Access
from engine.errors import EngineError
from engine.local_models import LOCAL_MODELS
from engine.profile import Profile
from flows.checks import endpoint, install, machine, services, storage
from flows.checks.finding import Check, Finding, warn

LIMIT_S = 5.0
"""Seconds that all checks together get; one that takes longer is reported as such and left behind."""

_CANNOT = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    RuntimeError,
    HTTPException,
    subprocess.SubprocessError,
    ConfigError,
    ConnectorError,
    EngineError,
)
"""What may keep a check from being made: files and answers of another form than expected."""

_SECRETS = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "PREFECT_API_KEY",
    "PREFECT_API_AUTH_STRING",
)
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_MIN_SECRET_CHARS = 4


def diagnose(
    engine: str = "embedded",
    source: str | None = None,
    sink: str | None = None,
    *,
    cache: str | None = None,
    access_to: Callable[[str], Access | None] = lambda _: None,
    limit_s: float = LIMIT_S,
) -> list[Finding]:
    """Return what the checks have found, in a fixed order.

    Args:
        engine: Profile name or URL of the engine that runs are to use.
        source: Folder or bucket to read from; not looked at where None.
        sink: Folder or bucket to write to; not looked at where None.
        cache: Folder or bucket of shared answers; not looked at where None.
        access_to: Returns how source, sink and cache are reached; by the environment where None.
        limit_s: Seconds for all checks together.

    Raises:
        ConfigError: There is no such profile.
    """
    profile, surroundings = load_profile(engine), load_surroundings()
    checks = _checks(engine, profile, surroundings)
    if source is not None:
        checks["source"] = partial(storage.check_source, source, access_to(source))
    if sink is not None:
        checks["sink"] = partial(storage.check_sink, sink, access_to(sink))
    if cache is not None:
        checks["cache"] = partial(storage.check_sink, cache, access_to(cache), check="cache")
    findings = _run(checks | _services(surroundings), limit_s)
    secrets = [load_secret(name) for name in (*_SECRETS, profile.api_key_env)]
    return [_hide(finding, [text for text in secrets if text]) for finding in findings]


def is_well(findings: Sequence[Finding]) -> bool:
    """Tell whether nothing keeps runs from working."""
    return all(finding.status != "fail" for finding in findings)


def _checks(engine: str, profile: Profile, surroundings: Surroundings) -> dict[str, Check]:
    """Return the checks of machine and engine; an engine elsewhere needs less of this machine."""
    checks: dict[str, Check] = {
        "python": machine.check_python,
        "packages": install.check_packages,
        "folders": partial(machine.check_folders, surroundings),
    }
    if profile.serve is not None:
        checks |= {
            "cpu": partial(machine.check_cpu, LOCAL_MODELS[profile.serve].dtype()),
            "gpu": machine.check_gpu,
            "memory": machine.check_memory,
            "engine environment": partial(install.check_engine_environment, surroundings),
            f"{profile.serve} model": partial(install.check_model, surroundings, profile.serve),
        }
    return checks | {"engine": partial(endpoint.check_engine, engine, profile, surroundings)}


def _services(surroundings: Surroundings) -> dict[str, Check]:
    return {
        "ports": partial(services.check_ports, surroundings.prefect_api_url),
        "prefect": partial(services.check_prefect, surroundings.prefect_api_url),
        "tesseract": machine.check_tesseract,
    }


def _run(checks: Mapping[str, Check], limit_s: float) -> list[Finding]:
    """Return the findings of all checks, in the order of `checks`."""
    found: dict[str, Sequence[Finding]] = {}

    def one(name: str, check: Check) -> None:
        try:
            found[name] = check()
        except _CANNOT as exc:
            found[name] = [warn(name, f"could not be checked: {type(exc).__name__}: {exc}")]

    # Daemons: a check that hangs in a socket must not hold the command.
    threads = [
        threading.Thread(target=one, args=item, daemon=True, name=item[0])
        for item in checks.items()
    ]
    deadline = time.monotonic() + limit_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = f"not finished within {limit_s:g} s"
    return [item for name in checks for item in found.get(name) or [warn(name, late)]]


def _hide(finding: Finding, secrets: Sequence[str]) -> Finding:
    """Return the finding without keys, passwords and the user part of URLs."""
    texts = {"says": finding.says, "mend": finding.mend}
    for name, text in texts.items():
        texts[name] = _USER_IN_URL.sub("", text)
        for secret in secrets:
            if len(secret) >= _MIN_SECRET_CHARS:
                texts[name] = texts[name].replace(secret, "***")
    return Finding(check=finding.check, status=finding.status, **texts)
