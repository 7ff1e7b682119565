"""Reads pipelines and profiles from YAML, and the environment. The only reader of os.environ.

Errors name the file and the key, and the nearest right key where one was misspelt.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from config.errors import ConfigError
from config.pipeline import PipelineConfig, ReaderConfig, ReportTemplate
from config.shorthand import fields_to_schema, is_json_schema, parse_fields
from config.validate import nearest, validated
from config.yaml_text import YAMLError, parse_yaml
from connectors.readers import Password
from engine.profile import Profile, profile_for_url

REPOSITORY = Path(__file__).resolve().parent.parent
PROFILES = REPOSITORY / "config" / "profiles"
PIPELINES = REPOSITORY / "config" / "pipelines"

TEMPLATES = ("briefing",)
"""Names of the shipped templates of reports."""
TEMPLATE_FILES: Mapping[str, str] = {
    "html": "report.html.j2",
    "markdown": "report.md.j2",
    "stylesheet": "report.css",
}
"""Files of a template, by their keys in the resolved pipeline."""

_YAML_SUFFIXES = {".yaml", ".yml"}
_TEXT_SUFFIXES = (".md", ".j2", ".sql", ".txt", ".json", ".yaml", ".yml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the environment says; everything else comes from files and options."""

    cache: Path
    """Folder for model weights, compile caches and the state of engines."""
    state: Path
    """Folder of what this machine remembers: runs it made, servers that `headrace up` started."""
    engine_venv: Path
    """The engine's own environment."""
    prefect_api_url: str | None
    """Prefect server that runs report to, from PREFECT_API_URL or Prefect's active profile; None
    where neither names one."""
    pipelines: tuple[Path, ...]
    """Folders whose pipelines are known by name: the shipped ones, then HEADRACE_PIPELINES."""
    profiles: tuple[Path, ...]
    """Folders whose profiles are known by name: the shipped ones, then HEADRACE_PROFILES."""
    reports_url: str | None
    """Address under which `headrace up` serves reports; None where it does not."""


def load_surroundings(environment: Mapping[str, str] | None = None) -> Surroundings:
    """Return what the environment says."""
    env = os.environ if environment is None else environment
    home = Path(env.get("HOME", "~")).expanduser()
    cache = Path(env.get("XDG_CACHE_HOME") or home / ".cache")
    state = Path(env.get("XDG_STATE_HOME") or home / ".local" / "state")
    return Surroundings(
        cache=Path(env.get("HEADRACE_CACHE") or cache / "headrace"),
        state=Path(env.get("HEADRACE_STATE") or state / "headrace"),
        engine_venv=Path(env.get("HEADRACE_ENGINE_VENV") or REPOSITORY / ".venv-engine"),
        prefect_api_url=env.get("PREFECT_API_URL") or _active_prefect_url(env, home),
        pipelines=(PIPELINES, *_folders(env, "HEADRACE_PIPELINES")),
        profiles=(PROFILES, *_folders(env, "HEADRACE_PROFILES")),
        reports_url=env.get("HEADRACE_REPORTS_URL") or None,
    )


def _folders(env: Mapping[str, str], name: str) -> list[Path]:
    return [Path(folder) for folder in env.get(name, "").split(os.pathsep) if folder]


def _active_prefect_url(env: Mapping[str, str], home: Path) -> str | None:
    """Return the API URL of Prefect's active profile, read without importing Prefect."""
    file = Path(env.get("PREFECT_PROFILES_PATH") or "")
    if not env.get("PREFECT_PROFILES_PATH"):
        file = Path(env.get("PREFECT_HOME") or home / ".prefect") / "profiles.toml"
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
        active = env.get("PREFECT_PROFILE") or data.get("active")
        url = data.get("profiles", {}).get(active, {}).get("PREFECT_API_URL")
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, AttributeError, TypeError):
        # Prefect itself complains about a file that it cannot read.
        return None
    return str(url) if url else None


def load_secret(name: str | None) -> str | None:
    """Return the environment variable `name`, for handing on to the client that needs it."""
    return os.environ.get(name) if name else None


def load_secrets(names: Iterable[str]) -> dict[str, str]:
    """Return those of the environment variables that are set, for handing on to whoever needs them."""
    return {name: os.environ[name] for name in names if name in os.environ}


def load_passwords(reader: ReaderConfig) -> tuple[tuple[str, Password], ...]:
    """Return the globs of `reader.passwords` with the passwords that their variables hold.

    Raises:
        ConfigError: A variable is not set, or its value is no text.
    """
    found = []
    for glob, name in reader.passwords.items():
        where, value = f"reader.passwords[{glob!r}]", load_secret(name)
        if not value:
            raise ConfigError(
                f"{where}: the environment variable {name} is not set; run: read -rs {name}"
                f" && export {name}"
            )
        if not value.isprintable():
            raise ConfigError(
                f"{where}: the environment variable {name} holds a line break or bytes that are no"
                " UTF-8; set it to the password alone"
            )
        found.append((glob, Password(value=value, key=f"{where} (variable {name})")))
    return tuple(found)


def child_environment(**changes: str) -> dict[str, str]:
    """Return the environment for a child process, with `changes` on top."""
    return {**os.environ, **changes}


def set_environment(values: Mapping[str, str]) -> None:
    """Set variables of this process, for libraries that read their settings there."""
    os.environ.update(values)


def find_pipeline(name: str | Path) -> Path:
    """Return the file of a pipeline given by path, or by name from the known folders.

    Raises:
        ConfigError: There is no such file and no pipeline of that name.
    """
    path = Path(name)
    if path.suffix in _YAML_SUFFIXES or path.is_file() or len(path.parts) != 1:
        return path
    known = known_pipelines()
    if str(name) not in known:
        raise ConfigError(
            f"pipeline {str(name)!r} is no file, and no pipeline has that name; pipelines:"
            f" {', '.join(known)}{nearest(str(name), [*known])}; or give the path of a YAML file"
        )
    return known[str(name)]


def known_pipelines() -> dict[str, Path]:
    """Return the pipelines that can be given by name, by name."""
    return _by_name(load_surroundings().pipelines)


def known_profiles() -> dict[str, Path]:
    """Return the profiles that can be given by name, by name."""
    return _by_name(load_surroundings().profiles)


def _by_name(folders: Sequence[Path]) -> dict[str, Path]:
    files = [file for folder in folders for file in sorted(folder.glob("*.yaml"))]
    return {file.stem: file for file in files}


def load_pipeline(
    path: Path,
    overrides: Mapping[str, object] | None = None,
    settings: Sequence[str] = (),
) -> PipelineConfig:
    """Return the pipeline in `path`, prompt and schema files read in, `overrides` on top.

    Args:
        path: A YAML file; paths in it are relative to it.
        overrides: Values from the command line by dotted key; None values are ignored.
        settings: `key=value` pairs, applied last; values are YAML.

    Raises:
        ConfigError: A file is missing, is not YAML, or a key is wrong.
    """
    return pipeline_from(read_yaml(path), path, overrides, settings)


def pipeline_from(
    data: dict[str, Any],
    path: Path,
    overrides: Mapping[str, object] | None = None,
    settings: Sequence[str] = (),
) -> PipelineConfig:
    """Return the pipeline that `data` describes; `path` names it in errors, see `load_pipeline`.

    Raises:
        ConfigError: A file is missing or a key is wrong.
    """
    _resolve_paths(data, path.parent, str(path))
    for key, value in (overrides or {}).items():
        if value is not None:
            _assign(data, key, value, f"{path}: {key}")
    _apply(data, settings)
    # What is relative still comes from the command line.
    _resolve_paths(data, Path.cwd(), "--engine")
    for name, text in _mapping(data, "shared", path).items():
        data["shared"][name] = _file_or_text(text, path, f"shared.{name}")
    for number, stage in enumerate(_sequence(data, "stages", path)):
        if isinstance(stage, dict):
            _read_stage_files(stage, path, f"stages[{number}]")
    _read_mask_words(data, path)
    report = _mapping(data, "report", path)
    if isinstance(template := report.get("template"), str) and template not in TEMPLATES:
        texts = _read_template(
            path.parent / Path(template).expanduser(), f"{path}: report.template"
        )
        data["report"] = {**report, "template": texts}
    return validated(PipelineConfig, data, path)


def with_settings(config: PipelineConfig, settings: Sequence[str]) -> PipelineConfig:
    """Return a loaded pipeline with `key=value` pairs on top, which name no files.

    Raises:
        ConfigError: A key is wrong.
    """
    data = config.model_dump(mode="json")
    _apply(data, settings)
    return validated(PipelineConfig, data, Path("--set"))


def _apply(data: dict[str, Any], settings: Sequence[str]) -> None:
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"--set {setting!r}: expected key=value, such as chunk.max_tokens=500"
            )
        try:
            _assign(data, key.strip(), parse_yaml(text), f"--set {setting!r}")
        except YAMLError as exc:
            raise ConfigError(f"--set {setting!r}: the value is not YAML") from exc


def load_template(name: str, where: str) -> ReportTemplate | None:
    """Return the template in a folder; None for the shipped one, `briefing`.

    Raises:
        ConfigError: There is no such folder, or a template in it cannot be parsed.
    """
    if name in TEMPLATES:
        return None
    folder = Path(name).expanduser()
    return validated(ReportTemplate, _read_template(folder, where), folder)


def _read_template(folder: Path, where: str) -> dict[str, str]:
    """Return the texts of a report's template by the names of their keys.

    Raises:
        ConfigError: The folder has none of its files, or one cannot be read.
    """
    texts: dict[str, str] = {}
    for key, name in TEMPLATE_FILES.items():
        try:
            texts[key] = (folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(
                f"{where}: file {str(folder / name)!r} cannot be read: {exc}"
            ) from exc
    if not texts:
        raise ConfigError(
            f"{where}: {str(folder)!r} is neither the name of a template ({', '.join(TEMPLATES)}) nor a"
            f" folder with {', '.join(TEMPLATE_FILES.values())}; to start from the shipped files, run:"
            f" headrace report --write-template {folder.name}"
        )
    return texts


def _resolve_paths(data: dict[str, Any], folder: Path, where: str) -> None:
    """Make relative paths absolute, so that they mean the same on any day and in any folder.

    Raises:
        ConfigError: An engine's URL holds a password.
    """
    for key in ("source", "sink"):
        if isinstance(data.get(key), str) and "://" not in data[key]:
            data[key] = str((folder / Path(data[key]).expanduser()).absolute())
    if isinstance(data.get("cache"), str):
        data["cache"] = resolve_folder(data["cache"], folder)
    if isinstance(data.get("engine"), str):
        data["engine"] = resolve_engine(data["engine"], folder, f"{where}: engine")
    search = data.get("search")
    if isinstance(search, dict) and isinstance(search.get("vectors"), str):
        where_vectors = f"{where}: search.vectors"
        search["vectors"] = resolve_engine(search["vectors"], folder, where_vectors)
    _resolve_engines(data, "fallback", folder, f"{where}: fallback")
    policy = data.get("policy")
    if isinstance(policy, dict):
        _resolve_engines(policy, "on_premises", folder, f"{where}: policy.on_premises")


def _resolve_engines(data: dict[str, Any], key: str, folder: Path, where: str) -> None:
    if isinstance(data.get(key), list):
        data[key] = [
            resolve_engine(engine, folder, f"{where}[{number}]")
            if isinstance(engine, str)
            else engine
            for number, engine in enumerate(data[key])
        ]


def resolve_folder(url: str, folder: Path) -> str | None:
    """Return a cache as it is given, a path made absolute; None for the empty text, which is none."""
    if not url or "://" in url:
        return url or None
    return str((folder / Path(url).expanduser()).absolute())


def resolve_engine(engine: str, folder: Path, where: str) -> str:
    """Return an engine as it is given, the path of a profile made absolute.

    Raises:
        ConfigError: It is a URL with a password.
    """
    # Nothing of it is shown: what stands before the @ may be the key itself.
    scheme, slashes, rest = engine.rpartition("://")
    if "@" in rest.split("/", 1)[0]:
        host = rest.split("/", 1)[0].rpartition("@")[2]
        raise ConfigError(
            f"{where}: the URL of {host!r} holds a user name or password, which would reach logs and"
            " records; put the key into the environment variable OPENAI_API_KEY, or into that which"
            " a profile's api_key_env names"
        )
    if slashes or Path(engine).suffix not in _YAML_SUFFIXES:
        return f"{scheme.lower()}{slashes}{rest}"
    return str((folder / Path(engine).expanduser()).absolute())


def _assign(data: dict[str, Any], key: str, value: object, where: str) -> None:
    """Set one value by dotted key; `stages.NAME.x` is a stage by name, `stages.*.x` all of them.

    Raises:
        ConfigError: The key leads nowhere.
    """
    *parents, last = key.split(".")
    targets: list[Any] = [data]
    for parent in parents:
        targets = [found for target in targets for found in _below(target, parent)]
    if not targets or not all(isinstance(target, dict) for target in targets):
        raise ConfigError(
            f"{where}: there is no {'.'.join(parents)!r}; stages are named: stages.NAME.{last}"
        )
    for target in targets:
        target[last] = value


def _below(target: object, key: str) -> list[Any]:
    if isinstance(target, list):
        named = [item for item in target if isinstance(item, dict)]
        return [item for item in named if key in {"*", item.get("name")}]
    if not isinstance(target, dict):
        return []
    if target.get(key) is None:
        target[key] = {}
    return [target[key]]


def load_profile(engine: str) -> Profile:
    """Return the profile of that name or file, or one for the endpoint where `engine` is a URL.

    Raises:
        ConfigError: There is no such profile, or a key in it is wrong.
    """
    engine = resolve_engine(engine, Path.cwd(), "--engine")
    if engine.startswith(("http://", "https://")):
        return _from_url(engine)
    path = Path(engine)
    if path.suffix not in _YAML_SUFFIXES:
        known = known_profiles()
        if engine not in known:
            raise ConfigError(
                f"engine {engine!r} is no profile; profiles: {', '.join(known)}"
                f"{nearest(engine, [*known])}; or give the path of a profile's YAML file, or the URL"
                " of an OpenAI-compatible endpoint"
            )
        path = known[engine]
    profile = validated(Profile, read_yaml(path), path)
    if profile.name != path.stem:
        raise ConfigError(f"{path}: name: {profile.name!r}; expected the file's own, {path.stem!r}")
    return profile


def _from_url(url: str) -> Profile:
    try:
        return profile_for_url(url)
    except ValidationError as exc:
        (error,) = exc.errors(include_input=False)
        raise ConfigError(f"engine {url!r}: {error['msg'].removeprefix('Value error, ')}") from None


def _read_mask_words(data: Mapping[str, Any], path: Path) -> None:
    """Put the words of the file that `policy.mask.words` names in its place.

    Raises:
        ConfigError: There is no such file, or it is a text that names none.
    """
    policy = data.get("policy")
    mask = policy.get("mask") if isinstance(policy, dict) else None
    if isinstance(mask, dict) and isinstance(words := mask.get("words"), str):
        if not words.endswith(".txt"):
            raise ConfigError(
                f"{path}: policy.mask.words: {words!r} is neither a list nor the name of a .txt file; write"
                " `words: [Ada Lind, Emil Varga]`, or `words: names.txt` with one name a line in that file"
            )
        lines = _file_or_text(words, path, "policy.mask.words").splitlines()
        mask["words"] = [line.strip() for line in lines if line.strip()]


def _read_stage_files(stage: dict[str, Any], path: Path, key: str) -> None:
    output = stage.get("output")
    for name in ("prompt", "combine", "compute"):
        if isinstance(text := stage.get(name), str):
            stage[name] = _file_or_text(text, path, f"{key}.{name}")
    if isinstance(output, str) and output.strip().endswith((".json", ".yaml", ".yml")):
        output = _read_schema(output, path, f"{key}.output")
        stage["output"] = output
    if isinstance(output, str):
        stage["output"] = parse_fields(output, f"{path}: {key}.output")
    elif isinstance(output, dict) and output and not is_json_schema(output):
        stage["output"] = fields_to_schema(output, f"{path}: {key}.output")


def _read_schema(name: str, path: Path, key: str) -> object:
    text = _file_or_text(name, path, key)
    try:
        return json.loads(text) if name.endswith(".json") else parse_yaml(text)
    except (json.JSONDecodeError, YAMLError) as exc:
        raise ConfigError(f"{path}: {key}: file {name!r} cannot be parsed: {exc}") from exc


def _file_or_text(value: object, path: Path, key: str) -> str:
    """Return the contents of the file that `value` names; several lines are the text itself.

    Raises:
        ConfigError: There is no such file, or `value` is neither.
    """
    if not isinstance(value, str):
        raise ConfigError(f"{path}: {key}: expected a file name or a text, got {value!r}")
    if "\n" in value or not value.endswith(_TEXT_SUFFIXES):
        return value
    file = path.parent / value
    try:
        return file.read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError(
            f"{path}: {key}: file {value!r} cannot be read ({exc.strerror});"
            f" paths are relative to {str(path.parent)!r}"
        ) from exc


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file.

    Raises:
        ConfigError: It cannot be read, or holds something else.
    """
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read ({exc.strerror}); check the path") from exc
    except (YAMLError, UnicodeDecodeError) as exc:
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
