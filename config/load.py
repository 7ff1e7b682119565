"""Reads pipelines and profiles from YAML, and the environment. The only reader of os.environ.

Errors name the file and the key, and the nearest right key where one was misspelt.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from config.errors import ConfigError
from config.pipeline import PipelineConfig
from engine.profile import Profile, profile_for_url

REPOSITORY = Path(__file__).resolve().parent.parent
PROFILES = REPOSITORY / "config" / "profiles"

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the environment says; everything else comes from files and options."""

    cache: Path
    """Folder for model weights, compile caches and the state of servers."""
    engine_venv: Path
    """The engine's own environment."""
    prefect_api_url: str | None
    """Prefect server that runs report to; None where none is configured."""


def load_surroundings(environment: Mapping[str, str] | None = None) -> Surroundings:
    """Return what the environment says."""
    env = os.environ if environment is None else environment
    base = env.get("XDG_CACHE_HOME") or str(Path(env.get("HOME", "~")).expanduser() / ".cache")
    return Surroundings(
        cache=Path(env.get("HEADRACE_CACHE") or Path(base) / "headrace"),
        engine_venv=Path(env.get("HEADRACE_ENGINE_VENV") or REPOSITORY / ".venv-engine"),
        prefect_api_url=env.get("PREFECT_API_URL") or None,
    )


def load_secret(name: str | None) -> str | None:
    """Return the environment variable `name`, for handing on to the client that needs it."""
    return os.environ.get(name) if name else None


def child_environment(**changes: str) -> dict[str, str]:
    """Return the environment for a child process, with `changes` on top."""
    return {**os.environ, **changes}


def set_environment(values: Mapping[str, str]) -> None:
    """Set variables of this process, for libraries that read their settings there."""
    os.environ.update(values)


def load_pipeline(path: Path, overrides: Mapping[str, object] | None = None) -> PipelineConfig:
    """Return the pipeline in `path`, prompt and schema files read in, `overrides` on top.

    Args:
        path: A YAML file; paths in it are relative to it.
        overrides: Top-level keys from the command line; None values are ignored.

    Raises:
        ConfigError: A file is missing, is not YAML, or a key is wrong.
    """
    data = _read_yaml(path)
    for name, text in _mapping(data, "shared", path).items():
        data["shared"][name] = _file_or_text(text, path, f"shared.{name}")
    for number, stage in enumerate(_sequence(data, "stages", path)):
        if isinstance(stage, dict):
            _read_stage_files(stage, path, f"stages[{number}]")
    data.update({key: value for key, value in (overrides or {}).items() if value is not None})
    return _validate(PipelineConfig, data, path)


def load_profile(engine: str) -> Profile:
    """Return the profile `engine`, or one for the endpoint where `engine` is a URL.

    Raises:
        ConfigError: There is no such profile.
    """
    if engine.startswith(("http://", "https://")):
        return profile_for_url(engine)
    path = PROFILES / f"{engine}.yaml"
    names = sorted(file.stem for file in PROFILES.glob("*.yaml"))
    if engine not in names:
        raise ConfigError(
            f"engine {engine!r} is no profile; profiles: {', '.join(names)}"
            f"{_nearest(engine, names)}; or give the URL of an OpenAI-compatible endpoint"
        )
    return _validate(Profile, _read_yaml(path), path)


def _read_stage_files(stage: dict[str, Any], path: Path, key: str) -> None:
    prompt, output = stage.get("prompt"), stage.get("output")
    if isinstance(prompt, str):
        stage["prompt"] = _file_or_text(prompt, path, f"{key}.prompt")
    if isinstance(output, str):
        text = _file_or_text(output, path, f"{key}.output")
        try:
            stage["output"] = json.loads(text)
        except json.JSONDecodeError as exc:
            raise ConfigError(f"{path}: {key}.output: {output!r} is not JSON: {exc}") from exc


def _file_or_text(value: object, path: Path, key: str) -> str:
    """Return the contents of the file that `value` names; several lines are the text itself.

    Raises:
        ConfigError: There is no such file, or `value` is neither.
    """
    if not isinstance(value, str):
        raise ConfigError(f"{path}: {key}: expected a file name or a text, got {value!r}")
    if "\n" in value or not value.endswith((".md", ".j2", ".txt", ".json")):
        return value
    file = path.parent / value
    try:
        return file.read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError(
            f"{path}: {key}: file {value!r} cannot be read ({exc.strerror});"
            f" paths are relative to {str(path.parent)!r}"
        ) from exc


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read ({exc.strerror}); check the path") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: is not YAML: {exc}") from exc
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected keys and values, got {type(data).__name__}")
    return data


def _mapping(data: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    value = data.get(key) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {key}: expected names and texts, got {value!r}")
    return value


def _sequence(data: Mapping[str, Any], key: str, path: Path) -> Sequence[Any]:
    value = data.get(key) or []
    if not isinstance(value, list):
        raise ConfigError(f"{path}: {key}: expected a list, got {value!r}")
    return value


def _validate(model: type[_Model], data: Mapping[str, Any], path: Path) -> _Model:
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        lines = [
            _explain(model, error["loc"], error["type"], error["msg"]) for error in exc.errors()
        ]
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from exc


def _explain(model: type[BaseModel], loc: tuple[int | str, ...], kind: str, message: str) -> str:
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
    if kind == "extra_forbidden":
        names = sorted(_field_names(model, loc[:-1]))
        return f"{key}: unknown key; known keys: {', '.join(names)}{_nearest(str(loc[-1]), names)}"
    return f"{key or 'document'}: {message.removeprefix('Value error, ')}"


def _field_names(model: type[BaseModel], loc: tuple[int | str, ...]) -> set[str]:
    """Return the field names of the model at `loc` inside `model`."""
    for part in loc:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        found = [
            kind
            for kind in _types_in(field.annotation if field else None)
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if not found:
            return set()
        model = found[0]
    return set(model.model_fields)


def _types_in(annotation: object) -> list[object]:
    inner = getattr(annotation, "__args__", ())
    return [annotation, *(kind for arg in inner for kind in _types_in(arg))]


def _nearest(word: str, words: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
