"""Picks how tokens are counted: exactly where that is possible, and says so where it is not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from engine.errors import EngineError
from engine.tokens.counter import TokenCounter
from engine.tokens.estimate import EstimateCounter
from engine.tokens.local import HuggingFaceCounter, TiktokenCounter
from engine.tokens.remote import HostEstimateCounter, RemoteCounter, ServerCounter
from engine.tokens.source import TokenizerSource

_FILES = ("tokenizer.json", "tiktoken.model")


def open_counter(
    source: TokenizerSource | None,
    *,
    base_url: str,
    model: str,
    api_key: str | None,
    cache: Path,
    notify: Callable[[str], None],
) -> TokenCounter:
    """Return the best counter there is: a file, the server, the host's estimate, or an estimate.

    Args:
        source: What the profile says of counting.
        base_url: The endpoint, up to and with `/v1`; empty where it is not up, such as in a plan.
        model: Model as named in requests; names the counter.
        api_key: Key for the host, or None.
        cache: Folder of models; relative paths of `source` are below its `models`.
        notify: Called with one line where counts are not exact, with the reason and what to do.

    Raises:
        PrerequisiteError: The file is there but is no vocabulary.
    """
    source = source or TokenizerSource()
    why: list[str] = []
    if source.file is not None:
        path = vocabulary_path(source.file, cache)
        if path.is_file():
            return load_counter(path)
        why.append(f"there is no {str(path)!r}")
    for counter in _remote(source, base_url, model, api_key):
        try:
            counter.probe()
        except EngineError as exc:
            counter.close()
            why.append(str(exc))
            continue
        if not counter.exact or why:
            notify(_line(counter, why, source, cache))
        return counter
    estimate = EstimateCounter(model)
    notify(_line(estimate, why, source, cache))
    return estimate


def vocabulary_path(file: str, cache: Path) -> Path:
    """Return where the vocabulary lies, or should; of a folder, the file within."""
    path = cache / "models" / Path(file).expanduser()
    found = [path / name for name in _FILES if (path / name).is_file()]
    return found[0] if found else path


def load_counter(path: Path) -> TokenCounter:
    """Return the counter of a vocabulary, named after the file's content.

    Raises:
        PrerequisiteError: The file cannot be read as what its name says.
    """
    key = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    if path.suffix == ".json":
        return HuggingFaceCounter(path, f"tokenizer.json/{key}")
    return TiktokenCounter(path, f"tiktoken.model/{key}")


def _remote(
    source: TokenizerSource, base_url: str, model: str, api_key: str | None
) -> list[RemoteCounter]:
    counters: list[RemoteCounter] = []
    if source.tokenize and base_url:
        counters.append(ServerCounter(base_url, model=model, api_key=api_key))
    if source.estimate_path and base_url:
        path = source.estimate_path
        counters.append(HostEstimateCounter(base_url, path, model=model, api_key=api_key))
    return counters


def _line(counter: TokenCounter, why: list[str], source: TokenizerSource, cache: Path) -> str:
    reason = f" ({'; '.join(why)})" if why else ""
    if counter.exact:
        return f"tokens are counted by the server{reason}"
    how = "by the host's estimate" if isinstance(counter, RemoteCounter) else "with a 15 % margin"
    place = vocabulary_path(source.file or "<folder>/tiktoken.model", cache)
    return (
        f"tokens are estimated {how}{reason}; for exact counts put the model's tokenizer.json or"
        f" tiktoken.model at {str(place)!r}"
        + ("" if source.file else " and name it in the profile")
    )
