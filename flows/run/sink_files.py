"""Pictures and tables of a sink's documents as local files, fetched when they are asked for."""

from __future__ import annotations

import hashlib
import re
import threading
from pathlib import Path

from connectors.sinks.lake import Lake

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
"""As readers name pictures and tables: nothing that leads out of a folder."""


class SinkFiles:
    """Brings pictures and tables of a sink to a local folder, each once."""

    def __init__(self, lake: Lake, folder: Path) -> None:
        self._lake = lake
        self._folder = folder / "files"

    def fetch(self, document_key: str, name: str) -> Path:
        """Return the local copy.

        Raises:
            FileNotFoundError: The sink has none of that name.
        """
        check_name(document_key)
        check_name(name)
        key = hashlib.sha256(f"{document_key}/{name}".encode()).hexdigest()[:32]
        file = self._folder / f"{key}{Path(name).suffix}"
        if not file.exists():
            found = self._lake.storage.find(f"media/{document_key}/{name}")
            if found is None:
                raise FileNotFoundError(name)
            self._folder.mkdir(exist_ok=True)
            # Whoever sees the file sees all of it.
            part = file.with_name(f"{file.name}.{threading.get_ident()}")
            part.write_bytes(found.data)
            part.rename(file)
        return file


def check_name(name: str) -> None:
    """Check that a name is a plain one.

    Raises:
        FileNotFoundError: It is not: there is no such file.
    """
    if _PLAIN_NAME.fullmatch(name) is None:
        raise FileNotFoundError(name)
