"""The models that this machine can serve by itself, by the name that a profile's `serve` gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Protocol

from engine import embedded, tiny

LocalModelName = Literal["embedded", "kimi-k2.5-tiny"]


class LocalModel(Protocol):
    """A model folder that is made on this machine."""

    FILES: tuple[str, ...]
    """What its folder must hold."""

    def dtype(self) -> str:
        """Return the type of its weights, as vLLM's `--dtype` names it."""

    def model_folder(self, cache: Path) -> Path:
        """Return where it lies, or will lie, in the cache."""

    def prepare(
        self,
        python: Path,
        cache: Path,
        environment: Mapping[str, str],
        notify: Callable[[str], None],
    ) -> Path:
        """Return its folder, after writing it where it is missing.

        Raises:
            PrerequisiteError: It cannot be written.
        """


LOCAL_MODELS: Mapping[LocalModelName, LocalModel] = {
    "embedded": embedded,
    "kimi-k2.5-tiny": tiny,
}
