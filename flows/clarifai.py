"""Writes a planned deployment on Clarifai as files, and says what comes next. Called by `engine plan --emit`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.errors import ConfigError
from config.load import REPOSITORY
from config.yaml_text import dump_yaml
from engine.capacity import Plan
from engine.errors import SetUpImpossible
from engine.profile import Profile
from engine.serving import clarifai

TEMPLATES = REPOSITORY / "config" / "clarifai"


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """What was written, and what to do with it."""

    folder: Path
    written: tuple[Path, ...]
    unchanged: tuple[Path, ...]
    profile: Path
    """The profile of the deployment."""
    model_url: str
    to_fill_in: tuple[str, ...]
    """What only the account, or an upload, can tell: one sentence each."""
    next_steps: tuple[str, ...]
    """Commands, in order."""

    def as_json(self) -> dict[str, Any]:
        """Return it as one JSON object."""
        return {
            "folder": str(self.folder),
            "written": [str(file) for file in self.written],
            "unchanged": [str(file) for file in self.unchanged],
            "profile": str(self.profile),
            "model": self.model_url,
            "to_fill_in": list(self.to_fill_in),
            "next": list(self.next_steps),
        }

    def lines(self) -> list[str]:
        """Return it for people."""
        return [
            *(f"wrote {file}" for file in self.written),
            *(f"unchanged {file}" for file in self.unchanged),
            *(f"to fill in: {what}" for what in self.to_fill_in),
            "next:",
            *(f"  {step}" for step in self.next_steps),
        ]


def emit(
    profile: Profile,
    plan: Plan,
    options: clarifai.ClarifaiOptions,
    folder: Path,
    *,
    overwrite: bool,
) -> Emitted:
    """Write the files of a planned deployment.

    Args:
        profile: A profile with `deploy`.
        plan: The GPUs of one replica.
        options: What the plan does not say.
        folder: Where the files go; made where it is missing.
        overwrite: Whether files that are there with other content are replaced.

    Raises:
        ConfigError: The profile has no such cloud, or files are in the way or cannot be written.
        SetUpImpossible: The plan does not fit.
    """
    if profile.deploy is None:
        raise ConfigError(
            f"--emit writes what a cloud needs, and profile {profile.name!r} names none; take clarifai, or copy"
            " that profile"
        )
    found = clarifai.set_up_clarifai(profile, plan, options)
    own = folder / f"clarifai-{found.model_id}.yaml"
    if own.stem == profile.name:
        raise SetUpImpossible(
            f"profile {profile.name!r} is such a deployment already; plan clarifai"
        )
    texts = {folder / name: text for name, text in _texts(found).items()}
    texts[own] = _yaml(
        clarifai.own_profile(profile, found, own.stem),
        "Profile of the deployment and of a local runner, which have one address; planned with clarifai.yaml.",
    )
    written, unchanged = _write(texts, overwrite=overwrite)
    return Emitted(
        folder=folder,
        written=written,
        unchanged=unchanged,
        profile=own,
        model_url=found.model_url,
        to_fill_in=_to_fill_in(found, own),
        next_steps=_next_steps(found, folder, own),
    )


def _texts(found: clarifai.ClarifaiSetUp) -> Mapping[str, str]:
    """Return the files by their names below the folder."""
    said = found.plan.reasons[0]
    return {
        "compute_cluster.yaml": _yaml(clarifai.compute_cluster(found)),
        "nodepool.yaml": _yaml(
            clarifai.nodepool(found), f"An instance for each replica. Each: {said}."
        ),
        "deployment.yaml": _yaml(clarifai.deployment(found)),
        "model/config.yaml": _yaml(clarifai.model_config(found), f"A replica: {said}."),
        "model/requirements.txt": _template("requirements.txt"),
        "model/1/model.py": _template("model.py.txt"),
        "model/1/server.json": json.dumps(clarifai.server_set_up(found), indent=2) + "\n",
    }


def _yaml(value: object, *comments: str) -> str:
    head = ("Written by `headrace engine plan --emit` for clarifai 12.5.", *comments)
    return "".join(f"# {line}\n" for line in head) + dump_yaml(value)


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _write(
    texts: Mapping[Path, str], *, overwrite: bool
) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Write what differs; return what was written, and what was there already.

    Raises:
        ConfigError: Files are in the way, or cannot be written.
    """
    try:
        there = {file: file.read_text(encoding="utf-8") for file in texts if file.exists()}
        differing = [file for file, text in there.items() if text != texts[file]]
        if differing and not overwrite:
            raise ConfigError(
                f"{', '.join(map(str, differing))}: there with other content; --overwrite replaces them, or give"
                " another folder"
            )
        changed = [file for file in texts if file in differing or file not in there]
        for file in changed:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(texts[file], encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise ConfigError(
            f"--emit: a file of the folder is no text ({exc.reason}); give another folder"
        ) from exc
    except OSError as exc:
        raise ConfigError(
            f"{exc.filename} cannot be written: {exc.strerror}; check the path of --emit"
        ) from exc
    return tuple(changed), tuple(file for file in texts if file not in changed)


def _to_fill_in(found: clarifai.ClarifaiSetUp, own: Path) -> tuple[str, ...]:
    lines = []
    if found.user_id == clarifai.NO_USER:
        lines.append(
            f"{clarifai.NO_USER} in deployment.yaml and {own.name}: your user id, or again with --user-id"
        )
    if found.version_id == clarifai.NO_VERSION:
        lines.append(
            f"{clarifai.NO_VERSION} in deployment.yaml: the version that `clarifai model upload` prints, or again"
            " with --model-version and --overwrite"
        )
    return tuple(lines)


def _next_steps(found: clarifai.ClarifaiSetUp, folder: Path, own: Path) -> tuple[str, ...]:
    """Return the commands; those of clarifai are of its version 12.5."""
    gpu = f" --gpu {found.gpus.gpu.name}" if found.gpus.gpu.vendor is not None else ""
    model = str(folder / "model")
    steps: Sequence[Sequence[str]] = (
        ("pip", "install", "clarifai==12.5.0"),
        ("clarifai", "login"),
        f"clarifai list-instances --cloud {found.cloud}{gpu} --min-gpus {found.gpus.count}".split(),
        ("clarifai", "computecluster", "create", found.cluster_id, "--config", str(folder / "compute_cluster.yaml")),
        ("clarifai", "nodepool", "create", found.cluster_id, found.nodepool_id, "--config", str(folder / "nodepool.yaml")),
        ("clarifai", "model", "upload", model),
        ("clarifai", "deployment", "create", found.nodepool_id, found.deployment_id, "--config", str(folder / "deployment.yaml")),
        ("headrace", "doctor", "--engine", str(own)),
    )  # fmt: skip
    return tuple(shlex.join(step) for step in steps)
